//! The runtime that openraft runs on: tokio's, but for its random numbers.
//!
//! openraft draws election timeouts from the runtime's thread-local generator. In production that is the operating
//! system's; a simulation seeds one for its thread ([`seed_thread_rng`]) and gets the same elections every time.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng, TryRng};

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// From here on, this thread's random numbers of openraft follow from `seed`. For simulations only: production
/// never calls it.
pub fn seed_thread_rng(seed: u64) {
    SEEDED.with(|rng| *rng.borrow_mut() = Some(StdRng::seed_from_u64(seed)));
}

/// The thread's seeded generator, or the operating system's when none was seeded.
#[derive(Debug, Clone, Copy)]
pub struct NodeRng;

impl NodeRng {
    fn with<T>(&self, draw: impl FnOnce(&mut dyn Rng) -> T) -> T {
        SEEDED.with(|seeded| match &mut *seeded.borrow_mut() {
            Some(rng) => draw(rng),
            None => draw(&mut rand::rng()),
        })
    }
}

impl TryRng for NodeRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.with(|rng| rng.next_u32()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.with(|rng| rng.next_u64()))
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        self.with(|rng| rng.fill_bytes(to));
        Ok(())
    }
}

/// A random u64 from the same source, for storage ids and batch stamps.
pub fn random_u64() -> u64 {
    NodeRng.next_u64()
}

/// tokio, with [`NodeRng`] for its random numbers.
#[derive(Debug)]
pub struct NodeRuntime(TokioRuntime);

impl AsyncRuntime for NodeRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = NodeRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> NodeRng {
        NodeRng
    }

    fn new(threads: usize) -> Self {
        NodeRuntime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_thread_draws_the_same_numbers_again() {
        let draw = || {
            seed_thread_rng(7);
            (random_u64(), random_u64())
        };
        let (first, second) = draw();
        assert_ne!(first, second);
        assert_eq!((first, second), draw());
        SEEDED.with(|rng| *rng.borrow_mut() = None);
        assert_ne!(first, random_u64(), "without a seed the numbers are the operating system's");
    }
}
