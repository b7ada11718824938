//! What the rest of the server may ask of consensus, in words that are not openraft's.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lock_table::planted;
use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{Config, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;

use super::machine::Machine;
use super::network::NetworkFactory;
use super::snapshot::Transfers;
use super::touch::{Heir, Succession, Touch, succession};
use super::types::{LeaderId, LogId, Raft};
use super::{EncodedBatch, LogStore, Member, Types};
use crate::links::ClusterLinks;
use crate::room::DiskRoom;
use crate::store::Store;

/// openraft's knobs, as far as they are ours to turn. Validated by [`crate::config::Config`].
#[derive(Clone, Copy, Debug)]
pub struct RaftSettings {
    /// How often the leader says that it is there, and how long a heartbeat may take: above the slowest flush.
    pub heartbeat: Duration,
    /// Bounds between which each election timeout is drawn.
    pub election_min: Duration,
    /// See `election_min`.
    pub election_max: Duration,
}

/// A time in which this node leads and may serve: its first entry is applied here, so nothing that an earlier leader
/// acknowledged is missing, and it is in touch with a quorum. One leadership has several offices when the quorum was
/// lost and came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Office {
    leader: LeaderId,
    /// How often the quorum was lost before it: no two offices are equal.
    losses: u64,
}

impl Office {
    /// The Raft term.
    pub fn term(&self) -> u64 {
        self.leader.term
    }

    pub(super) fn leader_id(&self) -> LeaderId {
        self.leader
    }
}

/// Who leads, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// The leader's id and addresses. None on a leader that has lost its quorum: by now it may be another.
    pub leader: Option<(u64, Member)>,
    /// Present while this node is the leader and may serve.
    pub office: Option<Office>,
    /// The Raft term.
    pub term: u64,
    /// leader, follower, candidate or learner.
    pub role: &'static str,
}

/// Why a batch has no known effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not proposed: the leader could not reach a quorum lately, or is handing over. The same commands may be
    /// proposed again, as long as it stays in office.
    #[error("not proposed: the leader has lost touch with the quorum, or is handing over")]
    Paused,
    /// Not proposed: this node no longer leads under that office.
    #[error("not proposed: this node is not the leader")]
    NotLeader,
    /// Proposed, and it may yet be applied, or not.
    #[error("proposed, and the outcome is unknown")]
    Unknown,
    /// This node's Raft has stopped.
    #[error("this node's Raft has stopped: {0}")]
    Stopped(String),
}

/// Why a linearizable read could not be had here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another node leads, or none.
    #[error("this node is not the leader")]
    NotLeader,
    /// The leader could not reach a quorum.
    #[error("no quorum answered")]
    NoQuorum,
    /// This node's Raft has stopped.
    #[error("this node's Raft has stopped: {0}")]
    Stopped(String),
}

/// Consensus on this node.
#[derive(Clone)]
pub struct RaftHandle {
    raft: Raft,
    machine: Machine,
    standing: watch::Receiver<Standing>,
    fatal: watch::Receiver<Option<String>>,
    transfers: Transfers,
    /// A voter that answered within this time is alive: heartbeats are at most a fifth of it.
    fresh: Duration,
    room: Arc<DiskRoom>,
    /// Held while a leader that hung up is looked for.
    absence: Arc<tokio::sync::Mutex<()>>,
}

impl RaftHandle {
    /// Starts Raft on what the store holds. Nothing is served before this node or another is elected.
    pub async fn start(
        settings: RaftSettings,
        links: ClusterLinks,
        store: Store,
        machine: Machine,
        room: Arc<DiskRoom>,
    ) -> Result<RaftHandle, io::Error> {
        let me = links.identity().me;
        let config = config(settings, &links.identity().cluster.to_string());
        let config = config.validate().map_err(io::Error::other)?;
        let transfers = Transfers::default();
        let network = NetworkFactory {
            links,
            store: store.clone(),
            transfers: transfers.clone(),
            append_limit: settings.election_max,
            room: room.clone(),
            marks: machine.marks().clone(),
        };
        let log = LogStore::open(store)?;
        let raft = Raft::new(me, Arc::new(config), network, log, machine.writer())
            .await
            .map_err(io::Error::other)?;
        let (standing_tx, standing) = watch::channel(Standing::default());
        let (fatal_tx, fatal) = watch::channel(None);
        let touch = Touch::new(settings.election_max);
        tokio::spawn(follow(me, raft.clone(), machine.clone(), touch, standing_tx, fatal_tx));
        let fresh = settings.election_min;
        let absence = Arc::default();
        Ok(RaftHandle { raft, machine, standing, fatal, transfers, fresh, room, absence })
    }

    /// Makes these nodes a new cluster; only the one node that holds every promise may ask. `false`: it has been done
    /// before, and nothing changed.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<bool, io::Error> {
        if self.has_history().await {
            return Ok(false);
        }
        self.raft.initialize(members).await.map_err(io::Error::other)?;
        Ok(true)
    }

    /// Whether this node has a vote or a log: it is, or was, listed in a membership. Asked of Raft itself, because its
    /// metrics know nothing of the disk for a moment after the start. A Raft that has stopped has a history.
    pub async fn has_history(&self) -> bool {
        self.raft.is_initialized().await.unwrap_or(true)
    }

    /// Proposes a batch under `office` and under no other, and waits until it is applied on this node.
    ///
    /// Cancel safe in this sense: dropped, the batch may still be applied.
    pub async fn propose(&self, office: Office, batch: Bytes) -> Result<(), ProposeError> {
        let (responder, outcome) = ProgressResponder::complete_only();
        let write = self.raft.write(EncodedBatch(batch)).with_leader(office.leader).responder(responder);
        write.await.map_err(|fatal| stopped(&fatal))?;
        match outcome.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(match forward.reason {
                ForwardReason::LeaseExpired | ForwardReason::LeadershipTransfer => ProposeError::Paused,
                ForwardReason::NotLeader => ProposeError::NotLeader,
            }),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// Waits until this node, as the leader, has applied everything that was acknowledged before the call
    /// (Raft thesis 6.4, ReadIndex). A read of the table after it is linearizable.
    pub async fn read_point(&self) -> Result<(), ReadError> {
        if self.standing.borrow().office.is_none() {
            return Err(ReadError::NotLeader);
        }
        if planted::is("local-read") {
            return Ok(());
        }
        match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(ReadError::NotLeader),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(fatal)) => Err(ReadError::Stopped(fatal.to_string())),
        }
    }

    /// Who leads, and its changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Why this node's Raft has stopped, once it has.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.clone()
    }

    /// The lock table on this node.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// This node's id.
    pub fn me(&self) -> u64 {
        *self.raft.node_id()
    }

    /// Positions and members, for `status`.
    pub fn positions(&self) -> Positions {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let members = metrics.membership_config.membership();
        let matched = metrics.replication.as_ref();
        Positions {
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: index(&metrics.cluster_committed),
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            members: members
                .nodes()
                .map(|(id, node)| MemberPosition {
                    id: *id,
                    node: node.clone(),
                    voter: members.voter_ids().any(|voter| voter == *id),
                    matched: matched.and_then(|all| all.get(id)).map(index),
                })
                .collect(),
        }
    }

    /// Hands the leadership to another live voter that has the whole log, to `to` if it is named, and waits for a new
    /// leader; each takes at most `limit`. To be called when nothing is proposed any more. Does nothing on a node that does not lead, or
    /// that has nobody to hand it to.
    pub async fn hand_over(&self, to: Option<u64>, limit: Duration) {
        let me = *self.raft.node_id();
        let mut standing = self.standing();
        if standing.borrow().office.is_none() || self.roll().voters.iter().all(|voter| *voter == me) {
            return;
        }
        let Ok(Some(heir)) = tokio::time::timeout(limit, self.heir(to)).await else {
            tracing::warn!(
                "no other voter is alive and has the whole log: the leadership is not handed over"
            );
            return;
        };
        if self.raft.trigger().transfer_leader(heir).await.is_err() {
            return;
        }
        let moved = standing.wait_for(|now| now.leader.as_ref().is_some_and(|(leader, _)| *leader != me));
        let _ = tokio::time::timeout(limit, moved).await;
    }

    /// Waits until another live voter, `to` if it is named, has the whole log. `None`: there is none that could.
    async fn heir(&self, to: Option<u64>) -> Option<u64> {
        let me = *self.raft.node_id();
        let mut metrics = self.raft.metrics();
        loop {
            let now = metrics.borrow_watched().clone();
            let (heartbeat, replication) = (now.heartbeat?, now.replication?);
            let voters = now.membership_config.membership().voter_ids();
            let voters = voters.filter(|id| *id != me && to.is_none_or(|to| to == *id));
            let heirs: Vec<Heir> = voters
                .map(|id| Heir {
                    id,
                    has_room: self.room.peer_has_room(id),
                    silence: heartbeat.get(&id).and_then(Option::as_ref).map(|acked| acked.elapsed()),
                    matched: replication.get(&id).and_then(Option::as_ref).map(|matched| matched.index),
                })
                .collect();
            match succession(&heirs, now.last_log_index.unwrap_or(0), self.fresh) {
                Succession::Ready(heir) => return Some(heir),
                Succession::Behind => metrics.changed().await.ok()?,
                Succession::Nobody => return None,
            }
        }
    }

    /// Whether this leader has a live voter with room on its disk to hand its office to.
    pub fn can_give_office_to_room(&self) -> bool {
        let me = *self.raft.node_id();
        let fit = |member: &MemberPosition| {
            member.voter && member.id != me && member.matched.is_some() && self.room.peer_has_room(member.id)
        };
        self.standing.borrow().office.is_some() && self.positions().members.iter().any(fit)
    }

    /// Whether this node stands for election when it hears of no leader.
    pub fn stand_for_election(&self, stands: bool) {
        self.raft.runtime_config().elect(stands);
    }

    /// The size in bytes of the current snapshot; 0 if there is none.
    pub fn snapshot_bytes(&self) -> u64 {
        super::snapshot::current_bytes(self.machine.store())
    }

    /// A leader's append or heartbeat came.
    pub(crate) fn leader_spoke(&self) {
        self.room.leader_spoke();
    }

    /// Whether this node's disk is low, as its answers tell the leader.
    pub(crate) fn disk_is_low(&self) -> bool {
        self.room.is_low()
    }

    /// Asks for a snapshot, taken beside everything else.
    pub async fn take_snapshot(&self) -> Result<(), ProposeError> {
        self.raft.trigger().snapshot().await.map_err(|fatal| stopped(&fatal))
    }

    /// Lets go of the log up to `index`, which a snapshot covers.
    pub async fn purge(&self, index: u64) -> Result<(), ProposeError> {
        self.raft.trigger().purge_log(index).await.map_err(|fatal| stopped(&fatal))
    }

    /// Stops Raft on this node. What was acknowledged is on disk.
    pub async fn shutdown(&self) {
        let _ = self.raft.shutdown().await;
    }

    /// The snapshots that are on their way, in or out.
    pub(crate) fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    /// See [`RaftHandle::hung_up`].
    pub(super) fn absence(&self) -> &tokio::sync::Mutex<()> {
        &self.absence
    }

    /// openraft itself, for the receiving end of the peer protocol.
    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }
}

/// Where this node's log and table are.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    pub last_log: u64,
    pub committed: u64,
    pub applied: u64,
    pub snapshot: u64,
    pub purged: u64,
    pub members: Vec<MemberPosition>,
}

/// One member, and how far its log is known to reach; only the leader knows.
#[derive(Clone, Debug)]
pub struct MemberPosition {
    pub id: u64,
    pub node: Member,
    pub voter: bool,
    pub matched: Option<u64>,
}

/// Keeps `standing` and `fatal` in step with openraft, until Raft ends.
async fn follow(
    me: u64,
    raft: Raft,
    machine: Machine,
    mut touch: Touch,
    standing: watch::Sender<Standing>,
    fatal: watch::Sender<Option<String>>,
) {
    let mut metrics = raft.metrics();
    let mut applied = machine.applied();
    loop {
        // Several times a batch: nothing is copied as long as nothing has changed.
        let (left, leads, serves) = {
            let now = metrics.borrow_watched();
            if let Err(reason) = &now.running_state {
                standing.send_replace(Standing { role: "stopped", ..Standing::default() });
                fatal.send_replace(Some(reason.to_string()));
                return;
            }
            let leads = now.state == ServerState::Leader && now.current_leader == Some(me);
            let serves = may_serve(me, &now, *applied.borrow_and_update());
            let members = now.membership_config.membership();
            // Heartbeats are acknowledged too, so an idle leader hears from its quorum all the time.
            let silence = match members.voter_ids().all(|voter| voter == me) {
                true => Some(Duration::ZERO),
                false => now.last_quorum_acked.map(|acked| acked.elapsed()),
            };
            let in_office = now.vote.leader_id;
            let left = if serves { touch.left(in_office, silence) } else { Duration::ZERO };
            let lost_quorum = serves && left.is_zero();
            let known = now.current_leader.filter(|_| !lost_quorum);
            let leader = known.and_then(|id| Some((id, members.get_node(&id)?)));
            let office = (!left.is_zero()).then_some(Office { leader: in_office, losses: touch.losses() });
            let term = now.current_term;
            let role = match now.state {
                ServerState::Leader => "leader",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                _ => "follower",
            };
            standing.send_if_modified(|old| {
                if lost_quorum && old.office.is_some() {
                    tracing::warn!(term, "no quorum answers this leader: it serves no more for now");
                }
                let same_leader = old.leader.as_ref().map(|(id, member)| (*id, member)) == leader;
                let same = same_leader && (old.office, old.term, old.role) == (office, term, role);
                if !same {
                    let leader = leader.map(|(id, member)| (id, member.clone()));
                    *old = Standing { leader, office, term, role };
                }
                !same
            });
            (left, leads, serves)
        };
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() { return },
            // Applied entries matter only until the leader's own first one.
            _ = applied.changed(), if leads && !serves => {}
            // Nothing comes from openraft while nobody answers it.
            () = tokio::time::sleep(left), if !left.is_zero() => {}
        }
    }
}

/// A leader serves only once its own first entry is applied here (R9): then nothing that an earlier leader acknowledged
/// is missing.
fn may_serve(me: u64, now: &RaftMetrics<Types>, applied: Option<LogId>) -> bool {
    let leads = now.state == ServerState::Leader && now.current_leader == Some(me);
    leads && applied.is_some_and(|id| id.leader_id == now.vote.leader_id)
}

fn stopped(fatal: &Fatal<Types>) -> ProposeError {
    ProposeError::Stopped(fatal.to_string())
}

fn config(settings: RaftSettings, cluster: &str) -> Config {
    let ms = |duration: Duration| duration.as_millis() as u64;
    Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: ms(settings.heartbeat),
        election_timeout_min: ms(settings.election_min),
        election_timeout_max: ms(settings.election_max),
        // Appends prove the same as heartbeats, so a busy leader sends few of them.
        heartbeat_min_interval: Some(ms(settings.heartbeat)),
        // A term is not raised by a node that could not win: after a partition or a restart it asks first.
        enable_pre_vote: Some(true),
        // A restarted leader stands for election like anybody: without the committed index of its last quorum it
        // could answer reads with old state.
        enable_leader_restore: Some(false),
        // A follower that lost entries it acknowledged is a broken disk, not a lagging follower.
        allow_log_reversion: Some(false),
        // Three voters: an old leader and one bridge are a quorum already, and a probe would cost an election after
        // each gap.
        quorum_loss_probe_interval: None,
        // Entries are up to 1 MiB; `limited_get_log_entries` stops at 2 MiB anyway.
        max_payload_entries: 256,
        // Snapshots and purges are asked for by `compaction`, by bytes of log rather than by entries.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: u64::MAX,
        // Our transfer has its own limit for each chunk, see `snapshot::CHUNK_IDLE_LIMIT`.
        install_snapshot_timeout: ms(Duration::from_secs(24 * 3600)),
        backoff: "50ms 100ms 200ms ..1s".to_owned(),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Vote;

    #[test]
    fn a_leader_serves_only_when_its_own_first_entry_is_applied() {
        let (me, term) = (1, 4);
        let mut now = RaftMetrics::<Types>::new_initial(me);
        (now.state, now.current_leader, now.current_term) = (ServerState::Leader, Some(me), term);
        now.vote = Vote::new_committed(term, me);
        let applied = |term, node_id| Some(LogId::new(LeaderId { term, node_id }, 9));
        for not_yet in [None, applied(3, 2), applied(3, me), applied(4, 2)] {
            assert!(!may_serve(me, &now, not_yet), "{not_yet:?}");
        }
        assert!(may_serve(me, &now, applied(term, me)));
        now.state = ServerState::Follower;
        assert!(!may_serve(me, &now, applied(term, me)), "deposed");
    }
}
