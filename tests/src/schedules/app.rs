//! What an application does with its locks in a schedule: a few acquires, each ended in one way or another.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock::{Client, Error, LockGuard};

use crate::history::{Answer, History, HoldId};
use crate::tally::Tally;
use crate::world::lock;

/// The shortest lease that there is, and the longest in a schedule.
const TTL_MS: std::ops::Range<u64> = 1_000..4_000;

/// The longest lease of a schedule.
pub(super) const TTL_MAX: Duration = Duration::from_millis(TTL_MS.end);

/// A guard that ends with less than this left may be over before the release has left.
const LAST_MOMENT: Duration = Duration::from_millis(20);

/// How many did, in the tally.
pub(super) const AT_THE_LAST_MOMENT: &str = "guards ended at the last moment";

/// And those that were lost.
pub(super) const LOST: &str = "guards lost";

/// One application.
pub(super) struct App {
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) locks: Vec<String>,
    pub(super) rng: fastrand::Rng,
    pub(super) history: History,
    pub(super) tally: Arc<Mutex<Tally>>,
}

/// How a guard ends. All but the first give it back without waiting for the answer.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Release,
    Drop,
    OffRuntime,
    Panic,
    Abort,
    RuntimeShutdown,
}

const ENDINGS: [Ending; 8] = [
    Ending::Release,
    Ending::Release,
    Ending::Release,
    Ending::Drop,
    Ending::OffRuntime,
    Ending::Panic,
    Ending::Abort,
    Ending::RuntimeShutdown,
];

impl App {
    fn count(&self, what: &str) {
        lock(&self.tally).add(what, 1);
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(ms))).await;
    }

    /// A few acquires, one after another.
    pub(super) async fn live(mut self) {
        for _ in 0..self.rng.u8(1..5) {
            self.pause(0..300).await;
            self.one().await;
        }
    }

    async fn one(&mut self) {
        let name = self.locks[self.rng.usize(0..self.locks.len())].clone();
        let ttl = Duration::from_millis(self.rng.u64(TTL_MS));
        let (asked, acquire) =
            (self.history.now(), self.history.asks(&self.name, std::slice::from_ref(&name)));
        let builder = self.client.lock(&name).ttl(ttl).auto_renew(self.rng.u8(0..6) > 0);
        let answer = match self.rng.u8(0..6) {
            0 => builder.try_acquire().await,
            1 | 2 => {
                // Dropped while it waits, or just when it is granted.
                let patience = Duration::from_millis(self.rng.u64(0..400));
                match tokio::time::timeout(patience, builder.into_future()).await {
                    Ok(answer) => answer.map(Some),
                    Err(_) => return self.count("acquires dropped"),
                }
            }
            _ => builder.wait(Duration::from_millis(self.rng.u64(1..5_000))).await.map(Some),
        };
        match answer {
            Ok(Some(guard)) => {
                self.history.answered(acquire, Answer::Granted(guard.token().get()));
                self.hold(&name, guard, asked).await;
            }
            Ok(None) => {
                self.history.answered(acquire, Answer::Refused);
                self.history.refused(&self.name, &name, None, asked);
            }
            Err(Error::WaitTimeout(_)) => self.history.answered(acquire, Answer::Refused),
            Err(_) => self.count("acquires that failed"),
        }
    }

    async fn hold(&mut self, name: &str, guard: LockGuard, asked: Duration) {
        let history = self.history.clone();
        let hold = history.granted(&self.name, name, guard.token().get(), asked);
        history.promised(hold, guard.remaining());
        self.count("grants");
        if self.rng.u8(0..4) == 0 {
            let ttl = Duration::from_millis(self.rng.u64(TTL_MS));
            let extension = history.extending(hold, ttl);
            if guard.extend(ttl).await.is_ok() {
                history.extended(extension);
                self.count("extensions");
            }
        }
        // At times until just before its end.
        let rest = match self.rng.u8(0..4) {
            0 => guard.remaining().saturating_sub(LAST_MOMENT.mul_f64(self.rng.f64())),
            _ => Duration::from_millis(self.rng.u64(0..900)),
        };
        tokio::select! {
            biased;
            _ = guard.lost() => {
                history.lost(hold);
                return self.count(LOST);
            }
            () = tokio::time::sleep(rest) => {}
        }
        if !guard.is_held() {
            history.lost(hold);
            return self.count(LOST);
        }
        history.promised(hold, guard.remaining());
        let ending = ENDINGS[self.rng.usize(0..ENDINGS.len())];
        self.count(&format!("guards ended by {ending:?}"));
        if guard.remaining() < LAST_MOMENT {
            self.count(AT_THE_LAST_MOMENT);
        }
        self.end(guard, hold, ending).await;
    }

    async fn end(&self, guard: LockGuard, hold: HoldId, ending: Ending) {
        self.history.releasing(hold);
        match ending {
            Ending::Release => {
                if guard.release().await.is_ok() {
                    self.history.released(hold);
                }
            }
            Ending::Drop => drop(guard),
            Ending::OffRuntime => elsewhere(move || drop(guard)),
            Ending::Panic => {
                let work = tokio::spawn(async move {
                    let _guard = guard;
                    resume_unwind(Box::new("work failed"))
                });
                let ended: Result<(), _> = work.await;
                assert!(ended.is_err_and(|error| error.is_panic()), "it panics");
            }
            Ending::Abort => {
                let work = tokio::spawn(async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                });
                tokio::task::yield_now().await;
                work.abort();
                assert!(work.await.is_err_and(|error| error.is_cancelled()), "it is aborted");
            }
            Ending::RuntimeShutdown => elsewhere(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                runtime.spawn(async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                });
                runtime.block_on(tokio::task::yield_now());
                drop(runtime);
            }),
        }
    }
}

/// On a thread that has no runtime, and waits for it.
fn elsewhere(what: impl FnOnce() + Send + 'static) {
    std::thread::spawn(what).join().expect("it does not panic");
}
