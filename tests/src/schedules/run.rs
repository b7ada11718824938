//! One schedule: two or three applications, lines that fail, then good lines and the end of all clients.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock::Client;
use raftlock::seams::{Executor, Seams};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::app::{AT_THE_LAST_MOMENT, App, LOST, TTL_MAX};
use super::desk::Leader;
use super::lines::Lines;
use crate::history::History;
use crate::tally::Tally;
use crate::world::lock;

/// Above what any schedule takes, of paused time: acquires wait up to 5 s, and there are four at most.
const LIMIT: Duration = Duration::from_secs(120);

/// How long a close may take over good lines: a round trip or a few.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Runs the schedule of one seed.
///
/// # Errors
/// The check that failed.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    runtime.build().expect("a runtime").block_on(schedule(seed))
}

async fn schedule(seed: u64) -> Result<Tally, String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let locks: Vec<String> = (0..rng.usize(1..=2)).map(|at| format!("lock-{at}")).collect();
    let leader = Leader::new(&locks);
    let began = Instant::now();
    let history = History::with_clock(move || began.elapsed());
    let tally = Arc::new(Mutex::new(Tally::default()));
    let has_faults = rng.u8(0..4) > 0;
    let (mut clients, mut apps) = (Vec::new(), Vec::new());
    for at in 0..rng.usize(2..=3) {
        let (accepting, accepted) = mpsc::unbounded_channel();
        leader.serve(accepted);
        let lines = Lines::new(rng.u64(..), if has_faults { rng.u64(0..400) } else { 1 }, accepting);
        let name = format!("c{at}");
        let client = client(&name, &lines, rng.u64(..)).map_err(|error| error.to_string())?;
        let app = App {
            name,
            client: client.clone(),
            locks: locks.clone(),
            rng: fastrand::Rng::with_seed(rng.u64(..)),
            history: history.clone(),
            tally: tally.clone(),
        };
        apps.push(tokio::spawn(app.live()));
        clients.push((client, lines));
    }
    let all_lines: Vec<Lines> = clients.iter().map(|(_, lines)| lines.clone()).collect();
    let trouble = has_faults.then(|| tokio::spawn(trouble(all_lines, rng.fork(), tally.clone())));
    for app in apps {
        let ended = timeout(LIMIT, app)
            .await
            .map_err(|_| format!("an application is not through after {LIMIT:?}"))?;
        ended.map_err(|panic| format!("an application: {panic}"))?;
    }
    trouble.inspect(tokio::task::JoinHandle::abort);
    for (client, lines) in &clients {
        lines.heal();
        // E: whatever was dropped before is given back before it returns.
        timeout(CLOSE_LIMIT, client.close())
            .await
            .map_err(|_| format!("a close takes longer than {CLOSE_LIMIT:?}"))?;
    }
    let mut tally = lock(&tally).clone();
    if has_faults || tally.get(AT_THE_LAST_MOMENT) + tally.get(LOST) > 0 {
        // What a client took for over, which is a little before it is, the leader ends by itself.
        tokio::time::sleep(TTL_MAX + Duration::from_secs(2)).await;
    }
    let log = leader.verdict().map_err(|what| format!("{what} (lines failed: {has_faults})"))?;
    history
        .check_against(&log)
        .and_then(|()| history.check().map(drop))
        .map_err(|violation| violation.to_string())?;
    tally.add("client schedules", 1);
    Ok(tally)
}

fn client(name: &str, lines: &Lines, seed: u64) -> Result<Client, raftlock::Error> {
    let began = Instant::now();
    let dialled = lines.clone();
    let seams = Seams {
        clock: Arc::new(move || Duration::from_secs(1_000) + began.elapsed()),
        executor: Executor::Given(Arc::new(|keeper| drop(tokio::spawn(keeper)))),
        dial: Arc::new(move |_| Box::pin(dialled.clone().dial())),
        seed: Some(seed),
    };
    Client::builder().endpoints("a:1,b:1").owner(name).seams(seams).lazy()
}

/// Lines fail, one client's after another's, and work again, until this is aborted.
async fn trouble(lines: Vec<Lines>, mut rng: fastrand::Rng, tally: Arc<Mutex<Tally>>) {
    loop {
        tokio::time::sleep(Duration::from_millis(rng.u64(50..1_500))).await;
        let one = &lines[rng.usize(0..lines.len())];
        // Up to longer than a lease.
        let time = Duration::from_millis(rng.u64(10..2_500));
        let what = match rng.u8(0..4) {
            0 | 1 => {
                one.cut();
                "lines cut"
            }
            2 => {
                one.set_down(true);
                one.cut();
                tokio::time::sleep(time).await;
                one.set_down(false);
                "lines down"
            }
            _ => {
                one.set_deaf(true);
                tokio::time::sleep(time).await;
                one.set_deaf(false);
                "lines deaf"
            }
        };
        lock(&tally).add(what, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_schedules_of_clients() {
        let mut all = Tally::default();
        (1..=100)
            .for_each(|seed| all.merge(&run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"))));
        let expected = [
            "grants",
            "acquires dropped",
            "extensions",
            LOST,
            AT_THE_LAST_MOMENT,
            "lines cut",
            "lines deaf",
            "lines down",
        ];
        let endings = ["Release", "Drop", "OffRuntime", "Panic", "Abort", "RuntimeShutdown"];
        let endings = endings.map(|ending| format!("guards ended by {ending}"));
        for what in expected.map(str::to_owned).into_iter().chain(endings) {
            assert!(all.get(&what) > 0, "{what}: {all}");
        }
    }
}
