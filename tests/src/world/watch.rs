//! What must hold of the log and of every node, looked at while it happens.
//!
//! - An index has one content, whoever applies it, however often, and whatever crashed in between: what was committed
//!   is never lost and never changed. (Raft: leader completeness, state machine safety.)
//! - Terms do not fall along the log.
//! - After the same entry every table has the same running hash, restarts and snapshots included.
//! - A node applies in order, without holes.
//! - Cluster time never runs faster than real time, and each entry adds to it what it says.
//! - A lease ends in its time: not before as much cluster time has passed since its last renewal, and not much later; in
//!   real time too, once nothing goes wrong any more.
//! - The log, replayed, gives the grants that the clients saw, and no others to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lock_table::{Batch, Command, EndCause, Event, LockTable, Mode, Outcome, Output};
use raftlock_server::clock::DT_MAX;
use raftlock_server::node::{Applied, Witness};

use super::lock;
use super::run::Trace;
use crate::history::Timelines;
use crate::tally::Tally;

/// For how long cluster time may stand in the calm: nodes that start after the last fault, elections, a leader that is
/// replaced.
const STANDS_MAX: Duration = Duration::from_secs(10);

/// What every node has applied, and the first thing that was wrong with it.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    log: BTreeMap<u64, Entry>,
    /// The last index that each host has applied in this life.
    applied: BTreeMap<&'static str, u64>,
    trace: Trace,
    /// How fast the slowest and the fastest node's clocks of the run go.
    rates: (f64, f64),
    installs: u64,
    leaders: u64,
    broken: Option<String>,
}

struct Entry {
    /// When it was first applied.
    at: Duration,
    term: u64,
    leader: u64,
    batch: Option<Vec<u8>>,
    trail: u64,
}

impl Watch {
    pub(crate) fn new(rates: (f64, f64), trace: Trace) -> Watch {
        Watch(Arc::new(Mutex::new(State { rates, trace, ..State::default() })))
    }

    /// The witness of one life of a node.
    pub(crate) fn of(&self, host: &'static str) -> Arc<dyn Witness> {
        lock(&self.0).applied.remove(host);
        Arc::new(HostWitness { host, watch: self.clone() })
    }

    /// What was wrong first, if anything was.
    pub(crate) fn broken(&self) -> Option<String> {
        lock(&self.0).broken.clone()
    }

    /// What it came to, in counts.
    pub(crate) fn tally(&self) -> Tally {
        let state = lock(&self.0);
        let mut tally = Tally::default();
        tally.add("log entries", state.log.len() as u64);
        tally.add("snapshots installed", state.installs);
        tally.add("leader changes", state.leaders);
        tally
    }

    /// Runs the log through a fresh table: it must come to the same, and gives all its grants. From `calm` on nothing goes
    /// wrong.
    pub(crate) fn replay(&self, calm: Duration) -> Result<Replay, String> {
        let state = lock(&self.0);
        let (rate_min, rate_max) = state.rates;
        let mut replay = Replay { calm, rate_min, ..Replay::default() };
        for (index, entry) in &state.log {
            let Some(bytes) = &entry.batch else { continue };
            let batch = Batch::decode(bytes).map_err(|error| format!("entry {index}: {error}"))?;
            replay.apply(*index, entry.at, bytes, batch)?;
            if replay.table.trail() != entry.trail {
                return Err(format!("entry {index}: replayed, the table has another hash"));
            }
            replay.note_holders(entry.at);
            let (cluster, real) = (replay.table.now().get(), entry.at.mul_f64(rate_max));
            if u128::from(cluster) > real.as_millis() {
                return Err(format!("entry {index}: cluster time {cluster} ms after {real:?}"));
            }
        }
        Ok(replay)
    }
}

/// The log once more, and what it granted.
#[derive(Default)]
pub(crate) struct Replay {
    pub(crate) table: LockTable,
    /// By token: the owner and the names.
    pub(crate) grants: BTreeMap<u64, (String, Vec<String>)>,
    /// Who held what, over time.
    pub(crate) timelines: Timelines,
    /// Tokens that hold something.
    standing: BTreeSet<u64>,
    /// Within the entry at hand: names that were granted, with the token, or asked for in vain.
    within: Vec<(String, Option<u64>)>,
    /// Every name that anybody asked for.
    names: BTreeSet<String>,
    leases: BTreeMap<u64, Lease>,
    calm: Duration,
    rate_min: f64,
    /// Leases that ran out in the calm: without one, the bound in real time was not looked at.
    pub(crate) ended_in_the_calm: u64,
    owners: BTreeMap<u64, String>,
    asked: BTreeMap<(u64, u64), Vec<String>>,
}

struct Lease {
    /// Its last renewal, in cluster time.
    from: u64,
    /// The same, in real time: when that was first applied.
    at: Duration,
    ttl_ms: u64,
}

impl Replay {
    /// Holders as they are after an entry that was first applied at this time, and those that came and went within it.
    fn note_holders(&mut self, at: Duration) {
        for (name, token) in std::mem::take(&mut self.within) {
            match token {
                Some(token) => self.timelines.holds(at, &name, Some(token)),
                None => self.timelines.waits(at, &name, true),
            }
        }
        for name in &self.names {
            let view = self.table.get(name, 1);
            let exclusive = view.holders.iter().find(|holder| holder.mode == Mode::Exclusive);
            self.timelines.holds(at, name, exclusive.map(|holder| holder.token.get()));
            self.timelines.waits(at, name, view.queue_length > 0);
        }
        let table = &self.table;
        let holds = |token: u64, name: &str| {
            table.get(name, usize::MAX).holders.iter().any(|holder| holder.token.get() == token)
        };
        let (grants, timelines) = (&self.grants, &mut self.timelines);
        self.standing.retain(|token| {
            let stands = grants[token].1.iter().any(|name| holds(*token, name));
            if !stands {
                timelines.ends(at, *token);
            }
            stands
        });
    }

    /// H8, and its other side: a lease ends when as much cluster time has passed since its last renewal as it is long,
    /// and at most two ticks later. In the calm that is so in real time, but for the time in which cluster time may stand.
    fn note_leases(
        &mut self,
        at: Duration,
        ended: &[(u64, EndCause)],
        renewed: &[(u64, Option<u64>)],
    ) -> Result<(), String> {
        let now = self.table.now().get();
        for (session, ttl_ms) in renewed {
            if let Some(ttl_ms) = ttl_ms.or_else(|| self.leases.get(session).map(|lease| lease.ttl_ms)) {
                self.leases.insert(*session, Lease { from: now, at, ttl_ms });
            }
        }
        for (session, cause) in ended {
            let Some(Lease { from, at: renewed, ttl_ms }) = self.leases.remove(session) else { continue };
            let (lasted, late) = (now - from, DT_MAX.as_millis() as u64);
            if *cause == EndCause::Expired && !(ttl_ms..=ttl_ms + late).contains(&lasted) {
                return Err(format!(
                    "H8: the lease of session {session:x} of {ttl_ms} ms ended after {lasted} ms"
                ));
            }
            if *cause == EndCause::Expired && at >= self.calm {
                self.ended_in_the_calm += 1;
                let bound = Duration::from_millis(ttl_ms + late).div_f64(self.rate_min);
                // Of a lease of the chaos, the time since counts: before it, cluster time may have stood for long.
                let lasted = at - renewed.max(self.calm);
                if lasted > bound + STANDS_MAX {
                    return Err(format!(
                        "H8: in the calm, the lease of {session:x} of {ttl_ms} ms lasted {lasted:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, index: u64, at: Duration, bytes: &[u8], batch: Batch) -> Result<(), String> {
        let commands = batch.commands.clone();
        let lengths: BTreeMap<u64, Option<u64>> = batch
            .renewals
            .iter()
            .map(|renewal| (renewal.session.get(), renewal.ttl.map(|ttl| ttl.get())))
            .collect();
        let (before, dt) = (self.table.now(), if batch.renewals_complete { batch.dt_ms } else { 0 });
        self.table.begin(batch).map_err(|error| format!("entry {index}: {error}"))?;
        let mut outputs = Vec::new();
        while !self.table.step(usize::MAX, &mut outputs) {}
        if self.table.now().get() != before.get() + dt {
            return Err(format!(
                "entry {index}: cluster time {before:?} and {dt} ms give {:?}",
                self.table.now()
            ));
        }
        self.table.mark_trail(&[index, crc32c::crc32c(bytes).into()]);
        self.table.check().map_err(|broken| format!("entry {index}: {broken}"))?;
        let (mut ended, mut renewed) = (Vec::new(), Vec::new());
        for output in outputs {
            match output {
                Output::Outcome { command, outcome } => {
                    if let (Command::Open { ttl, .. }, Outcome::Opened { session, .. }) =
                        (&commands[command], &outcome)
                    {
                        renewed.push((session.get(), Some(ttl.get())));
                    }
                    self.outcome(&commands[command], &outcome)?;
                }
                Output::Event(Event::Granted { session, ticket, token, .. }) => {
                    self.grant(session.get(), ticket.get(), token.get())?;
                }
                Output::Event(Event::Renewed { session, .. }) => {
                    renewed.push((session.get(), lengths.get(&session.get()).copied().flatten()));
                }
                Output::Event(Event::SessionEnded { session, cause }) => ended.push((session.get(), cause)),
                Output::Event(_) => {}
            }
        }
        self.note_leases(at, &ended, &renewed).map_err(|broken| format!("entry {index}: {broken}"))
    }

    fn outcome(&mut self, command: &Command, outcome: &Outcome) -> Result<(), String> {
        if let (Command::Open { owner, .. }, Outcome::Opened { session, .. }) = (command, outcome) {
            self.owners.insert(session.get(), owner.as_str().to_owned());
        }
        if let Command::Acquire { session, ticket, names, .. } = command {
            let names: Vec<String> = names.iter().map(|name| name.as_str().to_owned()).collect();
            self.names.extend(names.iter().cloned());
            self.asked.entry((session.get(), ticket.get())).or_insert(names);
        }
        match outcome {
            Outcome::Granted { session, ticket, token, .. } => {
                self.grant(session.get(), ticket.get(), token.get())
            }
            Outcome::Queued { session, ticket, .. } => {
                let names = self.asked.get(&(session.get(), ticket.get())).cloned().unwrap_or_default();
                self.within.extend(names.into_iter().map(|name| (name, None)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn grant(&mut self, session: u64, ticket: u64, token: u64) -> Result<(), String> {
        let names = self.asked.get(&(session, ticket)).cloned().unwrap_or_default();
        let grant = (self.owners.get(&session).cloned().unwrap_or_default(), names);
        if !self.grants.contains_key(&token) {
            self.standing.insert(token);
            self.within.extend(grant.1.iter().map(|name| (name.clone(), Some(token))));
        }
        match self.grants.insert(token, grant.clone()) {
            // The same request again: the same answer.
            Some(before) if before != grant => Err(format!("token {token}: to {before:?} and to {grant:?}")),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct HostWitness {
    host: &'static str,
    watch: Watch,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Witness for HostWitness {
    fn applied(&self, entry: &Applied<'_>) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let mut state = lock(&self.watch.0);
        if let Err(broken) = state.applied(self.host, entry, now) {
            state.broken.get_or_insert(broken);
        }
    }

    fn installed(&self, index: u64, trail: u64) {
        let mut state = lock(&self.watch.0);
        state.applied.insert(self.host, index);
        state.installs += 1;
        if state.log.get(&index).is_some_and(|entry| entry.trail != trail) {
            let broken = format!("{} installed a snapshot up to {index} with another hash", self.host);
            state.broken.get_or_insert(broken);
        }
    }
}

impl State {
    fn applied(&mut self, host: &'static str, entry: &Applied<'_>, now: Duration) -> Result<(), String> {
        let Applied { index, term, leader, batch, trail } = *entry;
        if let Some(before) = self.applied.insert(host, index)
            && index != before + 1
        {
            return Err(format!("{host} applied {index} after {before}"));
        }
        if let Some(known) = self.log.get(&index) {
            let same = (known.term, known.leader, known.batch.as_deref()) == (term, leader, batch);
            return match (same, known.trail == trail) {
                (true, true) => Ok(()),
                (true, false) => Err(format!("{host}: another hash of the table after entry {index}")),
                (false, _) => Err(format!("{host}: entry {index} is not what others have applied there")),
            };
        }
        self.first(host, entry, now)
    }

    /// Nobody has applied this entry before.
    fn first(&mut self, host: &str, entry: &Applied<'_>, now: Duration) -> Result<(), String> {
        let Applied { index, term, leader, batch, trail } = *entry;
        let before = self.log.last_key_value().map(|(last, entry)| (*last, entry.term, entry.leader));
        if let Some((last, last_term, last_leader)) = before {
            if index != last + 1 {
                return Err(format!("{host} is the first to apply {index}, after {last}"));
            }
            if term < last_term {
                return Err(format!("entry {index} has term {term}, the one before {last_term}"));
            }
            self.leaders += u64::from((term, leader) != (last_term, last_leader));
        }
        self.trace.line(now, &format!("{host} applies {index} {term} {leader:x} {trail:016x}"));
        self.log.insert(index, Entry { at: now, term, leader, batch: batch.map(<[u8]>::to_vec), trail });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease of a table whose time stands: how it ends, renewed and over at these seconds of real time.
    fn ends(ttl_ms: u64, cause: EndCause, renewed: u64, over: u64) -> Result<(), String> {
        let mut replay = Replay { calm: Duration::from_secs(10), rate_min: 1.0, ..Replay::default() };
        replay.note_leases(Duration::from_secs(renewed), &[], &[(1, Some(ttl_ms))])?;
        replay.note_leases(Duration::from_secs(over), &[(1, cause)], &[])
    }

    #[test]
    fn a_lease_that_ends_early_or_late_is_seen() {
        assert!(ends(1_000, EndCause::Expired, 0, 0).is_err(), "no time has passed");
        assert_eq!(ends(1_000, EndCause::Closed, 0, 0), Ok(()), "it was given back");
        assert_eq!(ends(0, EndCause::Expired, 0, 9), Ok(()), "cluster time stood, as it may in the chaos");
        assert_eq!(ends(0, EndCause::Expired, 20, 30), Ok(()));
        assert!(ends(0, EndCause::Expired, 20, 31).is_err(), "and may not in the calm");
        assert!(ends(0, EndCause::Expired, 0, 21).is_err(), "which begins at 10");
    }
}
