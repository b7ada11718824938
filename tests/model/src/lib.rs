//! A model of the lease protocol, small enough to look at all that can happen.
//!
//! One lock, two clients, a cluster that changes its leader. Raft itself is taken for granted: there is one committed log,
//! and what a leader proposed is committed later, or lost with its office. Modelled is what the protocol adds: cluster
//! time that moves by the `dt` of each batch, leases on cluster time, numbered renewals that come late or never, and
//! clients that stop believing by a clock of their own. Time is real time in units; a tick is one unit, a batch adds
//! at most [`CLAMP`].
//!
//! The first client holds the lock and renews its lease; the second waits for it, on a lease that does not end, because
//! what is asked is what the first one may believe. Looked at in every state:
//!
//! - **no two believers**: unless one of them is frozen, no two clients believe to hold the lock.
//! - **no lease ends early**: before its time has really passed since the batch that it counts from was closed.
//!
//! And, so that this is no empty talk, that there are states in which the lock has passed on, in which a fail-over left
//! a lease alone, and in which an answer came too late to count.
//!
//! [`Rule`] names what can be taken out of the protocol. Each of them, taken out, gives a run with two believers.

mod client;
mod cluster;

use stateright::{Model, Property};

pub use client::Client;
pub use cluster::{Batch, Cluster};

/// Units of real time that a lease lasts.
pub const TTL: u8 = 3;

/// The most that one batch adds to cluster time.
pub const CLAMP: u8 = 1;

/// How long is looked at: a lease, a stall of the leader that outlasts it, and a lease again.
pub const END: u8 = 5;

/// Renewals that the holder sends, after the one that it begins with.
pub const RENEWALS: u8 = 2;

/// A rule of the protocol, to be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// After a stall the clock starts anew: what the clamp cut off is lost. Without it the next batches catch it up.
    Reanchor,
    /// The first batch of a leader adds no time, and time counts from its close. Without it a leader's time is what
    /// passed since its office began.
    TimeFromBatches,
    /// An answer names the renewal that it covers. Without it a client takes it for the newest that it sent.
    RenewalNumber,
    /// A lease counts from before its renewal was sent. Without it, from the answer.
    BeforeSend,
    /// A batch is proposed under one leader only. Without it a new leader proposes again what may be committed already.
    OneLeaderPerBatch,
}

/// The protocol, whole or without one rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    /// What is taken out.
    pub without: Option<Rule>,
}

impl Lease {
    pub(crate) fn has(self, rule: Rule) -> bool {
        self.without != Some(rule)
    }
}

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Real time.
    pub now: u8,
    /// The leader and the log.
    pub cluster: Cluster,
    /// The one that holds, and the one that waits.
    pub clients: [Client; 2],
    /// The holder's renewals on their way, by number. They may arrive in any order, late, or never.
    pub renewals: Vec<u8>,
    /// Answers on their way: client, the number covered, and whether the client holds the lock by then.
    pub answers: Vec<(u8, u8, bool)>,
    /// The holder may be frozen, once.
    pub may_freeze: bool,
}

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A unit of real time passes.
    Tick,
    /// The holder sends its next renewal.
    Send,
    /// A renewal reaches the leader.
    Arrive(u8),
    /// The leader closes a batch of what has arrived, and proposes it.
    Close,
    /// The oldest proposed batch is committed and applied.
    Commit,
    /// Another leader. What the old one proposed is committed all the same, or lost.
    Elect {
        /// Whether it is committed.
        survives: bool,
    },
    /// An answer reaches its client.
    Answer(u8, u8, bool),
    /// The holder stands still; its clock does not.
    Freeze,
    /// It goes on.
    Thaw,
}

impl Model for Lease {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let clients = [Client::holder(), Client::waiter()];
        let cluster = Cluster::new();
        vec![State { now: 0, cluster, clients, renewals: Vec::new(), answers: Vec::new(), may_freeze: true }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.now < END {
            steps.push(Step::Tick);
        }
        let holder = &state.clients[0];
        match holder.frozen {
            true => steps.push(Step::Thaw),
            false if state.may_freeze => steps.push(Step::Freeze),
            false => {}
        }
        if holder.may_send(state.now) {
            steps.push(Step::Send);
        }
        steps.extend(state.renewals.iter().map(|&number| Step::Arrive(number)));
        let awake = |client: u8| !state.clients[usize::from(client)].frozen;
        let answers = state.answers.iter().filter(|(client, ..)| awake(*client));
        steps.extend(answers.map(|&(client, number, holds)| Step::Answer(client, number, holds)));
        if state.cluster.may_close() {
            steps.push(Step::Close);
        }
        if !state.cluster.proposed.is_empty() {
            steps.push(Step::Commit);
        }
        if state.cluster.elections > 0 {
            steps.extend([true, false].map(|survives| Step::Elect { survives }));
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Tick => state.now += 1,
            Step::Send => {
                let number = state.clients[0].send(state.now);
                insert(&mut state.renewals, number);
            }
            Step::Arrive(number) => {
                state.renewals.retain(|on_its_way| *on_its_way != number);
                insert(&mut state.cluster.arrived, number);
            }
            Step::Close => state.cluster.close(*self, state.now),
            Step::Commit => {
                if let Some(answer) = state.cluster.commit(state.now) {
                    insert(&mut state.answers, answer);
                }
            }
            Step::Elect { survives } => state.cluster.elect(*self, state.now, survives),
            Step::Answer(at, number, holds) => {
                state.answers.retain(|on_its_way| *on_its_way != (at, number, holds));
                state.clients[usize::from(at)].answered(*self, state.now, number, holds);
            }
            Step::Freeze => {
                state.may_freeze = false;
                state.clients[0].frozen = true;
            }
            Step::Thaw => state.clients[0].frozen = false,
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Lease>> {
        vec![
            Property::always("no two believers", |_, state: &State| {
                let believes = |client: &&Client| !client.frozen && client.believes(state.now);
                state.clients.iter().filter(believes).count() < 2
            }),
            Property::always("no lease ends early", |_, state: &State| !state.cluster.ended_early),
            Property::sometimes("the lock passes on", |_, state: &State| {
                state.clients[1].believes(state.now)
            }),
            Property::sometimes("a fail-over leaves a lease alone", |_, state: &State| {
                state.cluster.elections == 0 && state.now > TTL && state.clients[0].believes(state.now)
            }),
            Property::sometimes("an answer comes too late", |_, state: &State| state.clients[0].was_late),
            Property::sometimes("a frozen client is overtaken", |_, state: &State| {
                state.clients[0].frozen && state.clients[1].believes(state.now)
            }),
        ]
    }
}

/// Messages have no order: a set, so that equal states are equal.
pub(crate) fn insert<T: Ord>(set: &mut Vec<T>, item: T) {
    if let Err(at) = set.binary_search(&item) {
        set.insert(at, item);
    }
}
