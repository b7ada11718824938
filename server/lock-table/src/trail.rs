//! The trail: a running hash of everything that a table did.
//!
//! Each batch folds in what it said (outcomes and events) and what it left (time, counters, sizes). Two tables that were
//! given the same batches have the same trail, on every machine and whatever the steps; and because each fold is a
//! one-to-one mapping of the trail before, two that differ once differ ever after. So nodes compare one number instead
//! of their tables. It goes into snapshots with the table.
//!
//! It costs a few multiplications for each output, and never a walk over the table. It finds what bugs and broken
//! memory do to a table once it shows in an answer or a size; it is no proof against an attacker.
//!
//! What is folded, and as which number, is part of the rules of a batch: who changes it raises `RULE_VERSION`.

use crate::outcome::{Contention, ContentionKind, EndCause, Event, How, Outcome, Output, Rejection};
use crate::table::LockTable;

/// An odd number without pattern: multiplying by it is one-to-one.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// See the top of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail(pub(crate) u64);

impl Trail {
    fn number(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(29) ^ number).wrapping_mul(FACTOR);
    }

    fn numbers<const N: usize>(&mut self, numbers: [u64; N]) {
        numbers.into_iter().for_each(|number| self.number(number));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        let (eights, rest) = text.as_bytes().as_chunks::<8>();
        eights.iter().for_each(|eight| self.number(u64::from_le_bytes(*eight)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.number(u64::from_le_bytes(last));
    }

    fn output(&mut self, output: &Output) {
        match output {
            Output::Outcome { command, outcome } => {
                self.numbers([1, *command as u64]);
                self.outcome(outcome);
            }
            Output::Event(event) => {
                self.number(2);
                self.event(event);
            }
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Configured => self.number(1),
            Outcome::AlreadyConfigured => self.number(2),
            Outcome::Opened { session, number } => self.numbers([3, session.get(), number.get()]),
            Outcome::Closed { session } => self.numbers([4, session.get()]),
            Outcome::Granted { session, ticket, token, remaining_ms } => {
                self.numbers([5, session.get(), ticket.get(), token.get(), *remaining_ms]);
            }
            Outcome::Queued { session, ticket, place } => {
                self.numbers([6, session.get(), ticket.get(), u64::from(*place)]);
            }
            Outcome::Refused { session, ticket, contention } => {
                self.numbers([7, session.get(), ticket.get()]);
                self.contention(contention);
            }
            Outcome::Finished { session, ticket, how } => {
                let how = match how {
                    How::Released => 1,
                    How::Cancelled => 2,
                    How::WaitEnded => 3,
                    How::Refused => 4,
                    How::Forgotten => 5,
                };
                self.numbers([8, session.get(), ticket.get(), how]);
            }
            Outcome::NotHolder { session, ticket, holder } => {
                self.numbers([9, session.get(), ticket.get()]);
                match holder {
                    None => self.number(0),
                    Some((owner, token)) => {
                        self.numbers([1, token.get()]);
                        self.text(owner.as_str());
                    }
                }
            }
            Outcome::UnaryRefused { contention } => {
                self.number(10);
                self.contention(contention);
            }
            Outcome::Unlocked { token } => self.numbers([11, token.get()]),
            Outcome::Renewed { token, remaining_ms } => self.numbers([12, token.get(), *remaining_ms]),
            Outcome::UnaryNotHolder { holder } => {
                self.numbers([13, u64::from(holder.is_some())]);
                holder.iter().for_each(|holder| self.contention(holder));
            }
            Outcome::Rejected(rejection) => self.numbers([14, kind_of(rejection)]),
            Outcome::SessionUnknown { session } => self.numbers([15, session.get()]),
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Renewed { session, number } => self.numbers([1, session.get(), number.get()]),
            Event::RenewalUnknown { session } => self.numbers([2, session.get()]),
            Event::RenewalRejected { session, rejection } => {
                self.numbers([3, session.get(), kind_of(rejection)]);
            }
            Event::Granted { session, ticket, token, remaining_ms } => {
                self.numbers([4, session.get(), ticket.get(), token.get(), *remaining_ms]);
            }
            Event::WaitEnded { session, ticket, place, contention } => {
                let is_some = u64::from(contention.is_some());
                self.numbers([5, session.get(), ticket.get(), u64::from(*place), is_some]);
                contention.iter().for_each(|contention| self.contention(contention));
            }
            Event::SessionEnded { session, cause } => {
                let cause = match cause {
                    EndCause::Expired => 1,
                    EndCause::Closed => 2,
                };
                self.numbers([6, session.get(), cause]);
            }
        }
    }

    fn contention(&mut self, contention: &Contention) {
        let Contention { kind, name, owner, token, remaining_ms, holder_count, queue_length } = contention;
        let kind = match kind {
            ContentionKind::Held => 1,
            ContentionKind::QueuedBehind => 2,
        };
        self.text(name.as_str());
        self.text(owner.as_str());
        self.numbers([kind, token.map_or(0, |token| token.get()), *remaining_ms]);
        self.numbers([u64::from(*holder_count), u64::from(*queue_length)]);
    }
}

/// The words of a rejection may be improved by any version; its kind is what was decided.
fn kind_of(rejection: &Rejection) -> u64 {
    match rejection {
        Rejection::InvalidArgument { .. } => 1,
        Rejection::RequestIdReused => 2,
        Rejection::TicketGap { .. } => 3,
        Rejection::CapacityMismatch { .. } => 4,
        Rejection::QueueFull { .. } => 5,
        Rejection::LimitReached { .. } => 6,
        Rejection::TokenRequired => 7,
        Rejection::NotConfigured => 8,
    }
}

impl LockTable {
    /// A running hash of everything that this table did. Equal on all nodes that applied the same batches.
    pub fn trail(&self) -> u64 {
        self.header.trail.0
    }

    /// Folds in what the caller knows of the batch that was just done: its place in the log, a checksum of its bytes.
    pub fn mark_trail(&mut self, numbers: &[u64]) {
        numbers.iter().for_each(|number| self.header.trail.number(*number));
    }

    /// Folds in what a part of a batch said, and at its end what the batch left.
    pub(crate) fn lengthen_trail(&mut self, said: &[Output], is_done: bool) {
        said.iter().for_each(|output| self.header.trail.output(output));
        if !is_done {
            return;
        }
        let (header, counts) = (&self.header, self.counts());
        let counters = [
            header.now.get(),
            header.token_last.get(),
            header.session_last.get(),
            header.sequence_last.get(),
        ];
        let sizes = [counts.locks, counts.held, counts.sessions, counts.waiters, self.finished.len() as u64];
        self.header.trail.numbers(counters);
        self.header.trail.numbers(sizes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Command, Limits, Metadata, Mode, Name, Owner, Settings, Token, Ttl};

    fn lock(name: &str, owner: &str) -> Command {
        Command::UnaryLock {
            owner: Owner::new(owner).expect("a good owner"),
            name: Name::new(name).expect("a good name"),
            request_id: None,
            ttl: Ttl::new(5_000),
            wait_ms: 0,
            mode: Mode::Exclusive,
            metadata: Metadata::default(),
        }
    }

    fn table() -> LockTable {
        let settings = Settings { limits: Limits::standard(), voters: 3 };
        let mut table = LockTable::new();
        run(&mut table, vec![Command::Configure { settings, token_start: Token::new(9) }], usize::MAX);
        table
    }

    fn run(table: &mut LockTable, commands: Vec<Command>, budget: usize) {
        table.begin(Batch { commands, ..Batch::new(100) }).expect("known rules");
        while !table.step(budget, &mut Vec::new()) {}
    }

    #[test]
    fn it_is_the_same_whatever_the_steps_and_over_a_snapshot() {
        let (mut whole, mut bits) = (table(), table());
        let commands = || vec![lock("a", "ann"), lock("a", "bob"), lock("b", "bob")];
        run(&mut whole, commands(), usize::MAX);
        run(&mut bits, commands(), 1);
        assert_eq!(whole.trail(), bits.trail());
        assert_ne!(whole.trail(), table().trail());

        whole.snapshot_begin().expect("between batches");
        let mut restore = crate::Restore::new();
        while let Some(chunk) = whole.snapshot_step(1) {
            restore.push(&chunk).expect("a good chunk");
        }
        let mut restored = restore.finish().expect("all of it");
        assert_eq!(restored.trail(), whole.trail());
        run(&mut restored, commands(), 2);
        run(&mut whole, commands(), 3);
        assert_eq!(restored.trail(), whole.trail());
    }

    #[test]
    fn what_differed_once_differs_ever_after() {
        let (mut one, mut other) = (table(), table());
        run(&mut one, vec![lock("a", "ann")], usize::MAX);
        run(&mut other, vec![lock("a", "ann"), lock("b", "ann")], usize::MAX);
        for _ in 0..100 {
            assert_ne!(one.trail(), other.trail());
            run(&mut one, vec![lock("c", "eve")], usize::MAX);
            run(&mut other, vec![lock("c", "eve")], usize::MAX);
        }
    }

    #[test]
    fn a_changed_record_shows_when_somebody_asks() {
        let (mut one, mut other) = (table(), table());
        run(&mut one, vec![lock("a", "ann")], usize::MAX);
        run(&mut other, vec![lock("a", "amy")], usize::MAX);
        assert_eq!(one.trail(), other.trail(), "the same answer, so that the caller marks what was asked");
        run(&mut one, vec![lock("a", "bob")], usize::MAX);
        run(&mut other, vec![lock("a", "bob")], usize::MAX);
        assert_ne!(one.trail(), other.trail(), "held by another, under another name");

        let (mut one, mut other) = (table(), table());
        one.mark_trail(&[1, 2]);
        other.mark_trail(&[1, 3]);
        assert_ne!(one.trail(), other.trail());
    }
}
