//! Who may have a lock: what is in the way of a request, and how that is told.
//!
//! A request is granted when, on every lock it names, it is compatible with the holders and no
//! earlier request waits. So the oldest waiter is blocked by holders only: several locks at once
//! cannot deadlock, and writers do not starve. Nothing here changes the table.

use crate::lock::Lock;
use crate::outcome::{Contention, ContentionKind, Rejection};
use crate::session::{Ask, Request};
use crate::sessions::check_len;
use crate::table::LockTable;
use crate::text::Name;
use crate::types::{Mode, Sequence, Token};

/// How many holders are compared to name the one whose lease ends last. Without a bound, to refuse
/// one request on a widely shared lock would cost as much as the lock has holders.
const HOLDERS_COMPARED: usize = 64;

/// What keeps a request from being granted.
pub(crate) struct Obstacle<'a> {
    kind: ContentionKind,
    name: &'a Name,
    lock: &'a Lock,
}

impl LockTable {
    /// The first of the names on which something keeps a request from being granted. `queued` is
    /// the request itself if it is queued already.
    pub(crate) fn obstacle<'a>(
        &'a self,
        names: &'a [Name],
        mode: Mode,
        queued: Option<Sequence>,
    ) -> Option<Obstacle<'a>> {
        names.iter().find_map(|name| {
            let lock = self.locks.get(name)?;
            let head = lock.queue().first();
            let kind = if !self.is_compatible(lock, mode) {
                ContentionKind::Held
            } else if head.is_some() && head != queued {
                ContentionKind::QueuedBehind
            } else {
                return None;
            };
            Some(Obstacle { kind, name, lock })
        })
    }

    /// Whether the holders leave room for a request of this mode.
    pub(crate) fn is_compatible(&self, lock: &Lock, mode: Mode) -> bool {
        let Some(holder) = lock.first_holder() else {
            return true;
        };
        match (self.request(holder).mode, mode) {
            (Mode::Shared, Mode::Shared) => true,
            (Mode::Permits { permits, capacity }, Mode::Permits { permits: more, capacity: same }) => {
                let held = lock.crowd().map_or(permits, |crowd| crowd.permits_held());
                capacity == same && held.checked_add(more).is_some_and(|sum| sum <= capacity)
            }
            (_, _) => false,
        }
    }

    /// The obstacle as people are told of it.
    pub(crate) fn contention(&self, obstacle: &Obstacle<'_>) -> Contention {
        let Obstacle { kind, name, lock } = obstacle;
        let by = match kind {
            ContentionKind::Held => self.holder_latest(lock).expect("somebody holds what is held"),
            ContentionKind::QueuedBehind => lock.queue().first().expect("somebody waits ahead"),
        };
        self.contention_by(*kind, name, lock, by)
    }

    /// The holder of a lock as people are told of it, if somebody holds it.
    pub(crate) fn holder_contention(&self, name: &Name) -> Option<Contention> {
        let lock = self.locks.get(name)?;
        let holder = self.holder_latest(lock)?;
        Some(self.contention_by(ContentionKind::Held, name, lock, holder))
    }

    /// The holder whose lease ends last among the newest [`HOLDERS_COMPARED`].
    pub(crate) fn holder_latest(&self, lock: &Lock) -> Option<Sequence> {
        let newest = lock.holders().rev().take(HOLDERS_COMPARED);
        newest.max_by_key(|holder| {
            let session = self.sessions.get(self.request(*holder).session);
            session.map(|session| session.deadline)
        })
    }

    fn contention_by(&self, kind: ContentionKind, name: &Name, lock: &Lock, by: Sequence) -> Contention {
        let request = self.request(by);
        Contention {
            kind,
            name: name.clone(),
            owner: self.session(request.session).owner.clone(),
            token: request.token(),
            remaining_ms: self.remaining_ms(request.session),
            holder_count: saturated(lock.holder_count()),
            queue_length: saturated(lock.queue().len()),
        }
    }

    /// The place of a waiter: 1 is the next to be served; of several names the worst.
    pub(crate) fn place(&self, sequence: Sequence) -> u32 {
        let names = self.request(sequence).names.as_slice().iter();
        let ranks = names.filter_map(|name| Some(self.locks.get(name)?.queue().rank(sequence)));
        saturated(ranks.max().unwrap_or(0)).saturating_add(1)
    }

    /// The token that a grant now would get.
    pub(crate) fn next_token(&self) -> Result<Token, Rejection> {
        let used_up = Rejection::LimitReached { what: "tokens", max: u64::MAX };
        self.header.token_last.next().ok_or(used_up)
    }

    /// Checks what a new request may ask for.
    pub(crate) fn check_ask(&self, ask: &Ask) -> Result<(), Rejection> {
        let limits = self.limits();
        let names = ask.names.as_slice();
        if names.len() as u64 > limits.names_per_request_max {
            let problem =
                format!("are {}, at most {} are allowed", names.len(), limits.names_per_request_max);
            return Err(Rejection::invalid("names", problem));
        }
        for name in names {
            check_len("name", name.as_bytes().len() as u64, limits.name_bytes_max)?;
        }
        check_len("metadata", ask.metadata.byte_count(), limits.metadata_bytes_max)?;
        match ask.mode {
            Mode::Exclusive | Mode::Shared => Ok(()),
            Mode::Permits { permits, capacity } if (1..=capacity).contains(&permits) => {
                let mut others = names.iter().filter_map(|name| self.capacity(self.locks.get(name)?));
                match others.find(|have| *have != capacity) {
                    Some(have) => Err(Rejection::CapacityMismatch { have }),
                    None => Ok(()),
                }
            }
            Mode::Permits { permits, capacity } => {
                let problem = format!("are {permits}, must be 1 to the capacity, which is {capacity}");
                Err(Rejection::invalid("permits", problem))
            }
        }
    }

    /// The capacity that requests for permits must name, if others hold permits or wait for them.
    pub(crate) fn capacity(&self, lock: &Lock) -> Option<u32> {
        match lock {
            Lock::Crowd(crowd) => crowd.capacity(),
            Lock::Single(holder) => match self.request(*holder).mode {
                Mode::Permits { capacity, .. } => Some(capacity),
                Mode::Exclusive | Mode::Shared => None,
            },
        }
    }

    /// Checks that there is room for one more request of a session that has `lock_count` names.
    pub(crate) fn check_room(&self, lock_count: u64, names: &[Name]) -> Result<(), Rejection> {
        let limits = self.limits();
        let max = limits.locks_per_session_max;
        if lock_count.saturating_add(names.len() as u64) > max {
            return Err(Rejection::LimitReached { what: "locks per session", max });
        }
        let max = limits.locks_max;
        if (self.locks.len() + names.len()) as u64 <= max {
            return Ok(()); // even if all of them are new
        }
        let new = names.iter().filter(|name| !self.locks.contains_key(*name)).count();
        if new > 0 && (self.locks.len() + new) as u64 > max {
            return Err(Rejection::LimitReached { what: "locks", max });
        }
        Ok(())
    }

    /// Checks that there is room for one more waiter on each name.
    pub(crate) fn check_queues(&self, names: &[Name]) -> Result<(), Rejection> {
        let max = self.limits().waiters_per_lock_max;
        let mut locks = names.iter().filter_map(|name| self.locks.get(name));
        match locks.any(|lock| lock.queue().len() as u64 >= max) {
            true => Err(Rejection::QueueFull { max }),
            false => Ok(()),
        }
    }

    pub(crate) fn request(&self, sequence: Sequence) -> &Request {
        self.requests.get(sequence).expect("locks and tickets name requests that exist")
    }
}

/// For counts that people read.
pub(crate) fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
