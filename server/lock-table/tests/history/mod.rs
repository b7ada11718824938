//! Random histories: few clients, few locks, short leases, many repeats.

use crate::model::Model;
use lock_table::*;
use proptest::prelude::*;

/// One thing that a history does. Ids are chosen so that most of them exist.
#[derive(Clone, Debug)]
enum Op {
    Open {
        who: u8,
        ttl: u64,
        number: u64,
    },
    Close {
        pick: u64,
    },
    Acquire {
        pick: u64,
        ticket: u64,
        names: Vec<u8>,
        mode: Mode,
        wait: Wait,
        noted: bool,
        acked: u64,
    },
    /// An acquire that was sent before, word for word.
    Again {
        pick: u64,
        acked: u64,
    },
    Cancel {
        pick: u64,
        ticket: u64,
        acked: u64,
    },
    Release {
        pick: u64,
        ticket: u64,
        token_back: Option<u64>,
        acked: u64,
    },
    Lock {
        who: u8,
        name: u8,
        id: Option<u8>,
        ttl: u64,
        wait_ms: u64,
        mode: Mode,
    },
    Unlock {
        who: u8,
        name: u8,
        id: Option<u8>,
        token_back: Option<u64>,
    },
    Extend {
        who: u8,
        name: u8,
        token_back: Option<u64>,
        ttl: u64,
    },
    Narrow {
        sessions_max: u64,
        locks_max: u64,
    },
}

/// A batch, before it is known which ids there are.
#[derive(Clone, Debug)]
pub struct Round {
    dt_ms: u64,
    renewals_complete: bool,
    renewals: Vec<(u64, u64, Option<u64>)>,
    ops: Vec<Op>,
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        4 => Just(Mode::Exclusive),
        3 => Just(Mode::Shared),
        3 => (0u32..3, 2u32..4).prop_map(|(permits, capacity)| Mode::Permits { permits, capacity }),
    ]
}

fn wait() -> impl Strategy<Value = Wait> {
    prop_oneof![
        1 => Just(Wait::None),
        2 => (0u64..4).prop_map(|steps| Wait::Ms(steps * 1500)),
        3 => Just(Wait::Forever),
    ]
}

fn ttl() -> impl Strategy<Value = u64> {
    prop_oneof![12 => (2u64..24).prop_map(|half| half * 500), 1 => Just(999)]
}

fn op() -> impl Strategy<Value = Op> {
    let names = || prop::sample::subsequence(vec![0u8, 1, 2], 1..=3).prop_shuffle();
    let (pick, who, name) = (0u64..6, 0u8..5, 0u8..3);
    // A client's tickets are few, so that repeats are many.
    let (ticket, acked) = (0u64..9, prop_oneof![3 => Just(0u64), 1 => 0u64..6]);
    let id = prop::option::of(0u8..2);
    let token_back = || prop::option::of(0u64..5);
    let open = (who.clone(), ttl(), 0u64..4).prop_map(|(who, ttl, number)| Op::Open { who, ttl, number });
    let close = pick.clone().prop_map(|pick| Op::Close { pick });
    let acquire = (pick.clone(), ticket.clone(), names(), mode(), wait(), any::<bool>(), acked.clone())
        .prop_map(|(pick, ticket, names, mode, wait, noted, acked)| Op::Acquire {
            pick,
            ticket,
            names,
            mode,
            wait,
            noted,
            acked,
        });
    let again = (0u64..40, acked.clone()).prop_map(|(pick, acked)| Op::Again { pick, acked });
    let cancel = (pick.clone(), ticket.clone(), acked.clone()).prop_map(|(pick, ticket, acked)| Op::Cancel {
        pick,
        ticket,
        acked,
    });
    let release = (pick, ticket, prop::option::weighted(0.2, 0u64..4), acked)
        .prop_map(|(pick, ticket, token_back, acked)| Op::Release { pick, ticket, token_back, acked });
    let wait_ms = prop_oneof![Just(0u64), 1u64..4000];
    let lock = (who.clone(), name.clone(), id.clone(), ttl(), wait_ms, mode())
        .prop_map(|(who, name, id, ttl, wait_ms, mode)| Op::Lock { who, name, id, ttl, wait_ms, mode });
    let unlock = (who.clone(), name.clone(), id, token_back())
        .prop_map(|(who, name, id, token_back)| Op::Unlock { who, name, id, token_back });
    let extend = (who, name, token_back(), ttl()).prop_map(|(who, name, token_back, ttl)| Op::Extend {
        who,
        name,
        token_back,
        ttl,
    });
    let narrow =
        (5u64..12, 2u64..5).prop_map(|(sessions_max, locks_max)| Op::Narrow { sessions_max, locks_max });
    prop_oneof![
        4 => open,
        1 => close,
        14 => acquire,
        6 => again,
        2 => cancel,
        9 => release,
        5 => lock,
        2 => unlock,
        1 => extend,
        1 => narrow,
    ]
}

pub fn round() -> impl Strategy<Value = Round> {
    (
        prop_oneof![6 => Just(0u64), 6 => 0u64..400, 1 => 0u64..6000],
        prop::bool::weighted(0.9),
        prop::collection::vec((0u64..6, 0u64..9, prop::option::weighted(0.2, ttl())), 0..4),
        prop::collection::vec(op(), 0..5),
    )
        .prop_map(|(dt_ms, renewals_complete, renewals, ops)| Round {
            dt_ms,
            renewals_complete,
            renewals,
            ops,
        })
}

pub fn history(rounds: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Round>> {
    prop::collection::vec(round(), rounds)
}

fn limits() -> Limits {
    Limits {
        waiters_per_lock_max: 3,
        locks_per_session_max: 5,
        sessions_max: 10,
        locks_max: 4,
        ticket_window: 7,
        ..Limits::standard()
    }
}

/// A configured cluster and three sessions.
pub fn beginning() -> Batch {
    let settings = Settings { limits: limits(), voters: 3 };
    let configure = Command::Configure { settings, token_start: Token::new(1000) };
    let open = |who: u8| Command::Open {
        secret: Secret::new([who; 16]),
        owner: owner(who),
        ttl: Ttl::new(8_000),
        number: RenewalNumber::new(1),
    };
    Batch { commands: vec![configure, open(0), open(1), open(2)], ..Batch::new(0) }
}

pub fn name(number: u8) -> Name {
    Name::new(["k", "l", "m"][usize::from(number)]).expect("a good name")
}

fn owner(number: u8) -> Owner {
    Owner::new(["ann", "bob", "cid", "dan", "eve"][usize::from(number)]).expect("a good owner")
}

fn request_id(number: Option<u8>) -> Option<RequestId> {
    number.map(|number| RequestId::new(["1", "2"][usize::from(number)]).expect("a good id"))
}

/// The batch of a round. Sessions are picked from those that live; tokens are counted back from the
/// newest.
pub fn batch(round: &Round, model: &Model) -> Batch {
    let session = |pick: u64| model.some_session(pick);
    let token = |back: Option<u64>| back.map(|back| Token::new(model.token_last().saturating_sub(back)));
    let command = |op: &Op| match op.clone() {
        Op::Open { who, ttl, number } => Command::Open {
            secret: Secret::new([who; 16]),
            owner: owner(who),
            ttl: Ttl::new(ttl),
            number: RenewalNumber::new(number),
        },
        Op::Close { pick } => Command::Close { session: session(pick) },
        Op::Acquire { pick, ticket, names, mode, wait, noted, acked } => Command::Acquire {
            session: session(pick),
            ticket: Ticket::new(ticket),
            names: names.into_iter().map(name).collect(),
            mode,
            wait,
            metadata: Metadata::new(
                noted.then(|| ("by".to_owned(), "hand".to_owned())).into_iter().collect(),
            ),
            acked: Ticket::new(acked),
        },
        Op::Again { pick, acked } => model.again(pick, Ticket::new(acked)),
        Op::Cancel { pick, ticket, acked } => {
            let session = session(pick);
            let ticket = model.some_ticket(session, ticket);
            Command::Cancel { session, ticket, acked: Ticket::new(acked) }
        }
        Op::Release { pick, ticket, token_back, acked } => {
            let session = session(pick);
            let ticket = model.some_ticket(session, ticket);
            let current = model.token_of(session, ticket).unwrap_or_default();
            let token = token(token_back).unwrap_or(current);
            Command::Release { session, ticket, token, acked: Ticket::new(acked) }
        }
        Op::Lock { who, name: of, id, ttl, wait_ms, mode } => Command::UnaryLock {
            owner: owner(who),
            name: name(of),
            request_id: request_id(id),
            ttl: Ttl::new(ttl),
            wait_ms,
            mode,
            metadata: Metadata::default(),
        },
        Op::Unlock { who, name: of, id, token_back } => Command::UnaryUnlock {
            owner: owner(who),
            name: name(of),
            request_id: request_id(id),
            token: token(token_back),
        },
        Op::Extend { who, name: of, token_back, ttl } => Command::UnaryRenew {
            owner: owner(who),
            name: name(of),
            token: token(token_back),
            ttl: Ttl::new(ttl),
        },
        Op::Narrow { sessions_max, locks_max } => Command::SetSettings {
            settings: Settings { limits: Limits { sessions_max, locks_max, ..limits() }, voters: 3 },
        },
    };
    Batch {
        renewals_complete: round.renewals_complete,
        renewals: round
            .renewals
            .iter()
            .map(|(pick, number, ttl)| Renewal {
                session: session(*pick),
                number: RenewalNumber::new(*number),
                ttl: ttl.map(Ttl::new),
            })
            .collect(),
        commands: round.ops.iter().map(command).collect(),
        ..Batch::new(round.dt_ms)
    }
}
