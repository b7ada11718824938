//! Changes of the membership, made by the leader alone, one at a time.
//!
//! What an operator asks for and what is due by itself (see [`plan`](super::plan)) go through the same lock. Each
//! change names the office and the membership that it was decided on, so a leader that is none any more, or that
//! looked too early, changes nothing. A change that was left half done is found and finished by whoever leads next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lock_table::{Command, Outcome, Settings};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Liveness;
use super::plan::{Change, Scene, Seen};
use super::roster::Roster;
use crate::clock::Clock;
use crate::config::VOTERS_MAX;
use crate::proposer::Proposer;
use crate::raft::{ChangeError, Member, Office, RaftHandle, Roll};
use crate::streams::{CallAnswer, Caller, Origin};

/// How often the leader looks whether a change is due.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A learner whose log is within this many entries of the leader's …
const NEAR_ENTRIES: u64 = 100;

/// … for this long is caught up: it keeps pace, and a vote of its own would hold nobody up.
const NEAR_FOR: Duration = Duration::from_secs(1);

/// How long an operator's call waits for a learner to catch up, or for its turn, when it names no deadline.
const OPERATOR_WAIT: Duration = Duration::from_secs(60);

/// Members of one cluster at most: every one of them asks every other one whether it is there.
pub const MEMBERS_MAX: usize = 64;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Ask the leader; nothing was done here, or only a part that may be asked for again.
    #[error("this node does not lead")]
    NotLeader,
    /// It may be done, or not. Look, and ask again if not.
    #[error("the outcome is unknown: look at the members, and repeat it if it was not done")]
    Unknown,
    /// There is no such member.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done as things are.
    #[error("{0}")]
    Not(String),
    /// It can never be done.
    #[error("{0}")]
    Invalid(String),
}

impl From<ChangeError> for Refused {
    fn from(error: ChangeError) -> Refused {
        match error {
            ChangeError::NotLeader => Refused::NotLeader,
            ChangeError::Busy => {
                Refused::Not("another membership change is under way; try again in a moment".to_owned())
            }
            ChangeError::Unknown => Refused::Unknown,
        }
    }
}

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Out, for good.
    Remove(String),
    /// A member in the place of another.
    Replace {
        /// Who goes.
        old: String,
        /// Who takes its place.
        new: String,
    },
    /// So many voters.
    Voters(u32),
    /// Another leader: this one, or the most up-to-date.
    Transfer(Option<String>),
}

/// The leader's hand on the membership.
#[derive(Clone)]
pub struct Controller(Arc<Shared>);

struct Shared {
    raft: RaftHandle,
    proposer: Proposer,
    roster: Roster,
    clock: Arc<dyn Clock>,
    remove_dead_after: Option<Duration>,
    election_max: Duration,
    /// Whoever holds it changes the membership.
    turn: tokio::sync::Mutex<()>,
    /// Since when each member's log has been near; of this office only.
    near: Mutex<Near>,
}

#[derive(Default)]
struct Near {
    office: Option<Office>,
    since: BTreeMap<u64, Duration>,
}

impl Controller {
    /// Does nothing by itself until [`Controller::run`].
    pub fn new(
        raft: RaftHandle,
        proposer: Proposer,
        roster: Roster,
        clock: Arc<dyn Clock>,
        remove_dead_after: Option<Duration>,
        election_max: Duration,
    ) -> Controller {
        let (turn, near) = Default::default();
        Controller(Arc::new(Shared {
            raft,
            proposer,
            roster,
            clock,
            remove_dead_after,
            election_max,
            turn,
            near,
        }))
    }

    /// Makes what is due while this node leads, until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let Some(office) = self.office() else { continue };
            self.note_who_is_near(office);
            let Ok(_turn) = self.0.turn.try_lock() else { continue };
            let roll = self.0.raft.roll();
            if !roll.settled {
                continue;
            }
            if let Some(change) = self.scene(&roll).due() {
                // Refused, it is decided anew at the next look.
                let _ = self.make(office, &roll, change).await;
            }
        }
    }

    /// Lets a node in, as a learner. Asked again by the same node it changes nothing.
    pub async fn join(&self, id: u64, member: Member) -> Result<(), Refused> {
        check_member(&member)?;
        let _turn = self.0.turn.lock().await;
        let office = self.office().ok_or(Refused::NotLeader)?;
        let roll = self.settled().await?;
        if let Some(known) = roll.members.get(&id) {
            return match known.peer_address == member.peer_address {
                true => Ok(()),
                false => Err(Refused::Not(format!(
                    "node {id} is a member already, at {}: a data directory cannot move to another address. Empty it \
                     and let the node join anew",
                    known.peer_address
                ))),
            };
        }
        let twin = roll.members.iter().find(|(_, known)| known.name == member.name);
        if let Some((twin, known)) = twin
            && known.peer_address != member.peer_address
            && self.liveness(*twin) == Liveness::Alive
        {
            return Err(Refused::Not(format!(
                "the name {} belongs to a member that is alive, at {}: give another --node-name",
                member.name, known.peer_address
            )));
        }
        if roll.members.len() >= MEMBERS_MAX {
            return Err(Refused::Not(format!("a cluster has at most {MEMBERS_MAX} members")));
        }
        let name = member.name.clone();
        self.0.raft.add_learner(office, &roll, id, member).await?;
        tracing::info!(member = name, id, "member joined, as a learner");
        Ok(())
    }

    /// Does what an operator asks, and says in words what was done.
    ///
    /// Not cancel safe: dropped, it may be half done. Asked again, the rest is done.
    pub async fn grant(&self, wish: Wish, limit: Option<Duration>) -> Result<String, Refused> {
        let limit = limit.unwrap_or(OPERATOR_WAIT);
        let granted = tokio::time::timeout(limit, async {
            match wish {
                Wish::Remove(who) => self.remove(&who).await,
                Wish::Replace { old, new } => self.replace(&old, &new).await,
                Wish::Voters(count) => self.set_voters(count).await,
                Wish::Transfer(to) => self.transfer(to.as_deref()).await,
            }
        });
        granted.await.unwrap_or(Err(Refused::Unknown))
    }

    async fn remove(&self, who: &str) -> Result<String, Refused> {
        let _turn = self.0.turn.lock().await;
        let office = self.office().ok_or(Refused::NotLeader)?;
        let roll = self.settled().await?;
        let (id, name) = find(&roll, who)?;
        let me = self.me();
        if id == me {
            if roll.members.len() == 1 {
                return Err(Refused::Not(format!(
                    "{name} is the only member: stop it instead of removing it"
                )));
            }
            return self.leave_office(office, &roll).await;
        }
        self.make(office, &roll, self.scene(&roll).without(id)).await?;
        Ok(format!("{name} is no member any more; its data directory is of no further use"))
    }

    /// Another node has to lead before this one can be removed: it would have to commit its own removal, and a crash
    /// in between leaves nobody who may lead (openraft issue 2091).
    async fn leave_office(&self, office: Office, roll: &Roll) -> Result<String, Refused> {
        let me = self.me();
        if roll.voters.len() == 1 {
            let scene = self.scene(roll);
            let heir = scene.members.iter().filter(|seen| seen.id != me && seen.dead_for.is_none());
            // Caught up already, if there is one such; else it catches up as a voter, while this node waits for it.
            let heir = heir
                .max_by_key(|seen| seen.caught_up)
                .ok_or_else(|| Refused::Not("no other member is alive to take the office over".to_owned()))?;
            let voters = [me, heir.id].into();
            self.0.raft.set_voters(office, roll, voters, Default::default()).await?;
        }
        self.hand_over(None).await?;
        Err(Refused::NotLeader)
    }

    async fn replace(&self, old: &str, new: &str) -> Result<String, Refused> {
        loop {
            {
                let _turn = self.0.turn.lock().await;
                let office = self.office().ok_or(Refused::NotLeader)?;
                let roll = self.settled().await?;
                let (old, new) = find_pair(&roll, old, new, |id| self.liveness(id) == Liveness::Alive)?;
                if old.0 == self.me() {
                    return self.leave_office(office, &roll).await;
                }
                let scene = self.scene(&roll);
                let fit = |seen: &Seen| seen.id == new.0 && (seen.voter || seen.caught_up);
                if !roll.voters.contains(&old.0) || scene.members.iter().any(fit) {
                    let change = scene.replaced(old.0, new.0, "replaced by the operator");
                    self.make(office, &roll, change).await?;
                    return Ok(format!("{} has taken the place of {}", new.1, old.1));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await; // until it is caught up, or the caller's time is over
        }
    }

    async fn set_voters(&self, count: u32) -> Result<String, Refused> {
        if count.is_multiple_of(2) || count > VOTERS_MAX {
            return Err(Refused::Invalid(format!(
                "voters: is {count}, must be odd and at most {VOTERS_MAX}"
            )));
        }
        let _turn = self.0.turn.lock().await;
        let settings = self.0.raft.machine().glance(|table| table.settings().cloned());
        let settings = settings.ok_or(Refused::NotLeader)?;
        let command = Command::SetSettings { settings: Settings { voters: count, ..settings } };
        let (answer, outcome) = oneshot::channel();
        let origin = Origin::Call(Caller { answer, waits: false });
        self.0.proposer.submit(command, origin).map_err(|_| Refused::NotLeader)?;
        match outcome.await {
            Ok(CallAnswer::Outcome(Outcome::Rejected(why))) => Err(Refused::Invalid(why.to_string())),
            Ok(CallAnswer::Outcome(_)) => {
                let now = self.0.raft.roll().voters.len();
                Ok(format!("the cluster aims at {count} voters, and has {now} now"))
            }
            Ok(CallAnswer::NotProposed) => Err(Refused::NotLeader),
            _ => Err(Refused::Unknown),
        }
    }

    async fn transfer(&self, to: Option<&str>) -> Result<String, Refused> {
        let _turn = self.0.turn.lock().await;
        self.office().ok_or(Refused::NotLeader)?;
        let roll = self.0.raft.roll();
        let to = to.map(|who| find(&roll, who)).transpose()?;
        match &to {
            Some((id, name)) if *id == self.me() => return Ok(format!("{name} leads already")),
            Some((id, name)) if !roll.voters.contains(id) => {
                return Err(Refused::Not(format!("{name} is a learner: only a voter can lead")));
            }
            _ => {}
        }
        self.hand_over(to.map(|(id, _)| id)).await
    }

    async fn hand_over(&self, to: Option<u64>) -> Result<String, Refused> {
        let me = self.me();
        self.0.proposer.hand_over(&self.0.raft, to, self.0.election_max).await;
        let standing = self.0.raft.standing().borrow().clone();
        match standing.leader {
            Some((id, leader)) if id != me => Ok(format!("{} leads now", leader.name)),
            _ => Err(Refused::Not("the hand-over did not succeed: no live voter took the office".to_owned())),
        }
    }

    async fn make(&self, office: Office, roll: &Roll, change: Change) -> Result<(), Refused> {
        let name = |id: &u64| roll.members.get(id).map_or("?", |member| member.name.as_str()).to_owned();
        match change {
            Change::FinishJoint => self.0.raft.finish_joint(office, roll).await?,
            Change::Voters { voters, out, why } => {
                let (named, gone): (Vec<_>, Vec<_>) =
                    (voters.iter().map(name).collect(), out.iter().map(name).collect());
                self.0.raft.set_voters(office, roll, voters, out).await?;
                tracing::info!(voters = ?named, out = ?gone, why, "membership changed");
            }
        }
        Ok(())
    }

    /// The membership, once the change before is committed.
    async fn settled(&self) -> Result<Roll, Refused> {
        loop {
            let roll = self.0.raft.roll();
            let office = self.office().ok_or(Refused::NotLeader)?;
            if roll.joint && roll.settled {
                self.make(office, &roll, Change::FinishJoint).await?;
            } else if roll.settled {
                return Ok(roll);
            }
            tokio::time::sleep(Duration::from_millis(10)).await; // bounded by the caller's limit
        }
    }

    fn scene(&self, roll: &Roll) -> Scene {
        let (me, now) = (self.me(), self.0.clock.monotonic());
        let near = self.near();
        let seen = |(id, member): (&u64, &Member)| {
            let contact = self.0.roster.contact(*id);
            let dead = contact.filter(|contact| contact.liveness == Liveness::Dead);
            Seen {
                id: *id,
                name: member.name.clone(),
                peer_address: member.peer_address.clone(),
                voter: roll.voters.contains(id),
                dead_for: dead.map(|contact| contact.silent_for),
                caught_up: *id == me
                    || near.since.get(id).is_some_and(|since| now.saturating_sub(*since) >= NEAR_FOR),
            }
        };
        Scene {
            me,
            voters_wanted: self.0.raft.machine().glance(|t| t.settings().map_or(1, |s| s.voters as usize)),
            joint: roll.joint,
            members: roll.members.iter().map(seen).collect(),
            remove_dead_after: self.0.remove_dead_after,
        }
    }

    /// Only what this very leader has seen counts: what an earlier one matched may be gone.
    fn note_who_is_near(&self, office: Office) {
        let (positions, now) = (self.0.raft.positions(), self.0.clock.monotonic());
        let mut near = self.near();
        if near.office != Some(office) {
            *near = Near { office: Some(office), since: BTreeMap::new() };
        }
        let is_near = |matched: Option<u64>| {
            matched.is_some_and(|matched| positions.last_log.saturating_sub(matched) <= NEAR_ENTRIES)
        };
        let before = std::mem::take(&mut near.since);
        near.since = positions
            .members
            .iter()
            .filter(|at| is_near(at.matched))
            .map(|at| (at.id, before.get(&at.id).copied().unwrap_or(now)))
            .collect();
    }

    fn liveness(&self, id: u64) -> Liveness {
        self.0.roster.contact(id).map_or(Liveness::Alive, |contact| contact.liveness)
    }

    /// Not before the table has its settings: without them nobody knows how many are to vote.
    fn office(&self) -> Option<Office> {
        let office = self.0.raft.standing().borrow().office;
        office.filter(|_| self.0.raft.machine().glance(|table| table.settings().is_some()))
    }

    fn me(&self) -> u64 {
        self.0.raft.me()
    }

    fn near(&self) -> MutexGuard<'_, Near> {
        self.0.near.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// An id, and the name to it.
type Named = (u64, String);

/// A member by its name or id. A name that two have means the one that it can only mean: see [`find_pair`].
fn find(roll: &Roll, who: &str) -> Result<Named, Refused> {
    let named: Vec<u64> = matching(roll, who);
    match named[..] {
        [id] => Ok((id, roll.members[&id].name.clone())),
        [] => Err(Refused::NotFound(not_found(roll, who))),
        _ => Err(Refused::Invalid(format!("{who} names {} members: give the id", named.len()))),
    }
}

/// Two members by name or id. A wiped node keeps its name, so both may have the same: then the one that is alive is
/// the new one.
fn find_pair(
    roll: &Roll,
    old: &str,
    new: &str,
    alive: impl Fn(u64) -> bool,
) -> Result<(Named, Named), Refused> {
    if old == new && matching(roll, old).len() == 2 {
        let (living, gone): (Vec<u64>, Vec<u64>) = matching(roll, old).into_iter().partition(|id| alive(*id));
        if let ([living], [gone]) = (&living[..], &gone[..]) {
            return Ok(((*gone, old.to_owned()), (*living, new.to_owned())));
        }
    }
    let (old, new) = (find(roll, old)?, find(roll, new)?);
    match old.0 == new.0 {
        true => Err(Refused::Invalid("old and new are the same member".to_owned())),
        false => Ok((old, new)),
    }
}

fn matching(roll: &Roll, who: &str) -> Vec<u64> {
    let by_id = who.parse::<u64>().ok().filter(|id| roll.members.contains_key(id));
    match by_id {
        Some(id) => vec![id],
        None => roll.members.iter().filter(|(_, member)| member.name == who).map(|(id, _)| *id).collect(),
    }
}

fn not_found(roll: &Roll, who: &str) -> String {
    let mut names: Vec<&str> = roll.members.values().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    format!("no member is named {who}; the members are {}", names.join(", "))
}

/// What a node says of itself when it asks to be let in. Everybody in the cluster will dial and show it.
fn check_member(member: &Member) -> Result<(), Refused> {
    const TEXT_BYTES_MAX: usize = 255;
    let fields = [
        ("node-name", &member.name),
        ("peer-advertise", &member.peer_address),
        ("advertise", &member.client_address),
    ];
    for (field, text) in fields {
        if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(Refused::Invalid(format!(
                "{field}: must be at most {TEXT_BYTES_MAX} bytes, without control characters"
            )));
        }
    }
    if member.name.is_empty() || member.peer_address.is_empty() {
        return Err(Refused::Invalid("node-name and peer-advertise: must not be empty".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roll(members: &[(u64, &str)]) -> Roll {
        let member = |name: &str| Member {
            name: name.to_owned(),
            peer_address: format!("{name}:1"),
            client_address: String::new(),
        };
        let mut roll = Roll::default();
        roll.members = members.iter().map(|(id, name)| (*id, member(name))).collect();
        roll
    }

    #[test]
    fn members_are_found_by_name_or_id() {
        let roll = roll(&[(11, "a"), (12, "b"), (13, "b")]);
        assert_eq!(find(&roll, "a"), Ok((11, "a".to_owned())));
        assert_eq!(find(&roll, "12"), Ok((12, "b".to_owned())));
        assert!(matches!(find(&roll, "b"), Err(Refused::Invalid(_))), "two have that name");
        let Err(Refused::NotFound(text)) = find(&roll, "z") else { panic!("there is no z") };
        assert!(text.contains("a, b, b"), "{text}");
    }

    #[test]
    fn a_wiped_node_and_its_old_self_are_told_apart_by_who_is_alive() {
        let roll = roll(&[(11, "a"), (12, "b"), (13, "b")]);
        let pair = find_pair(&roll, "b", "b", |id| id == 13).expect("one is dead, one alive");
        assert_eq!((pair.0.0, pair.1.0), (12, 13));
        assert!(find_pair(&roll, "b", "b", |_| true).is_err());
        assert!(find_pair(&roll, "a", "a", |_| true).is_err());
        assert_eq!(find_pair(&roll, "11", "13", |_| true).map(|pair| (pair.0.0, pair.1.0)), Ok((11, 13)));
    }

    #[test]
    fn a_joiner_with_a_bad_name_or_address_is_refused() {
        let good = roll(&[(1, "a")]).members[&1].clone();
        assert_eq!(check_member(&good), Ok(()));
        for bad in ["", "a\nb", &"x".repeat(256)] {
            let bad = Member { name: bad.to_owned(), ..good.clone() };
            assert!(check_member(&bad).is_err(), "{:?}", bad.name);
        }
    }
}
