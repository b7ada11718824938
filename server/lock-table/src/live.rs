//! Which requests are queued or held, by session and ticket.
//!
//! Each session has its own, because what a session asks for next belongs beside what it asked for last: with one map
//! over all, a million locks of a thousand sessions mean some ten cache misses to enter another one.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::types::{Sequence, SessionId, Ticket};

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Live(BTreeMap<SessionId, Tickets>);

/// Of one session. One ticket, which is what a unary call and many a worker have, needs no memory of its own.
#[derive(Debug, PartialEq)]
enum Tickets {
    One(Ticket, Sequence),
    /// At least two.
    Many(BTreeMap<Ticket, Sequence>),
}

impl Live {
    pub(crate) fn get(&self, session: SessionId, ticket: Ticket) -> Option<Sequence> {
        self.0.get(&session)?.get(ticket)
    }

    /// Enters a ticket that is not in yet.
    pub(crate) fn insert(&mut self, session: SessionId, ticket: Ticket, sequence: Sequence) {
        match self.0.get_mut(&session) {
            Some(tickets) => tickets.insert(ticket, sequence),
            None => {
                self.0.insert(session, Tickets::One(ticket, sequence));
            }
        }
    }

    pub(crate) fn remove(&mut self, session: SessionId, ticket: Ticket) {
        if let Some(tickets) = self.0.get_mut(&session)
            && tickets.remove(ticket)
        {
            self.0.remove(&session);
        }
    }

    /// A session's tickets from this one on, in rising order.
    pub(crate) fn from(
        &self,
        session: SessionId,
        ticket: Ticket,
    ) -> impl Iterator<Item = (Ticket, Sequence)> + use<'_> {
        let (one, many) = match self.0.get(&session) {
            None => (None, None),
            Some(Tickets::One(only, sequence)) => (Some((*only, *sequence)), None),
            Some(Tickets::Many(many)) => {
                (None, Some(many.range((Bound::Included(ticket), Bound::Unbounded))))
            }
        };
        let one = one.into_iter().filter(move |(only, _)| *only >= ticket);
        one.chain(many.into_iter().flatten().map(|(ticket, sequence)| (*ticket, *sequence)))
    }

    /// All of a session's tickets, in rising order.
    pub(crate) fn of(&self, session: SessionId) -> impl Iterator<Item = (Ticket, Sequence)> + use<'_> {
        self.from(session, Ticket::default())
    }

    /// How many there are. Looks at every session.
    pub(crate) fn count(&self) -> usize {
        let counts = self.0.values().map(|tickets| match tickets {
            Tickets::One(..) => 1,
            Tickets::Many(many) => many.len(),
        });
        counts.sum()
    }
}

impl Tickets {
    fn get(&self, ticket: Ticket) -> Option<Sequence> {
        match self {
            Self::One(only, sequence) => (*only == ticket).then_some(*sequence),
            Self::Many(many) => many.get(&ticket).copied(),
        }
    }

    fn insert(&mut self, ticket: Ticket, sequence: Sequence) {
        match self {
            Self::One(first, of_first) => {
                *self = Self::Many(BTreeMap::from([(*first, *of_first), (ticket, sequence)]));
            }
            Self::Many(many) => {
                many.insert(ticket, sequence);
            }
        }
    }

    /// Says whether that was the last one, which is then still there.
    fn remove(&mut self, ticket: Ticket) -> bool {
        match self {
            Self::One(only, _) => *only == ticket,
            Self::Many(many) => {
                many.remove(&ticket);
                if let (1, Some((last, sequence))) = (many.len(), many.first_key_value()) {
                    *self = Self::One(*last, *sequence);
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn does_what_a_plain_map_does(ops in proptest::collection::vec((any::<bool>(), 1u64..4, 0u64..6), 0..60)) {
            let (mut live, mut plain) = (Live::default(), BTreeMap::new());
            for (at, (enters, session, ticket)) in (1..).zip(ops) {
                let (session, ticket) = (SessionId::new(session), Ticket::new(ticket));
                if !enters {
                    live.remove(session, ticket);
                    plain.remove(&(session, ticket));
                } else if live.get(session, ticket).is_none() {
                    live.insert(session, ticket, Sequence::new(at));
                    plain.insert((session, ticket), Sequence::new(at));
                }
                prop_assert_eq!(live.get(session, ticket), plain.get(&(session, ticket)).copied());
                let above = plain.range((session, ticket)..=(session, Ticket::new(u64::MAX)));
                prop_assert!(live.from(session, ticket).eq(above.map(|(key, sequence)| (key.1, *sequence))));
                prop_assert_eq!(live.count(), plain.len());
                // However it came to be, the same is equal.
                let mut again = Live::default();
                plain.iter().for_each(|(key, sequence)| again.insert(key.0, key.1, *sequence));
                prop_assert!(again == live);
            }
        }
    }
}
