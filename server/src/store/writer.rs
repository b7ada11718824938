//! One writer per file: a queue, and somebody who takes from it, a thread or the caller itself.
//!
//! - First come, first served. Everything that waits when a transaction ends goes into the next one.
//! - Riders wait beside the queue and go with the next transaction that others cause.
//! - The queue itself has no limit: an append waits for room before it comes here (`log.rs`), and everybody else
//!   waits for an answer, so there are at most as many jobs as callers.
//! - Inline, a job that is queued from inside an answer is done by the turn that is under way. So on one thread too a
//!   batch can hold more than one job.
//! - Inline behind a [`Valve`], the caller may find it shut: then what is queued waits until the valve lets it through.

use super::StoreError;
use super::batch::{Core, Desk, Job};
use super::hold;
use super::options;
use super::poison::Poison;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use tokio::sync::{Notify, oneshot};

/// The handle to a file's writer. Without `close` or `abandon` its drop lets a thread finish what waits and leave.
pub(super) struct Writer<D: Desk> {
    shared: Arc<Shared<D>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<D: Desk> {
    queue: Mutex<Queue<D>>,
    wake: Condvar,
    poison: Arc<Poison>,
    /// The core, when no thread has it.
    inline: Option<Mutex<Option<Core<D>>>>,
    /// What may hold it up.
    valve: Option<Valve>,
}

struct Queue<D: Desk> {
    jobs: Vec<Job<D>>,
    riders: D::Riders,
    end: Option<End>,
    /// No more jobs are taken.
    shut: bool,
    /// Inline: somebody is taking from the queue.
    busy: bool,
}

/// How a writer ends, after the jobs that wait.
enum End {
    /// Checkpoint, close, say so.
    Close(oneshot::Sender<Result<(), StoreError>>),
    /// Write nothing more.
    Leave,
}

/// All that can happen next at a writer.
enum Turn<D: Desk> {
    Batch(Vec<Job<D>>, Option<D::Riders>),
    Idle,
    Close(oneshot::Sender<Result<(), StoreError>>, D::Riders),
    Leave,
}

/// Holds the inline writers of one simulated disk up. Clones are the same valve.
#[derive(Clone, Default)]
pub struct Valve(Arc<Mutex<Held>>, Arc<Notify>);

#[derive(Default)]
struct Held {
    shut: bool,
    writers: Vec<Weak<dyn Serve>>,
}

/// A writer whose queue can be served by anybody.
trait Serve: Send + Sync {
    /// Serves it in the caller as a thread would, until it is empty; at most one slice of idle work.
    fn serve_inline(&self);
}

impl Valve {
    /// From now on what is queued waits.
    pub fn shut(&self) {
        hold(&self.0).shut = true;
    }

    /// What waits is done by [`tend`](Self::tend), and from now on everything at once.
    pub fn open(&self) {
        hold(&self.0).shut = false;
        self.let_through();
    }

    /// What waits is done by [`tend`](Self::tend), and what comes then waits again.
    pub fn let_through(&self) {
        self.1.notify_one();
    }

    /// Does what was let through, until it is dropped. It runs where the node does: answers are given from here.
    pub async fn tend(&self) {
        loop {
            self.1.notified().await;
            let writers = hold(&self.0).writers.clone();
            writers.iter().filter_map(Weak::upgrade).for_each(|writer| writer.serve_inline());
        }
    }

    fn is_shut(&self) -> bool {
        hold(&self.0).shut
    }
}

impl fmt::Debug for Valve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Valve").field("shut", &self.is_shut()).finish_non_exhaustive()
    }
}

impl<D: Desk> Queue<D> {
    fn turn(&mut self, idle_work: bool) -> Option<Turn<D>> {
        if !self.jobs.is_empty() {
            let jobs = std::mem::take(&mut self.jobs);
            let writes = jobs.iter().any(|job| D::writes(&job.work));
            return Some(Turn::Batch(jobs, writes.then(|| std::mem::take(&mut self.riders))));
        }
        match self.end.take() {
            Some(End::Close(done)) => Some(Turn::Close(done, std::mem::take(&mut self.riders))),
            Some(End::Leave) => Some(Turn::Leave),
            None => idle_work.then_some(Turn::Idle),
        }
    }
}

impl<D: Desk> Writer<D> {
    pub(super) fn start(
        core: Core<D>,
        poison: Arc<Poison>,
        writer: options::Writer,
    ) -> Result<Self, StoreError> {
        let queue =
            Queue { jobs: Vec::new(), riders: D::Riders::default(), end: None, shut: false, busy: false };
        let share = |inline, valve| {
            let (queue, wake) = (Mutex::new(queue), Condvar::new());
            Arc::new(Shared { queue, wake, poison, inline, valve })
        };
        let inline = |core| Some(Mutex::new(Some(core)));
        match writer {
            options::Writer::Inline => {
                Ok(Self { shared: share(inline(core), None), thread: Mutex::new(None) })
            }
            options::Writer::Behind(valve) => {
                let shared = share(inline(core), Some(valve.clone()));
                let served: Weak<Shared<D>> = Arc::downgrade(&shared);
                hold(&valve.0).writers.push(served);
                Ok(Self { shared, thread: Mutex::new(None) })
            }
            options::Writer::Thread => {
                let shared = share(None, None);
                let theirs = Arc::clone(&shared);
                let thread = thread::Builder::new()
                    .name(D::FILE.to_owned())
                    .spawn(move || theirs.serve(core))
                    .map_err(|e| StoreError::Io {
                        file: D::FILE,
                        doing: "starting the writer",
                        source: Arc::new(e),
                    })?;
                Ok(Self { shared, thread: Mutex::new(Some(thread)) })
            }
        }
    }

    /// Queues a job; [`kick`](Self::kick) must follow. Two steps, so that a caller can queue under a lock that the
    /// answers take too.
    pub(super) fn enqueue(&self, job: Job<D>) -> Result<(), StoreError> {
        let mut queue = self.open_queue()?;
        queue.jobs.push(job);
        Ok(())
    }

    /// Whether work is still taken; if not, why.
    pub(super) fn is_open(&self) -> Result<(), StoreError> {
        self.open_queue().map(drop)
    }

    /// Adds to what goes with the next transaction.
    pub(super) fn ride(&self, add: impl FnOnce(&mut D::Riders)) -> Result<(), StoreError> {
        add(&mut self.open_queue()?.riders);
        Ok(())
    }

    /// Has the queue served: wakes the thread, or serves it here.
    pub(super) fn kick(&self) {
        self.shared.wake.notify_one();
        if !self.shared.valve.as_ref().is_some_and(Valve::is_shut) {
            self.shared.serve_inline();
        }
    }

    /// Queues work and waits for its answer. Once this was polled the work is done even if the future is dropped.
    pub(super) async fn call(&self, work: D::Work) -> Result<D::Reply, StoreError> {
        let (job, answer) = job(work);
        self.enqueue(job)?;
        self.kick();
        self.answer(answer).await
    }

    /// Waits for the answer of a [`job`].
    pub(super) async fn answer(
        &self,
        answer: oneshot::Receiver<Result<D::Reply, StoreError>>,
    ) -> Result<D::Reply, StoreError> {
        answer.await.unwrap_or_else(|_| Err(self.shared.poison.error().unwrap_or(StoreError::Closed)))
    }

    /// Finishes what waits, checkpoints and closes the file.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        let (done, closed) = oneshot::channel();
        {
            let mut queue = self.open_queue()?;
            queue.shut = true;
            queue.end = Some(End::Close(done));
        }
        self.kick();
        closed.await.unwrap_or_else(|_| Err(self.shared.poison.error().unwrap_or(StoreError::Closed)))
    }

    /// Leaves as a crash would: what waits is neither done nor answered. Blocks for a transaction under way.
    pub(super) fn abandon(&self) {
        let dropped = {
            let mut queue = hold(&self.shared.queue);
            queue.shut = true;
            queue.end.get_or_insert(End::Leave);
            std::mem::take(&mut queue.jobs)
        };
        drop(dropped);
        self.kick();
        if let Some(thread) = hold(&self.thread).take() {
            // A panic of the writer was already answered with closed channels.
            drop(thread.join());
        }
    }

    fn open_queue(&self) -> Result<MutexGuard<'_, Queue<D>>, StoreError> {
        let queue = hold(&self.shared.queue);
        match self.shared.poison.error() {
            Some(told) => Err(told),
            None if queue.shut => Err(StoreError::Closed),
            None => Ok(queue),
        }
    }
}

impl<D: Desk> Drop for Writer<D> {
    fn drop(&mut self) {
        let mut queue = hold(&self.shared.queue);
        queue.shut = true;
        queue.end.get_or_insert(End::Leave);
        drop(queue);
        self.kick();
    }
}

/// A job whose answer can be awaited.
pub(super) fn job<D: Desk>(work: D::Work) -> (Job<D>, oneshot::Receiver<Result<D::Reply, StoreError>>) {
    let (tell, answer) = oneshot::channel();
    // Whoever asked may be gone; the work stands.
    (Job { work, done: Box::new(move |reply| drop(tell.send(reply))) }, answer)
}

impl<D: Desk> Shared<D> {
    /// The thread: serves until told to end.
    fn serve(&self, mut core: Core<D>) {
        let _shut = ShutOnExit(self);
        loop {
            match self.wait_for_turn(core.has_idle_work()) {
                Turn::Batch(jobs, riders) => core.batch(jobs, riders),
                Turn::Idle => core.idle(),
                Turn::Close(done, riders) => return drop(done.send(core.close(riders))),
                Turn::Leave => return,
            }
        }
    }

    fn wait_for_turn(&self, idle_work: bool) -> Turn<D> {
        let mut queue = hold(&self.queue);
        loop {
            match queue.turn(idle_work) {
                Some(turn) => return turn,
                None => queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl<D: Desk> Serve for Shared<D> {
    fn serve_inline(&self) {
        let Some(inline) = &self.inline else { return };
        if std::mem::replace(&mut hold(&self.queue).busy, true) {
            return;
        }
        let mut place = hold(inline);
        let mut slices = 1;
        loop {
            let turn = {
                let mut queue = hold(&self.queue);
                let idle_work = slices > 0 && place.as_ref().is_some_and(Core::has_idle_work);
                let turn = queue.turn(idle_work);
                queue.busy = turn.is_some();
                turn
            };
            match (turn, &mut *place) {
                (None, _) => return,
                (Some(Turn::Batch(jobs, riders)), Some(core)) => core.batch(jobs, riders),
                (Some(Turn::Idle), Some(core)) => {
                    core.idle();
                    slices -= 1;
                }
                (Some(Turn::Close(done, riders)), core) => {
                    let closed = core.take().map_or(Err(StoreError::Closed), |core| core.close(riders));
                    // Whoever closes may be gone; closed it is.
                    drop(done.send(closed));
                }
                (Some(_), core) => drop(core.take()),
            }
        }
    }
}

/// However the thread ends, nobody waits for it for ever: jobs that are dropped close their channels.
struct ShutOnExit<'a, D: Desk>(&'a Shared<D>);

impl<D: Desk> Drop for ShutOnExit<'_, D> {
    fn drop(&mut self) {
        let mut queue = hold(&self.0.queue);
        queue.shut = true;
        let unanswered = std::mem::take(&mut queue.jobs);
        drop(queue);
        drop(unanswered);
    }
}
