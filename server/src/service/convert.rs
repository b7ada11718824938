//! Wire messages to the lock table's types and back. Wire types stop here, and only here do the unary calls'
//! `resource_id` and `client_id` become name and owner.
//!
//! What comes in is checked for its shape: text, bounds that hold in every cluster, contradictions. The cluster's own
//! limits are checked when the command is applied, because only there are they the same on all nodes.

use std::collections::BTreeMap;

use lock_table::{
    Command, Contention, ContentionKind, Event as TableEvent, HolderView, How, LockView, Metadata, Mode,
    Name, NameList, Outcome, Owner, Rejection, RenewalNumber, RequestId, Secret, SessionId, SessionView,
    Ticket, Token, Ttl, Wait,
};
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::ticket_outcome::Outcome as WireOutcome;
use raftlock_proto::v1::{self, acquire, contention, finished};

use super::status;

/// The longest TTL that anybody may ask for; the cluster's limit may be lower.
const TTL_MS_CEILING: i64 = 24 * 3600 * 1000;

/// The shortest.
const TTL_MS_FLOOR: i64 = 1000;

/// The longest unary wait.
const WAIT_MS_CEILING: i64 = 600_000;

/// Bytes of metadata, keys and values together.
const METADATA_BYTES_MAX: usize = 4096;

/// Locks in one request.
const NAMES_MAX: usize = 64;

/// A field that is wrong whatever the state of the cluster.
pub type Checked<T> = Result<T, Rejection>;

fn invalid(field: &'static str, problem: impl Into<String>) -> Rejection {
    Rejection::InvalidArgument { field, problem: problem.into() }
}

/// Says the wire's name of a field where the table's own differs.
fn renamed<T>(checked: Checked<T>, field: &'static str) -> Checked<T> {
    checked.map_err(|rejection| match rejection {
        Rejection::InvalidArgument { problem, .. } => Rejection::InvalidArgument { field, problem },
        other => other,
    })
}

// ------------------------------------------------------------------------------------------------ unary calls

pub fn lock_command(request: v1::LockRequest, default_ttl: Ttl) -> Checked<Command> {
    if !(0..=WAIT_MS_CEILING).contains(&request.wait_ms) {
        return Err(invalid("wait_ms", format!("must be 0 to {WAIT_MS_CEILING} (10 minutes)")));
    }
    Ok(Command::UnaryLock {
        owner: renamed(Owner::new(&request.client_id), "client_id")?,
        name: renamed(Name::new(&request.resource_id), "resource_id")?,
        request_id: request_id(&request.request_id)?,
        ttl: ttl(request.ttl_seconds, request.ttl_ms, default_ttl)?,
        wait_ms: request.wait_ms as u64,
        mode: mode(request.mode, request.permits, request.capacity)?,
        metadata: metadata(request.metadata)?,
    })
}

pub fn unlock_command(request: v1::UnlockRequest) -> Checked<Command> {
    Ok(Command::UnaryUnlock {
        owner: renamed(Owner::new(&request.client_id), "client_id")?,
        name: renamed(Name::new(&request.resource_id), "resource_id")?,
        request_id: request_id(&request.request_id)?,
        token: token(request.fencing_token),
    })
}

pub fn renew_command(request: v1::RenewRequest, default_ttl: Ttl) -> Checked<Command> {
    Ok(Command::UnaryRenew {
        owner: renamed(Owner::new(&request.client_id), "client_id")?,
        name: renamed(Name::new(&request.resource_id), "resource_id")?,
        token: token(request.fencing_token),
        ttl: ttl(request.ttl_seconds, request.ttl_ms, default_ttl)?,
    })
}

/// The name in a GetLock.
pub fn get_name(request: &v1::GetLockRequest) -> Checked<Name> {
    renamed(Name::new(&request.resource_id), "resource_id")
}

fn request_id(text: &str) -> Checked<Option<RequestId>> {
    if text.is_empty() { Ok(None) } else { RequestId::new(text).map(Some) }
}

fn token(token: u64) -> Option<Token> {
    (token != 0).then(|| Token::new(token))
}

fn ttl(seconds: i64, ms: i64, default: Ttl) -> Checked<Ttl> {
    let (field, ms) = match (seconds, ms) {
        (0, 0) => return Ok(default),
        (0, ms) => ("ttl_ms", ms),
        (seconds, 0) => ("ttl_seconds", seconds.saturating_mul(1000)),
        _ => return Err(invalid("ttl_ms", "set either ttl_seconds or ttl_ms, not both")),
    };
    if !(TTL_MS_FLOOR..=TTL_MS_CEILING).contains(&ms) {
        return Err(invalid(field, "must be at least 1 second and at most 24 hours"));
    }
    Ok(Ttl::new(ms as u64))
}

fn mode(mode: i32, permits: u32, capacity: u32) -> Checked<Mode> {
    match v1::Mode::try_from(mode) {
        Ok(v1::Mode::Permits) if permits == 0 || permits > capacity => {
            Err(invalid("permits", format!("must be 1 to the capacity, which is {capacity}")))
        }
        Ok(v1::Mode::Permits) => Ok(Mode::Permits { permits, capacity }),
        Ok(_) if permits != 0 || capacity != 0 => Err(invalid("permits", "go with MODE_PERMITS only")),
        Ok(v1::Mode::Shared) => Ok(Mode::Shared),
        Ok(v1::Mode::Exclusive) => Ok(Mode::Exclusive),
        Err(_) => Err(invalid("mode", "is none that this server knows")),
    }
}

fn metadata(entries: BTreeMap<String, String>) -> Checked<Metadata> {
    let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > METADATA_BYTES_MAX {
        return Err(invalid(
            "metadata",
            format!("must be at most {METADATA_BYTES_MAX} bytes, keys and values together"),
        ));
    }
    Ok(Metadata::new(entries))
}

pub fn acquired(token: Token, remaining_ms: u64) -> v1::LockResponse {
    v1::LockResponse {
        success: true,
        message: "Lock acquired".to_owned(),
        fencing_token: token.get(),
        remaining_ms: clamp(remaining_ms),
        ..Default::default()
    }
}

/// Not acquired. `what` says it in words: held, behind an older waiter, waited in vain.
pub fn not_acquired(what: &str, contention: Option<&Contention>) -> v1::LockResponse {
    let Some(contention) = contention else {
        return v1::LockResponse { message: what.to_owned(), ..Default::default() };
    };
    v1::LockResponse {
        success: false,
        message: format!("{what}: {}", in_words(contention)),
        fencing_token: contention.token.map_or(0, Token::get),
        remaining_ms: clamp(contention.remaining_ms),
        holder: contention.owner.to_string(),
        holder_count: contention.holder_count,
        queue_length: contention.queue_length,
    }
}

pub fn in_words(contention: &Contention) -> String {
    match contention.kind {
        ContentionKind::Held => {
            format!("held by {}, for {} ms more", contention.owner, contention.remaining_ms)
        }
        ContentionKind::QueuedBehind => format!("{} waits for it and is served first", contention.owner),
    }
}

pub fn lock_view(name: &Name, view: LockView) -> v1::GetLockResponse {
    let holders = view.holders.into_iter().map(holder).collect();
    let waiters = view.waiters.into_iter().map(|waiter| v1::LockWaiter {
        owner: waiter.owner.to_string(),
        place: waiter.place,
        waiting_ms: clamp(waiter.waiting_ms),
        mode: wire_mode(waiter.mode).0.into(),
    });
    v1::GetLockResponse {
        resource_id: name.to_string(),
        holders,
        waiters: waiters.collect(),
        holder_count: view.holder_count,
        queue_length: view.queue_length,
    }
}

fn holder(holder: HolderView) -> v1::LockHolder {
    let (mode, permits, capacity) = wire_mode(holder.mode);
    v1::LockHolder {
        owner: holder.owner.to_string(),
        fencing_token: holder.token.get(),
        remaining_ms: clamp(holder.remaining_ms),
        mode: mode.into(),
        permits,
        capacity,
        metadata: holder.metadata.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    }
}

pub fn lock_summary(summary: lock_table::LockSummary) -> v1::LockSummary {
    let held = summary.holder;
    v1::LockSummary {
        resource_id: summary.name.to_string(),
        owner: held.as_ref().map(|held| held.owner.to_string()).unwrap_or_default(),
        fencing_token: held.as_ref().map_or(0, |held| held.token.get()),
        remaining_ms: held.as_ref().map_or(0, |held| clamp(held.remaining_ms)),
        mode: wire_mode(summary.mode).0.into(),
        holder_count: summary.holder_count,
        queue_length: summary.queue_length,
    }
}

fn wire_mode(mode: Mode) -> (v1::Mode, u32, u32) {
    match mode {
        Mode::Exclusive => (v1::Mode::Exclusive, 0, 0),
        Mode::Shared => (v1::Mode::Shared, 0, 0),
        Mode::Permits { permits, capacity } => (v1::Mode::Permits, permits, capacity),
    }
}

fn clamp(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

// --------------------------------------------------------------------------------------------- session stream

pub fn open_command(open: &v1::OpenSession) -> Checked<Command> {
    let secret = secret(&open.secret)?;
    Ok(Command::Open {
        secret,
        owner: Owner::new(&open.owner)?,
        ttl: session_ttl(open.ttl_ms)?,
        number: RenewalNumber::new(open.number),
    })
}

pub fn secret(bytes: &[u8]) -> Checked<Secret> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| invalid("secret", "must be 16 bytes"))?;
    Ok(Secret::new(bytes))
}

/// On a stream there is no default: a client knows how long its lease is.
pub fn session_ttl(ttl_ms: u64) -> Checked<Ttl> {
    if !(TTL_MS_FLOOR as u64..=TTL_MS_CEILING as u64).contains(&ttl_ms) {
        return Err(invalid("ttl_ms", "must be at least 1 second and at most 24 hours"));
    }
    Ok(Ttl::new(ttl_ms))
}

pub fn acquire_command(acquire: v1::Acquire) -> Checked<Command> {
    if acquire.names.is_empty() || acquire.names.len() > NAMES_MAX {
        return Err(invalid("names", format!("must be 1 to {NAMES_MAX}")));
    }
    let names: NameList = acquire.names.iter().map(|name| Name::new(name)).collect::<Checked<_>>()?;
    let wait = match acquire.wait {
        None | Some(acquire::Wait::WaitForever(false)) | Some(acquire::Wait::WaitMs(0)) => Wait::None,
        Some(acquire::Wait::WaitMs(ms)) => Wait::Ms(ms),
        Some(acquire::Wait::WaitForever(true)) => Wait::Forever,
    };
    Ok(Command::Acquire {
        session: SessionId::new(acquire.session),
        ticket: Ticket::new(acquire.ticket),
        names,
        mode: mode(acquire.mode, acquire.permits, acquire.capacity)?,
        wait,
        metadata: metadata(acquire.metadata)?,
        acked: Ticket::new(acquire.acked),
    })
}

pub fn cancel_command(cancel: &v1::Cancel) -> Command {
    Command::Cancel {
        session: SessionId::new(cancel.session),
        ticket: Ticket::new(cancel.ticket),
        acked: Ticket::new(cancel.acked),
    }
}

pub fn release_command(release: &v1::Release) -> Command {
    Command::Release {
        session: SessionId::new(release.session),
        ticket: Ticket::new(release.ticket),
        token: Token::new(release.token),
        acked: Ticket::new(release.acked),
    }
}

pub fn opened(key: u64, session: SessionId, number: RenewalNumber) -> Event {
    Event::Opened(v1::SessionOpened { key, session: session.get(), number: number.get() })
}

pub fn open_refused(key: u64, outcome: &Outcome) -> Event {
    let error = match outcome {
        Outcome::Rejected(rejection) => op_error(rejection),
        other => v1::OpError {
            reason: "INTERNAL".to_owned(),
            message: format!("an open was answered with {other:?}"),
            retry_after_ms: 0,
        },
    };
    open_error(key, error)
}

/// An open that was not taken, or not executed.
pub fn open_error(key: u64, error: v1::OpError) -> Event {
    Event::Error(v1::SessionError { key, session: 0, error: Some(error) })
}

pub fn renewal_refused(session: SessionId, rejection: &Rejection) -> Event {
    Event::Error(v1::SessionError { key: 0, session: session.get(), error: Some(op_error(rejection)) })
}

pub fn op_error(rejection: &Rejection) -> v1::OpError {
    v1::OpError {
        reason: status::reason(rejection).to_owned(),
        message: rejection.to_string(),
        retry_after_ms: 0,
    }
}

/// An operation of a session that was not taken, or not executed.
pub fn ticket_error(session: u64, ticket: u64, error: v1::OpError) -> Event {
    ticket_event_of(session, ticket, WireOutcome::Error(error))
}

fn ticket_event_of(session: u64, ticket: u64, outcome: WireOutcome) -> Event {
    Event::Outcome(v1::TicketOutcome { session, ticket, outcome: Some(outcome) })
}

/// The outcome of an acquire, a cancel or a release.
pub fn ticket_outcome(session: SessionId, ticket: u64, outcome: Outcome) -> Event {
    let wire = match outcome {
        Outcome::Granted { token, .. } => WireOutcome::Granted(v1::Granted { token: token.get() }),
        Outcome::Queued { place, .. } => WireOutcome::Queued(v1::Queued { place }),
        Outcome::Refused { contention, .. } => WireOutcome::Refused(wire_contention(&contention, 0)),
        Outcome::Finished { how, .. } => WireOutcome::Finished(v1::Finished { how: wire_how(how).into() }),
        Outcome::NotHolder { holder, .. } => {
            let (owner, token) =
                holder.map(|(owner, token)| (owner.to_string(), token.get())).unwrap_or_default();
            WireOutcome::NotHolder(v1::NotHolder { owner, token })
        }
        Outcome::Rejected(rejection) => WireOutcome::Error(op_error(&rejection)),
        other => WireOutcome::Error(v1::OpError {
            reason: "INTERNAL".to_owned(),
            message: format!("a session's operation was answered with {other:?}"),
            retry_after_ms: 0,
        }),
    };
    ticket_event_of(session.get(), ticket, wire)
}

/// A push: granted after a wait, or the wait is over.
pub fn ticket_event(event: &TableEvent) -> Event {
    match event {
        TableEvent::WaitEnded { session, ticket, place, contention } => {
            let contention = contention.as_ref().map(|what| wire_contention(what, *place));
            let contention = contention.unwrap_or(v1::Contention { place: *place, ..Default::default() });
            ticket_event_of(session.get(), ticket.get(), WireOutcome::WaitEnded(contention))
        }
        TableEvent::Granted { session, ticket, token, .. } => {
            let granted = WireOutcome::Granted(v1::Granted { token: token.get() });
            ticket_event_of(session.get(), ticket.get(), granted)
        }
        other => unreachable!("only grants and ends of waits are pushed to a ticket, not {other:?}"),
    }
}

fn wire_contention(what: &Contention, place: u32) -> v1::Contention {
    let kind = match what.kind {
        ContentionKind::Held => contention::Kind::Held,
        ContentionKind::QueuedBehind => contention::Kind::QueuedBehind,
    };
    v1::Contention {
        kind: kind.into(),
        name: what.name.to_string(),
        owner: what.owner.to_string(),
        token: what.token.map_or(0, Token::get),
        remaining_ms: what.remaining_ms,
        holder_count: what.holder_count,
        queue_length: what.queue_length,
        place,
    }
}

fn wire_how(how: How) -> finished::How {
    match how {
        How::Released => finished::How::Released,
        How::Cancelled => finished::How::Cancelled,
        How::WaitEnded => finished::How::WaitEnded,
        How::Refused => finished::How::Refused,
        How::Forgotten => finished::How::Forgotten,
    }
}

/// Tickets in one part of a resume's answer: at most 25 KB, a tenth of the bound of a message.
const RESUMED_PART: usize = 1_024;

/// What a session had when it was resumed, in parts that are made as they are sent: a session with a million locks has
/// many times more to say than may wait for a client.
#[derive(Debug)]
pub struct Resumed {
    key: u64,
    session: SessionId,
    view: SessionView,
    /// Tickets told so far: of the held ones, then the queued, then the finished.
    told: usize,
    over: bool,
}

impl Resumed {
    /// The answer to the resume that the client named `key`.
    pub fn new(key: u64, session: SessionId, view: SessionView) -> Self {
        Resumed { key, session, view, told: 0, over: false }
    }

    /// Whose.
    pub fn session(&self) -> SessionId {
        self.session
    }
}

impl Iterator for Resumed {
    type Item = Event;

    /// At least one part, even of a session that has nothing.
    fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let SessionView { held, queued, finished, acked, number } = &self.view;
        let total = held.len() + queued.len() + finished.len();
        let end = total.min(self.told + RESUMED_PART);
        let mut part = v1::SessionResumed {
            key: self.key,
            session: self.session.get(),
            acked: acked.get(),
            number: number.get(),
            more: end < total,
            ..Default::default()
        };
        for at in self.told..end {
            if let Some((ticket, token)) = held.get(at) {
                part.held.push(v1::HeldTicket { ticket: ticket.get(), token: token.get() });
            } else if let Some((ticket, place)) = queued.get(at - held.len()) {
                part.queued.push(v1::QueuedTicket { ticket: ticket.get(), place: *place });
            } else {
                part.finished.push(finished[at - held.len() - queued.len()].get());
            }
        }
        self.told = end;
        self.over = end == total;
        Some(Event::Resumed(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ticket_is_told_once_over_all_parts() {
        let ticket = |at: usize| Ticket::new(at as u64);
        let (held, queued) = (RESUMED_PART + 10, RESUMED_PART);
        let view = SessionView {
            held: (0..held).map(|at| (ticket(at), Token::new(at as u64 + 7))).collect(),
            queued: (held..held + queued).map(|at| (ticket(at), 3)).collect(),
            finished: vec![ticket(held + queued)],
            acked: ticket(5),
            number: RenewalNumber::new(9),
        };
        let (mut tickets, mut more) = (Vec::new(), Vec::new());
        for event in Resumed::new(1, SessionId::new(2), view) {
            let Event::Resumed(part) = event else { panic!("{event:?}") };
            assert_eq!((part.key, part.session, part.acked, part.number), (1, 2, 5, 9));
            tickets.extend(part.held.iter().map(|held| {
                assert_eq!(held.token, held.ticket + 7);
                held.ticket
            }));
            tickets.extend(part.queued.iter().map(|queued| queued.ticket));
            tickets.extend(&part.finished);
            more.push(part.more);
        }
        assert!(tickets.iter().copied().eq(0..(held + queued) as u64 + 1));
        assert_eq!(more, [true, true, false]);
    }

    #[test]
    fn a_session_without_tickets_is_answered_too() {
        let view = SessionView {
            held: Vec::new(),
            queued: Vec::new(),
            finished: Vec::new(),
            acked: Ticket::new(0),
            number: RenewalNumber::new(0),
        };
        assert_eq!(Resumed::new(1, SessionId::new(2), view).count(), 1);
    }
}
