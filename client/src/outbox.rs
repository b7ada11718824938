//! What waits to be sent on one stream, and how it is packed into messages.
//!
//! Pure: the stream says when it takes a message.

use std::collections::VecDeque;

use prost::Message;
use raftlock_proto::{SESSION_REQUEST_BYTES_MAX, v1};

use crate::wire::Op;

/// Operations in the order in which they leave. Opens, resumes and renewals go before the rest: a lease must not wait behind
/// a burst of acquires. Bounded by what the sessions have open, because each ticket has at most one operation here.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    urgent: VecDeque<v1::SessionOp>,
    ordinary: VecDeque<v1::SessionOp>,
}

impl Outbox {
    pub(crate) fn push(&mut self, op: Op) {
        let queue = match &op {
            Op::Open { .. } | Op::Resume { .. } | Op::Renew { .. } => &mut self.urgent,
            Op::Acquire { .. } | Op::Cancel { .. } | Op::Release { .. } | Op::Close { .. } => {
                &mut self.ordinary
            }
        };
        queue.push_back(op.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.ordinary.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.urgent.clear();
        self.ordinary.clear();
    }

    /// The next message: as many operations, in order, as fit into its limit. One always fits; the bounds of names
    /// and metadata see to that.
    pub(crate) fn message(&mut self) -> Option<v1::SessionRequest> {
        let mut ops = Vec::new();
        let mut bytes = 0;
        while let Some(op) = self.urgent.front().or(self.ordinary.front()) {
            let length = op.encoded_len();
            // Tag and length prefix of the repeated field.
            bytes += 1 + prost::length_delimiter_len(length) + length;
            if bytes > SESSION_REQUEST_BYTES_MAX && !ops.is_empty() {
                break;
            }
            ops.extend(self.urgent.pop_front().or_else(|| self.ordinary.pop_front()));
        }
        (!ops.is_empty()).then_some(v1::SessionRequest { ops })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::info::Mode;
    use crate::lease::Number;
    use crate::limits;
    use crate::wire::{Ask, SessionId, Ticket, Wait};

    fn acquire_of(ticket: u64, names: usize, name_bytes: usize) -> Op {
        let names = (0..names).map(|i| format!("{i:0name_bytes$}")).collect();
        let ask = Ask { names, ..Ask::default() };
        Op::Acquire {
            session: SessionId(1),
            ticket: Ticket(ticket),
            ask: Arc::new(ask),
            wait: Wait::Forever,
            acked: Ticket(1),
        }
    }

    #[test]
    fn no_message_exceeds_its_limit_and_no_operation_is_left_behind() {
        let mut outbox = Outbox::default();
        for ticket in 1..=2_000 {
            outbox.push(acquire_of(ticket, 1 + (ticket as usize % 7), 40 + (ticket as usize % 400)));
        }
        let (mut messages, mut tickets) = (0, Vec::new());
        while let Some(message) = outbox.message() {
            assert!(message.encoded_len() <= SESSION_REQUEST_BYTES_MAX, "{}", message.encoded_len());
            messages += 1;
            for op in message.ops {
                match op.op {
                    Some(v1::session_op::Op::Acquire(m)) => tickets.push(m.ticket),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(tickets, (1..=2_000).collect::<Vec<_>>());
        assert!((10..100).contains(&messages), "{messages} messages");
    }

    #[test]
    fn the_largest_operation_fits_into_one_message() {
        let mut ask = Ask {
            names: (0..limits::NAMES_MAX).map(|i| format!("{i:0512}")).collect(),
            mode: Mode::Permits { permits: u32::MAX, capacity: u32::MAX },
            ..Ask::default()
        };
        // One-byte keys and empty values cost the most beyond their own bytes.
        ask.metadata =
            (0..limits::METADATA_BYTES_MAX / 2).map(|i| (format!("{i:02}"), String::new())).collect();
        let ticket = Ticket(u64::MAX);
        let session = SessionId(u64::MAX);
        let wait = Wait::AtMost(Duration::MAX);
        let mut outbox = Outbox::default();
        outbox.push(Op::Acquire { session, ticket, ask: Arc::new(ask), wait, acked: ticket });
        assert!(outbox.message().unwrap().encoded_len() <= SESSION_REQUEST_BYTES_MAX);
    }

    #[test]
    fn renewals_overtake_a_burst() {
        let mut outbox = Outbox::default();
        for ticket in 1..=5_000 {
            outbox.push(acquire_of(ticket, 1, 100));
        }
        outbox.push(Op::Renew { sessions: vec![SessionId(1)], number: Number(2), ttl: None });
        let first = outbox.message().unwrap();
        assert!(matches!(first.ops[0].op, Some(v1::session_op::Op::Renew(_))));
        assert!(!outbox.is_empty());
    }
}
