//! One lock: who holds it and who waits for it, as numbers of requests.
//!
//! Derived from the requests. A lock exists while somebody holds it or waits for it. The common
//! one, with one holder and nobody waiting, is a single number; [`Lock::shrink`] brings a lock back
//! to that form.

use crate::sequences::SequenceSet;
use crate::types::{Mode, Sequence};

#[derive(Debug, PartialEq)]
pub(crate) enum Lock {
    /// One holder, no waiter.
    Single(Sequence),
    /// Anything else.
    Crowd(Box<Crowd>),
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Crowd {
    /// By number, which is also by token: of two requests for one lock the later is never granted
    /// first.
    holders: SequenceSet,
    queue: SequenceSet,
    /// Sum of the holders' permits.
    permits_held: u32,
    /// Of all requests for permits, held or queued; 0 while there is none.
    capacity: u32,
    /// How many requests for permits there are.
    permits_requests: u64,
}

impl Lock {
    /// A lock that nobody holds: its first request waits for another one.
    pub(crate) fn of_waiter(sequence: Sequence, mode: Mode) -> Self {
        let mut crowd = Box::<Crowd>::default();
        crowd.enqueue(sequence, mode);
        Self::Crowd(crowd)
    }

    pub(crate) fn holder_count(&self) -> usize {
        match self {
            Self::Single(_) => 1,
            Self::Crowd(crowd) => crowd.holders.len(),
        }
    }

    pub(crate) fn first_holder(&self) -> Option<Sequence> {
        match self {
            Self::Single(only) => Some(*only),
            Self::Crowd(crowd) => crowd.holders.first(),
        }
    }

    /// In the order in which they were granted.
    pub(crate) fn holders(&self) -> impl DoubleEndedIterator<Item = Sequence> {
        let (single, crowd) = match self {
            Self::Single(only) => (Some(*only), None),
            Self::Crowd(crowd) => (None, Some(crowd.holders.iter())),
        };
        single.into_iter().chain(crowd.into_iter().flatten())
    }

    /// The first holder for whom a condition does not hold that holds for all before it.
    pub(crate) fn first_holder_not(&self, mut holds: impl FnMut(Sequence) -> bool) -> Option<Sequence> {
        match self {
            Self::Single(only) => Some(*only).filter(|only| !holds(*only)),
            Self::Crowd(crowd) => crowd.holders.partition(holds).1,
        }
    }

    /// Nobody, for most locks.
    pub(crate) fn queue(&self) -> &SequenceSet {
        match self {
            Self::Single(_) => &SequenceSet::None,
            Self::Crowd(crowd) => &crowd.queue,
        }
    }

    pub(crate) fn crowd(&self) -> Option<&Crowd> {
        match self {
            Self::Single(_) => None,
            Self::Crowd(crowd) => Some(crowd),
        }
    }

    /// The form that has room for more; `single_mode` is that of the holder of a [`Lock::Single`].
    pub(crate) fn grow(&mut self, single_mode: impl FnOnce(Sequence) -> Mode) -> &mut Crowd {
        if let Self::Single(only) = *self {
            let mut crowd = Box::<Crowd>::default();
            crowd.hold(only, single_mode(only));
            *self = Self::Crowd(crowd);
        }
        match self {
            Self::Crowd(crowd) => crowd,
            Self::Single(_) => unreachable!("the lines above turned it into a crowd"),
        }
    }

    /// Brings the lock to its smallest form; `false` when there is nobody left.
    pub(crate) fn shrink(&mut self) -> bool {
        if let Self::Crowd(crowd) = self {
            match (&crowd.holders, &crowd.queue) {
                (SequenceSet::None, SequenceSet::None) => return false,
                (SequenceSet::One(only), SequenceSet::None) => *self = Self::Single(*only),
                (_, _) => {}
            }
        }
        true
    }
}

impl Crowd {
    /// Adds a holder, later than all that hold or wait.
    pub(crate) fn hold(&mut self, sequence: Sequence, mode: Mode) {
        self.enter(mode);
        self.add_holder(sequence, mode);
    }

    /// Adds a waiter, later than all that hold or wait.
    pub(crate) fn enqueue(&mut self, sequence: Sequence, mode: Mode) {
        self.enter(mode);
        self.queue.push(sequence);
    }

    /// Turns a waiter into a holder.
    pub(crate) fn grant(&mut self, sequence: Sequence, mode: Mode) {
        self.queue.remove(sequence);
        self.add_holder(sequence, mode);
    }

    /// Takes out a holder; that always makes way for others.
    pub(crate) fn leave_holders(&mut self, sequence: Sequence, mode: Mode) -> bool {
        self.holders.remove(sequence);
        if let Mode::Permits { permits, .. } = mode {
            self.permits_held -= permits;
        }
        self.exit(mode);
        true
    }

    /// Takes out a waiter; `true` if it was the head and so makes way for the next.
    pub(crate) fn leave_queue(&mut self, sequence: Sequence, mode: Mode) -> bool {
        let was_head = self.queue.first() == Some(sequence);
        self.queue.remove(sequence);
        self.exit(mode);
        was_head
    }

    /// Sum of the holders' permits.
    pub(crate) fn permits_held(&self) -> u32 {
        self.permits_held
    }

    /// The capacity that requests for permits must name, if there are any.
    pub(crate) fn capacity(&self) -> Option<u32> {
        (self.permits_requests > 0).then_some(self.capacity)
    }

    /// How many requests for permits there are.
    pub(crate) fn permits_requests(&self) -> u64 {
        self.permits_requests
    }

    fn add_holder(&mut self, sequence: Sequence, mode: Mode) {
        self.holders.push(sequence);
        if let Mode::Permits { permits, .. } = mode {
            self.permits_held += permits;
        }
    }

    fn enter(&mut self, mode: Mode) {
        if let Mode::Permits { capacity, .. } = mode {
            self.capacity = capacity;
            self.permits_requests += 1;
        }
    }

    fn exit(&mut self, mode: Mode) {
        if let Mode::Permits { .. } = mode {
            self.permits_requests -= 1;
            if self.permits_requests == 0 {
                self.capacity = 0;
            }
        }
    }
}
