//! The example with nodes of its own, in three real processes: one wins, and whoever goes, the lock passes on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use raftlock_examples::local_time::TimeOfDay;
use raftlock_server::testing::wires::FreePorts;

mod run;

/// Far above what anything takes on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the three become a cluster.
#[derive(Clone, Copy, PartialEq)]
enum How {
    /// The first node's only seed is itself, the others join it.
    Joining,
    /// All wait for each other.
    Together,
}

/// What somebody printed.
struct Line {
    /// Of all processes; the first is 0.
    who: usize,
    text: String,
}

/// The three terminals.
struct Terminals {
    processes: Vec<Option<Child>>,
    names: Vec<String>,
    lines: Receiver<Line>,
    /// For a message when something never comes.
    heard: Vec<String>,
    _ports: FreePorts,
}

impl Terminals {
    /// Starts the three in this order, each with these flags more.
    fn start(how: How, order: [usize; 3], flags: &[&str]) -> Terminals {
        let ports = FreePorts::take(3);
        let names = ports.addresses.clone();
        let start = TimeOfDay::seconds_from_now(5).unwrap().to_string();
        let (hear, lines) = channel();
        let mut terminals =
            Terminals { processes: vec![None, None, None], names, lines, heard: Vec::new(), _ports: ports };
        for who in order {
            let mut command = Command::new(run::built("simultaneous"));
            let seeds = match how {
                How::Joining => terminals.names[0].clone(),
                How::Together => terminals.names.join(","),
            };
            command.args([&terminals.names[who], &seeds, &start]).args(flags).stdout(Stdio::piped());
            if how == How::Together {
                command.arg("--bootstrap-expect=3");
            }
            let mut process = command.spawn().expect("the example is built");
            let output = BufReader::new(process.stdout.take().expect("it is piped"));
            terminals.processes[who] = Some(process);
            read(who, output, hear.clone());
        }
        terminals
    }

    /// Waits for a line that tells something.
    #[allow(clippy::disallowed_methods, reason = "the test has patience of its own")]
    fn wait_for<T>(&mut self, what: &str, mut tells: impl FnMut(&Line) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("never: {what}; heard\n{}", self.heard.join("\n"))
            };
            self.heard.push(line.text.clone());
            if let Some(told) = tells(&line) {
                return told;
            }
        }
    }

    /// Who holds the lock now, and under which token, by the holder's own word.
    fn winner(&mut self) -> (usize, u64) {
        self.wait_for("somebody wins", |line| {
            let token = line.text.split("holds example-key under token ").nth(1)?.split(' ').next()?;
            Some((line.who, token.parse().expect("a token is a number")))
        })
    }

    fn wait_for_line(&mut self, who: usize, part: &str) {
        self.wait_for(part, |line| (line.who == who && line.text.contains(part)).then_some(()));
    }

    /// Waits until `who` sees that all of these wait.
    fn wait_for_waiters(&mut self, who: usize, waiters: &[&str]) {
        self.wait_for("the others wait", |line| {
            let named = line.text.split("waiting: ").nth(1)?;
            let mut named: Vec<&str> = named.split(", ").collect();
            let mut waiters = waiters.to_vec();
            named.sort();
            waiters.sort();
            (line.who == who && named == waiters).then_some(())
        });
    }

    fn signal(&self, who: usize, signal: i32) {
        let id = self.processes[who].as_ref().expect("it runs").id();
        // SAFETY: it takes two numbers. The process is not reaped yet, so nobody else has its id.
        assert_eq!(unsafe { libc::kill(i32::try_from(id).expect("an id"), signal) }, 0);
    }

    /// Ctrl+C, until it is gone.
    fn leaves(&mut self, who: usize) {
        self.signal(who, libc::SIGINT);
        let ended = self.processes[who].take().expect("it runs").wait().expect("it ends");
        assert!(ended.success(), "{ended}; heard\n{}", self.heard.join("\n"));
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn read(who: usize, output: impl BufRead + Send + 'static, hear: Sender<Line>) {
    std::thread::spawn(move || {
        for text in output.lines().map_while(Result::ok) {
            if hear.send(Line { who, text }).is_err() {
                return;
            }
        }
    });
}

/// One wins, renews, and leaves; the next one wins, long before the TTL is over.
#[allow(clippy::disallowed_methods, reason = "the test measures with its own clock")]
fn passes_on(how: How, order: [usize; 3]) {
    let ttl = Duration::from_secs(120);
    let mut three = Terminals::start(how, order, &["--renew-after=3", "--every=1"]);
    let (winner, token) = three.winner();
    let others: Vec<usize> = (0..3).filter(|who| *who != winner).collect();
    let names = three.names.clone();
    three.wait_for_waiters(winner, &[&names[others[0]], &names[others[1]]]);
    three.wait_for_line(winner, "renewed example-key");

    let begun = Instant::now();
    three.leaves(winner);
    let (next, higher) = three.winner();
    assert!(next != winner && higher > token);
    assert!(begun.elapsed() < ttl / 2, "it passed on because it was released");
    // The third still waits, and is the last to win.
    let last = 3 - winner - next;
    three.wait_for_waiters(next, &[&names[last]]);
    three.leaves(next);
    let (third, highest) = three.winner();
    assert!(third == last && highest > higher);
    three.leaves(last);
}

/// One wins and is killed: the next one wins when the lease is over, not before, and not long after.
#[allow(clippy::disallowed_methods, reason = "the test measures with its own clock")]
fn is_followed_when_killed(how: How) {
    let ttl = Duration::from_secs(6);
    let mut three = Terminals::start(how, [0, 1, 2], &["--ttl=6", "--renew-after=3600", "--every=1"]);
    let (winner, token) = three.winner();
    let won = Instant::now();
    let names = three.names.clone();
    let others: Vec<&str> = (0..3).filter(|who| *who != winner).map(|who| names[who].as_str()).collect();
    three.wait_for_waiters(winner, &others);
    three.signal(winner, libc::SIGKILL);
    let (next, higher) = three.winner();
    let waited = won.elapsed();
    assert!(next != winner && higher > token);
    // The winner's line was read a moment after its grant.
    assert!(waited > ttl - Duration::from_millis(500), "{waited:?}: a lease never ends early");
    // Two ticks, and the time without a leader, had the winner led; the rest is for a machine with much else to do.
    let limit = ttl + Duration::from_millis(400) + Duration::from_secs(2) + Duration::from_secs(6);
    assert!(waited < limit, "{waited:?}");
}

#[test]
fn founded_together_one_wins_and_its_lock_passes_on_when_it_leaves() {
    passes_on(How::Together, [0, 1, 2]);
}

#[test]
fn founded_together_a_killed_winner_is_followed_when_its_ttl_is_over() {
    is_followed_when_killed(How::Together);
}

#[test]
fn joined_one_wins_and_its_lock_passes_on_when_it_leaves() {
    passes_on(How::Joining, [0, 1, 2]);
}

#[test]
fn joined_the_order_of_starting_does_not_matter() {
    passes_on(How::Joining, [1, 0, 2]);
}

#[test]
fn joined_a_killed_winner_is_followed_when_its_ttl_is_over() {
    is_followed_when_killed(How::Joining);
}

#[test]
fn a_wrong_address_is_an_error_of_usage() {
    let ended = run::example("simultaneous", &["nowhere", "127.0.0.1:7946", "12:00"]);
    assert_eq!(ended.code, Some(2), "{}", ended.output);
    assert!(ended.output.contains("bind"), "{}", ended.output);
}
