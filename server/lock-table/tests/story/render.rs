//! Outputs of a table in the words of a script.

use std::collections::BTreeMap;

use lock_table::*;

/// More lines than this of one batch are counted instead.
const LINES_MAX: usize = 12;

/// `a: granted token=1`. What is as one would think (the first place, the whole lease) is left out.
pub fn output(
    output: &Output,
    commands: &[String],
    sessions: &BTreeMap<SessionId, String>,
    ttl: &dyn Fn(SessionId) -> Option<u64>,
) -> String {
    let name = |session: &SessionId| sessions.get(session).cloned().unwrap_or(format!("session {session}"));
    let who = |session: &SessionId, ticket: &Ticket| match ticket.get() {
        1 => name(session),
        ticket => format!("{}/{ticket}", name(session)),
    };
    let grant = |session: &SessionId, ticket: &Ticket, token: &Token, remaining_ms: &u64| {
        let left = match ttl(*session) {
            Some(ttl) if ttl == *remaining_ms => String::new(),
            _ => format!(" left={}", seconds(*remaining_ms)),
        };
        format!("{}: granted token={token}{left}", who(session, ticket))
    };
    match output {
        Output::Outcome { command, outcome } => {
            let label = commands.get(*command).map_or("", |label| label.as_str());
            match outcome {
                Outcome::Configured => format!("{label}: configured"),
                Outcome::AlreadyConfigured => format!("{label}: configured before"),
                Outcome::Opened { session, number } => {
                    format!("{label}: opened session={session} number={number}")
                }
                Outcome::Closed { .. } => format!("{label}: closed"),
                Outcome::Granted { session, ticket, token, remaining_ms } => {
                    grant(session, ticket, token, remaining_ms)
                }
                Outcome::Queued { session, ticket, place: 1 } => format!("{}: queued", who(session, ticket)),
                Outcome::Queued { session, ticket, place } => {
                    format!("{}: queued place={place}", who(session, ticket))
                }
                Outcome::Refused { session, ticket, contention: why } => {
                    format!("{}: refused, {}", who(session, ticket), contention(why))
                }
                Outcome::Finished { session, ticket, how } => {
                    format!("{}: finished, {}", who(session, ticket), finished(*how))
                }
                Outcome::NotHolder { session, ticket, holder } => {
                    let holder = match holder {
                        Some((owner, token)) => format!(", {owner} is token={token}"),
                        None => String::new(),
                    };
                    format!("{}: not holder{holder}", who(session, ticket))
                }
                Outcome::UnaryRefused { contention: why } => {
                    format!("{label}: refused, {}", contention(why))
                }
                Outcome::Unlocked { token } => format!("{label}: unlocked token={token}"),
                Outcome::Renewed { token, remaining_ms } => {
                    format!("{label}: renewed token={token} left={}", seconds(*remaining_ms))
                }
                Outcome::UnaryNotHolder { holder: None } => format!("{label}: not holder"),
                Outcome::UnaryNotHolder { holder: Some(holder) } => {
                    format!("{label}: not holder, {}", contention(holder))
                }
                Outcome::Rejected(rejection) => format!("{label}: rejected, {rejection}"),
                Outcome::SessionUnknown { .. } => format!("{label}: session unknown"),
            }
        }
        Output::Event(event) => match event {
            Event::Renewed { session, number } => {
                format!("{}: renewed number={number}", name(session))
            }
            Event::RenewalUnknown { session } => format!("{}: session unknown", name(session)),
            Event::RenewalRejected { session, rejection } => {
                format!("{}: not renewed, {rejection}", name(session))
            }
            Event::Granted { session, ticket, token, remaining_ms } => {
                grant(session, ticket, token, remaining_ms)
            }
            Event::WaitEnded { session, ticket, place, contention: why } => {
                let why = why.as_ref().map_or(String::new(), |why| format!(", {}", contention(why)));
                format!("{}: wait ended at place={place}{why}", who(session, ticket))
            }
            Event::SessionEnded { session, cause: EndCause::Expired } => {
                format!("{}: expired", name(session))
            }
            Event::SessionEnded { session, cause: EndCause::Closed } => {
                format!("{}: session ended", name(session))
            }
        },
    }
}

/// The lines, or how many there are of each kind.
pub fn shortened(lines: Vec<String>) -> Vec<String> {
    if lines.len() <= LINES_MAX {
        return lines;
    }
    let mut counts = BTreeMap::new();
    for line in lines {
        let what = line.split_once(": ").map_or(line.as_str(), |(_, what)| what);
        let kind = what.split_once([' ', ',']).map_or(what, |(kind, _)| kind).to_owned();
        *counts.entry(kind).or_insert(0) += 1;
    }
    counts.into_iter().map(|(kind, count)| format!("{count} times: {kind}")).collect()
}

pub fn lock(view: &LockView) -> Vec<String> {
    let mut lines = vec![format!("{} holders, {} waiting", view.holder_count, view.queue_length)];
    for holder in &view.holders {
        lines.push(format!("- {}{}", held(holder), note(&holder.metadata)));
    }
    for waiter in &view.waiters {
        let waiting = seconds(waiter.waiting_ms);
        lines.push(format!(
            "- {} waits at place={} since {waiting}{}",
            waiter.owner,
            waiter.place,
            mode(waiter.mode)
        ));
    }
    lines
}

pub fn list(locks: &[LockSummary]) -> Vec<String> {
    let line = |lock: &LockSummary| {
        let holder = lock.holder.as_ref().map_or(format!("free{}", mode(lock.mode)), held);
        format!("- {}: {holder}, {} holders, {} waiting", lock.name, lock.holder_count, lock.queue_length)
    };
    if locks.is_empty() { vec!["no locks".to_owned()] } else { locks.iter().map(line).collect() }
}

pub fn resumed(label: &str, view: Option<SessionView>) -> String {
    let Some(view) = view else {
        return format!("{label}: cannot resume");
    };
    let list = |items: Vec<String>| {
        if items.is_empty() { "none".to_owned() } else { items.join(" ") }
    };
    let held = view.held.iter().map(|(ticket, token)| format!("{ticket}:token={token}")).collect();
    let queued = view.queued.iter().map(|(ticket, place)| format!("{ticket}:place={place}")).collect();
    let finished = view.finished.iter().map(ToString::to_string).collect();
    format!(
        "{label}: resumed, held {}, queued {}, finished {}, acked={} number={}",
        list(held),
        list(queued),
        list(finished),
        view.acked,
        view.number
    )
}

pub fn counts(table: &LockTable) -> String {
    let Counts { locks, held, sessions, waiters } = table.counts();
    format!(
        "{locks} locks, {held} held, {sessions} sessions, {waiters} waiting, now={}, token={}{}",
        seconds(table.now().get()),
        table.last_token(),
        if table.more_due() { ", more is due" } else { "" }
    )
}

fn held(holder: &HolderView) -> String {
    let left = seconds(holder.remaining_ms);
    format!("{} token={} left={left}{}", holder.owner, holder.token, mode(holder.mode))
}

fn contention(why: &Contention) -> String {
    let by = match why.kind {
        ContentionKind::Held => format!("{} is held by {}", why.name, why.owner),
        ContentionKind::QueuedBehind => format!("{} is for {} first", why.name, why.owner),
    };
    let token = why.token.map_or(String::new(), |token| format!(" token={token}"));
    let left = seconds(why.remaining_ms);
    format!("{by}{token} left={left}, {} holders, {} waiting", why.holder_count, why.queue_length)
}

fn finished(how: How) -> &'static str {
    match how {
        How::Released => "released",
        How::Cancelled => "cancelled",
        How::WaitEnded => "wait ended",
        How::Refused => "refused",
        How::Forgotten => "forgotten",
    }
}

fn mode(mode: Mode) -> String {
    match mode {
        Mode::Exclusive => String::new(),
        Mode::Shared => " shared".to_owned(),
        Mode::Permits { permits, capacity } => format!(" permits={permits}/{capacity}"),
    }
}

fn note(metadata: &Metadata) -> String {
    metadata.iter().map(|(key, value)| format!(" {key}={value:?}")).collect()
}

fn seconds(ms: u64) -> String {
    match ms % 1000 {
        0 => format!("{}s", ms / 1000),
        _ => format!("{}s", ms as f64 / 1000.0),
    }
}
