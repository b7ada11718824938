//! What a session of a stream asks for, ticket by ticket: acquire, cancel, release.
//!
//! Everything may come twice or late. A ticket is executed at most once: a repeat finds what became
//! of it, or, below the acknowledged ones, that it is over. A refused command leaves no trace but
//! the acknowledgement it carried.

use crate::outcome::{Event, How, Outcome, Output, Rejection};
use crate::planted;
use crate::requests::Entered;
use crate::session::{Arguments, Ask, Finished, HighestTicket, Kind, State};
use crate::table::LockTable;
use crate::types::{ClusterTime, Sequence, SessionId, Ticket, Token, Wait};

/// What a command needs to know of its session, looked up once.
#[derive(Clone, Copy)]
struct Asker {
    session: SessionId,
    deadline: ClusterTime,
    lock_count: u64,
    highest: HighestTicket,
    acked: Ticket,
}

/// What the table knows of a ticket.
enum Found {
    /// Queued or held.
    Live(Sequence),
    /// Over, and remembered.
    Finished(Finished),
    /// Below the acknowledged ones: over, and forgotten.
    Forgotten,
    /// Never seen.
    New,
}

impl LockTable {
    pub(crate) fn acquire(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        acked: Ticket,
        ask: Ask,
        wait: Wait,
    ) -> Result<Outcome, Rejection> {
        // Who is past its deadline gets nothing. Nobody else got its locks yet, but that is a
        // matter of moments.
        let may_ask = |asker: &Asker| asker.deadline > self.header.now || planted::is("grant-to-the-dead");
        let Some(asker) = self.asker(session).filter(may_ask) else {
            return Ok(Outcome::SessionUnknown { session });
        };
        let asker = self.acknowledge(asker, acked);
        let arguments = Arguments::of_ticket(&ask, wait);
        match self.find(asker, ticket) {
            Found::Live(_) if planted::is("no-dedup") => {
                self.acquire_new(asker, ticket, ask, arguments, wait)
            }
            Found::Live(sequence) if self.request(sequence).arguments == arguments => {
                Ok(self.standing(sequence))
            }
            Found::Finished(Finished { how, arguments: before })
                if before.is_none_or(|before| before == arguments) =>
            {
                Ok(Outcome::Finished { session, ticket, how })
            }
            Found::Live(_) | Found::Finished(_) => Err(Rejection::RequestIdReused),
            Found::Forgotten => Ok(Outcome::Finished { session, ticket, how: How::Forgotten }),
            Found::New => self.acquire_new(asker, ticket, ask, arguments, wait),
        }
    }

    fn acquire_new(
        &mut self,
        asker: Asker,
        ticket: Ticket,
        ask: Ask,
        arguments: Arguments,
        wait: Wait,
    ) -> Result<Outcome, Rejection> {
        self.check_window(asker, ticket)?;
        self.check_ask(&ask)?;
        self.check_sequence()?;
        let names = ask.names.as_slice();
        let session = asker.session;
        let now = self.header.now;
        let room = self.check_room(asker.lock_count, names);
        // Most locks are free, and then one look at the lock is enough.
        if let (Ok(token), Ok(())) = (self.next_token(), &room)
            && self.take_free(self.next_sequence(), &ask.names) == Entered::Already
        {
            self.add_request((session, ticket), ask, arguments, State::Held { token }, Entered::Already);
            return Ok(Outcome::Granted { session, ticket, token, remaining_ms: asker.deadline.since(now) });
        }
        let state = match (self.obstacle(names, ask.mode, None), wait) {
            (None, _) => State::Held { token: self.next_token()? },
            (Some(obstacle), Wait::None | Wait::Ms(0)) => {
                let contention = self.contention(&obstacle);
                self.finish(session, ticket, How::Refused, Some(arguments));
                return Ok(Outcome::Refused { session, ticket, contention });
            }
            (Some(_), Wait::Ms(ms)) => State::Queued { since: now, wait_end: Some(now.after(ms)) },
            (Some(_), Wait::Forever) => State::Queued { since: now, wait_end: None },
        };
        if let State::Queued { .. } = state {
            self.check_queues(names)?;
        }
        room?;
        let sequence = self.add_request((session, ticket), ask, arguments, state, Entered::NotYet);
        Ok(self.standing(sequence))
    }

    pub(crate) fn cancel(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        acked: Ticket,
    ) -> Result<Outcome, Rejection> {
        let Some(asker) = self.asker(session) else {
            return Ok(Outcome::SessionUnknown { session });
        };
        let asker = self.acknowledge(asker, acked);
        let how = match self.find(asker, ticket) {
            Found::Live(sequence) => {
                let queued = self.request(sequence).is_queued();
                let how = if queued { How::Cancelled } else { How::Released };
                self.finish_request(sequence, how);
                how
            }
            Found::Finished(finished) => finished.how,
            Found::Forgotten => How::Forgotten,
            Found::New => {
                self.check_window(asker, ticket)?;
                self.finish(session, ticket, How::Cancelled, None);
                How::Cancelled
            }
        };
        Ok(Outcome::Finished { session, ticket, how })
    }

    pub(crate) fn release(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        token: Token,
        acked: Ticket,
    ) -> Outcome {
        let Some(asker) = self.asker(session) else {
            return Outcome::SessionUnknown { session };
        };
        let asker = self.acknowledge(asker, acked);
        let how = match self.find(asker, ticket) {
            Found::Live(sequence)
                if self.request(sequence).token() == Some(token) || planted::is("release-ignores-token") =>
            {
                self.finish_request(sequence, How::Released);
                How::Released
            }
            Found::Live(sequence) => {
                let first = &self.request(sequence).names.as_slice()[0];
                let holder = self.holder_contention(first);
                let holder = holder.and_then(|held| Some((held.owner, held.token?)));
                return Outcome::NotHolder { session, ticket, holder };
            }
            Found::New => {
                return Outcome::NotHolder { session, ticket, holder: None };
            }
            Found::Finished(finished) => finished.how,
            Found::Forgotten => How::Forgotten,
        };
        Outcome::Finished { session, ticket, how }
    }

    /// Ends a wait whose time has come. A unary session ends with it.
    pub(crate) fn end_wait(&mut self, sequence: Sequence, out: &mut Vec<Output>) {
        let request = self.request(sequence);
        let (session, ticket) = (request.session, request.ticket);
        let obstacle = self.obstacle(request.names.as_slice(), request.mode, Some(sequence));
        let contention = obstacle.map(|obstacle| {
            let mut contention = self.contention(&obstacle);
            contention.queue_length = contention.queue_length.saturating_sub(1); // it waits no more
            contention
        });
        let place = self.place(sequence);
        match self.session(session).kind {
            Kind::Stream(_) => self.finish_request(sequence, How::WaitEnded),
            Kind::Unary { .. } => self.remove_unary(session),
        }
        let event = Event::WaitEnded { session, ticket, place, contention };
        out.push(Output::Event(event));
    }

    /// Where a request stands: granted or queued.
    pub(crate) fn standing(&self, sequence: Sequence) -> Outcome {
        let request = self.request(sequence);
        let (session, ticket) = (request.session, request.ticket);
        match request.state {
            State::Held { token } => {
                let remaining_ms = self.remaining_ms(session);
                Outcome::Granted { session, ticket, token, remaining_ms }
            }
            State::Queued { .. } => Outcome::Queued { session, ticket, place: self.place(sequence) },
        }
    }

    /// `None` if no stream has such a session.
    fn asker(&self, session: SessionId) -> Option<Asker> {
        let record = self.sessions.get(session)?;
        let Kind::Stream(stream) = &record.kind else { return None };
        let (deadline, lock_count) = (record.deadline, record.lock_count);
        Some(Asker { session, deadline, lock_count, highest: record.highest, acked: stream.acked })
    }

    /// Raises the session's acknowledged tickets. What lies below is forgotten bit by bit, and by
    /// [`find`](Self::find) at once.
    fn acknowledge(&mut self, asker: Asker, acked: Ticket) -> Asker {
        if acked <= asker.acked {
            return asker;
        }
        let Kind::Stream(stream) = &mut self.session_mut(asker.session).kind else {
            unreachable!("who asks has a stream")
        };
        stream.acked = acked;
        self.work.forgetting = Some(asker.session);
        Asker { acked, ..asker }
    }

    fn find(&self, asker: Asker, ticket: Ticket) -> Found {
        let session = asker.session;
        let is_new = asker.highest.is_below(ticket);
        if !is_new && let Some(sequence) = self.live.get(session, ticket) {
            return Found::Live(sequence);
        }
        if ticket < asker.acked {
            return Found::Forgotten;
        }
        let finished = if is_new { None } else { self.finished.get((session, ticket)) };
        finished.map_or(Found::New, |finished| Found::Finished(*finished))
    }

    fn check_window(&self, asker: Asker, ticket: Ticket) -> Result<(), Rejection> {
        let window = self.limits().ticket_window;
        match ticket.get().saturating_sub(asker.acked.get()) < window {
            true => Ok(()),
            false => Err(Rejection::TicketGap { window }),
        }
    }

    /// Ends a request of a stream.
    fn finish_request(&mut self, sequence: Sequence, how: How) {
        let request = self.remove_request(sequence);
        self.finish(request.session, request.ticket, how, Some(request.arguments));
    }

    /// Remembers how a ticket ended, unless the client has acknowledged it already.
    fn finish(&mut self, session: SessionId, ticket: Ticket, how: How, arguments: Option<Arguments>) {
        if self.stream(session).is_some_and(|stream| ticket >= stream.acked) {
            self.insert_finished((session, ticket), Finished { how, arguments });
        }
    }

    /// Adds a finished ticket and what is derived from it.
    pub(crate) fn insert_finished(&mut self, key: (SessionId, Ticket), finished: Finished) {
        let (session, ticket) = key;
        if self.session(session).highest.is_below(ticket) {
            self.session_mut(session).highest.raise(ticket);
        }
        self.finished.insert(key, finished);
    }
}
