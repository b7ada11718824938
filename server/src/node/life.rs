//! What happens behind a started node: it finds its cluster, takes part in Raft, and serves, until it is stopped or
//! cannot go on.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lock_table::Ttl;
use tokio_util::sync::CancellationToken;

use super::disk::{REMOVED, STALE};
use super::{NodeError, Seams, first_some};
use crate::config::{Config, with_peer_port};
use crate::edge::{Edge, Local};
use crate::founding::{Founding, FoundingPlan};
use crate::links::{ClusterLinks, LinkTimes, PeerLinks};
use crate::members::controller::Controller;
use crate::members::join;
use crate::members::roster::Roster;
use crate::pace::{self, PaceReport};
use crate::peers::{Boot, Identity, PeerGuard};
use crate::proposer::{FirstEntry, Proposer};
use crate::raft::marks::Divergence;
use crate::raft::{Machine, RaftHandle, RaftSettings, compaction};
use crate::relay;
use crate::room::{self, DiskRoom};
use crate::service::lock::Calls;
use crate::service::peer::{Membership, PeerService};
use crate::service::session::Sessions;
use crate::store::Store;
use crate::streams::Streams;

/// How long a dial to another node may take.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// The parts of a started node, handed to the task behind it.
pub struct Life {
    pub identity: (u64, Boot),
    pub store: Store,
    pub founding: Arc<Founding>,
    pub edge: Arc<Edge>,
    pub proposer: Proposer,
    pub roster: Roster,
    pub room: Arc<DiskRoom>,
    pub pace: Arc<PaceReport>,
    pub raft: Arc<OnceLock<RaftHandle>>,
    pub peers: PeerService,
    pub config: Config,
    pub seams: Seams,
    pub stop: CancellationToken,
}

impl Life {
    /// Until the node is stopped; an error is why it cannot go on.
    pub async fn run(self) -> Result<(), NodeError> {
        let mut poisoned = self.store.poisoned();
        let disk_failed = async move { first_some(&mut poisoned).await };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(()),
            cause = disk_failed => {
                tracing::error!(%cause, "the disk failed: this node serves no more");
                self.edge.stop();
                Err(NodeError::Store(cause))
            }
            ended = self.live() => {
                self.edge.stop();
                ended
            }
        }
    }

    async fn live(&self) -> Result<(), NodeError> {
        let ping = self.config.election_min;
        let links =
            Arc::new(PeerLinks::new(self.seams.net.clone(), LinkTimes { connect: CONNECT_LIMIT, ping }));
        let plan = self.plan();
        let founded = self.founding.find(&plan, &links).await?;
        let (me, boot) = self.identity;
        let identity = Identity { cluster: founded.cluster, me, boot };
        let links = ClusterLinks { links, guard: Arc::new(PeerGuard::open(identity, self.store.clone())) };
        let mut stale = links.guard.stale();

        let streams = Arc::new(Streams::default());
        let machine = Machine::new(self.store.clone(), streams.clone(), self.seams.witness.clone());
        let settings = RaftSettings {
            heartbeat: self.config.heartbeat,
            election_min: self.config.election_min,
            election_max: self.config.election_max,
        };
        let room = self.room.clone();
        let raft = RaftHandle::start(settings, links.clone(), self.store.clone(), machine, room).await;
        let raft = raft.map_err(|error| NodeError::Raft(error.to_string()))?;
        let _ = self.raft.set(raft.clone());
        let calls = Calls {
            proposer: self.proposer.clone(),
            raft: raft.clone(),
            default_ttl: Ttl::new(self.config.default_ttl.as_millis() as u64),
        };
        let sessions =
            Sessions { streams: streams.clone(), proposer: self.proposer.clone(), raft: raft.clone() };
        let members = Controller::new(
            raft.clone(),
            self.proposer.clone(),
            self.roster.clone(),
            self.seams.clock.clone(),
            self.config.remove_dead_after,
            self.config.election_max,
        );
        let local = Arc::new(Local { sessions, calls, members: members.clone() });
        self.peers.joined(Membership { raft: raft.clone(), links: links.clone(), local: local.clone() });
        self.edge.joined(founded.cluster);
        if let Some(members) = founded.initialise {
            let made = raft.initialize(members).await.map_err(|error| NodeError::Raft(error.to_string()))?;
            if made {
                tracing::info!(cluster = %founded.cluster, "new cluster");
            }
        }

        let first = FirstEntry { settings: self.config.settings(), token_floor: self.config.token_floor };
        let propose = self.proposer.clone().run(
            raft.clone(),
            streams,
            self.seams.clock.clone(),
            first,
            self.stop.clone(),
        );
        let route = relay::run(self.edge.clone(), local, raft.clone(), links.clone(), self.stop.clone());
        let compact = compaction::run(
            raft.clone(),
            self.store.clone(),
            self.config.snapshot_log_bytes,
            self.stop.clone(),
        );
        let look_after_room = room::run(
            self.room.clone(),
            raft.clone(),
            self.proposer.clone(),
            self.store.clone(),
            self.seams.space.clone(),
            self.config.snapshot_log_bytes,
            self.stop.clone(),
        );
        let keep_pace =
            pace::run(self.pace.clone(), raft.clone(), self.seams.clock.clone(), self.stop.clone());
        let (mut fatal, mut diverged) = (raft.fatal(), raft.machine().marks().diverged());
        let stopped = async {
            tokio::select! {
                biased;
                divergence = first_some(&mut diverged) => diverged_from(&divergence, &raft),
                reason = first_some(&mut fatal) => NodeError::Raft(reason),
            }
        };
        let report = async {
            tokio::join!(report_leader(raft.clone()), self.founding.report_unheard(&raft));
        };
        let be_let_in = async {
            if let Err(error) = join::run(&raft, &links.links, &self.founding, &self.store, &plan.seeds).await
            {
                tracing::error!(%error, "that this node is a member could not be written down");
            }
        };
        let manage = members.run(&self.stop);
        let was_member = || join::was_member(&self.store);
        tokio::select! {
            why = first_some(&mut stale) => {
                tracing::error!("this node serves no more: {why}");
                // First of all no more votes and no more acknowledgements. Written down, because a start more would
                // count higher and be believed.
                raft.shutdown().await;
                self.store.put_value(STALE, why.clone().into()).await?;
                Err(NodeError::StaleStorage(why))
            }
            removed = self.roster.run(&raft, &links, &self.seams.clock, was_member, &self.stop) => match removed {
                true => {
                    self.store.put_value(REMOVED, vec![1].into()).await?;
                    tracing::warn!("{}", NodeError::Removed);
                    Err(NodeError::Removed)
                }
                false => Ok(()),
            },
            error = stopped => {
                tracing::error!(%error, "this node serves no more");
                Err(error)
            }
            _ = async {
                tokio::join!(propose, route, compact, look_after_room, keep_pace, report, manage, be_let_in)
            } => Ok(()),
        }
    }

    fn plan(&self) -> FoundingPlan {
        let mut seeds: Vec<String> = self.config.seeds.iter().map(|seed| with_peer_port(seed)).collect();
        seeds.sort();
        seeds.dedup();
        let alone = seeds.iter().all(|seed| *seed == self.founding.me().1.peer_address);
        let expect = self.config.bootstrap_expect.or(alone.then_some(1));
        FoundingPlan { seeds, expect }
    }
}

fn diverged_from(divergence: &Divergence, raft: &RaftHandle) -> NodeError {
    let &Divergence { index, leader, ours, theirs } = divergence;
    let members = raft.positions().members;
    let known = members.into_iter().find(|member| member.id == leader).map(|member| member.node.name);
    NodeError::Diverged { index, leader: known.unwrap_or_else(|| leader.to_string()), ours, theirs }
}

/// One line whenever another node leads, with what this one is then.
async fn report_leader(raft: RaftHandle) {
    let mut standing = raft.standing();
    let mut known = None;
    loop {
        let now = standing.borrow_and_update().clone();
        let leader = now.leader.map(|(_, member)| member.name);
        if leader != known {
            match &leader {
                Some(leader) => tracing::info!(leader, role = now.role, term = now.term, "leader known"),
                None => tracing::info!(term = now.term, "no leader known"),
            }
            known = leader;
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
}
