//! The state machine alone: what one core applies, without disk and network. The leader and every follower do all of
//! it, so it bounds what a cluster can do. Beside it what cannot be done for less: a hash map that enters and removes
//! the names, and a checksum and a copy of the bytes.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lock_table::*;

/// How much one step may do, as on a node.
const STEP_BUDGET: usize = 2_048;

/// How many records one step of a snapshot may take, as on a node.
const SNAPSHOT_STEP_RECORDS: usize = 4_096;

/// As many as the largest batch applied here has.
const FLOOR_NAMES: u64 = 1024;

/// Locks of a table that is built anew, the sessions that hold them, and how many a batch brings.
const HELD: u64 = 200_000;
const HOLDERS: u64 = 1_000;
const HELD_PER_BATCH: u64 = 200;

const TTL: Ttl = Ttl::new(3_600_000);

fn lock_table(c: &mut Criterion) {
    let mut group = c.benchmark_group("lock_table");
    group.sample_size(20).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(2));

    // A batch of acquires, then a batch of the releases of what it granted.
    for commands in [1, 64, 1024] {
        let (mut table, sessions) = table_with_sessions(1);
        let mut next = Next { ticket: 1, token: 1 };
        group.throughput(Throughput::Elements(2 * commands));
        group.bench_function(BenchmarkId::new("apply", commands), |bencher| {
            let batches = || acquires_and_releases(sessions[0], &mut next, commands);
            bencher.iter_batched(
                batches,
                |[acquires, releases]| {
                    apply(&mut table, acquires);
                    apply(&mut table, releases);
                },
                BatchSize::LargeInput,
            );
        });
        assert_eq!(table.counts().locks, 0, "every lock that was granted was released");
    }

    for commands in [64, 1024] {
        group.throughput(Throughput::Elements(commands));
        let [acquires, _] =
            acquires_and_releases(SessionId::new(1), &mut Next { ticket: 1, token: 1 }, commands);
        let bytes = acquires.encode();
        group.bench_function(BenchmarkId::new("encode", commands), |bencher| {
            bencher.iter(|| black_box(&acquires).encode());
        });
        group.bench_function(BenchmarkId::new("decode", commands), |bencher| {
            bencher.iter(|| Batch::decode(black_box(&bytes)).expect("encoded just now"));
        });
        group.bench_function(BenchmarkId::new("floor_checksum_and_copy", commands), |bencher| {
            bencher.iter(|| (crc32c::crc32c(black_box(&bytes)), bytes.clone()));
        });
    }
    group.throughput(Throughput::Elements(2 * FLOOR_NAMES));
    group.bench_function(BenchmarkId::new("floor_hash_map", FLOOR_NAMES), |bencher| {
        let names = || (0..FLOOR_NAMES).map(|number| format!("bench:1:{number}")).collect::<Vec<_>>();
        let mut held: HashMap<String, u64> = HashMap::new();
        bencher.iter_batched(
            || [names(), names()],
            |[acquires, releases]| {
                held.extend(acquires.into_iter().zip(0..));
                releases.iter().for_each(|name| assert!(held.remove(name).is_some()));
            },
            BatchSize::LargeInput,
        );
    });

    let (mut table, sessions) = table_with_sessions(10_000);
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("renewals/10000", |bencher| {
        let mut number = 1;
        let renewals = || {
            number += 1;
            renewals(&sessions, RenewalNumber::new(number))
        };
        bencher.iter_batched(renewals, |batch| apply(&mut table, batch), BatchSize::LargeInput);
    });

    // What a restart does: it loads the snapshot and applies the log behind it.
    group.throughput(Throughput::Elements(HELD));
    group.bench_function(BenchmarkId::new("hold", HELD), |bencher| {
        bencher.iter_batched(held_batches, table_with_held, BatchSize::PerIteration);
    });
    let mut table = table_with_held(held_batches());
    let mut chunks = || {
        table.snapshot_begin().expect("no batch is in progress");
        std::iter::from_fn(|| table.snapshot_step(SNAPSHOT_STEP_RECORDS)).collect::<Vec<_>>()
    };
    group.bench_function(BenchmarkId::new("snapshot", HELD), |bencher| bencher.iter(&mut chunks));
    let chunks = chunks();
    group.bench_function(BenchmarkId::new("restore", HELD), |bencher| {
        bencher.iter(|| {
            let mut restore = Restore::new();
            chunks.iter().for_each(|chunk| restore.push(chunk).expect("taken just now"));
            restore.finish().expect("taken just now")
        });
    });
    group.finish();
}

fn apply(table: &mut LockTable, batch: Batch) -> Vec<Output> {
    let mut out = Vec::new();
    table.begin(batch).expect("no batch is in progress");
    while !table.step(STEP_BUDGET, &mut out) {}
    out
}

fn table_with_sessions(count: u64) -> (LockTable, Vec<SessionId>) {
    let mut table = LockTable::new();
    let settings = Settings { limits: Limits::standard(), voters: 3 };
    let configure = Command::Configure { settings, token_start: Token::new(0) };
    let open = |number: u64| Command::Open {
        secret: Secret::new(u128::from(number).to_be_bytes()),
        owner: Owner::new("bench").expect("a short owner"),
        ttl: TTL,
        number: RenewalNumber::new(1),
    };
    let commands = std::iter::once(configure).chain((1..=count).map(open)).collect();
    apply(&mut table, Batch { commands, ..Batch::new(0) });
    assert_eq!(table.counts().sessions, count);
    (table, (1..=count).map(SessionId::new).collect())
}

/// The bytes of the batches by which sessions come to hold [`HELD`] locks, in turn.
fn held_batches() -> Vec<Vec<u8>> {
    let command = |number: u64| {
        let name = format!("held{:04}{number:08}", number / 100_000);
        let (session, ticket) = (SessionId::new(number % HOLDERS + 1), Ticket::new(number / HOLDERS + 1));
        acquire(session, ticket, &name, Ticket::new(1))
    };
    let batch = |first: u64| (first..first + HELD_PER_BATCH).map(command).collect();
    let batches = (0..HELD).step_by(HELD_PER_BATCH as usize).map(batch);
    batches.map(|commands| Batch { commands, ..Batch::new(0) }.encode()).collect()
}

fn table_with_held(batches: Vec<Vec<u8>>) -> LockTable {
    let (mut table, _) = table_with_sessions(HOLDERS);
    for batch in batches {
        apply(&mut table, Batch::decode(&batch).expect("encoded just now"));
    }
    assert_eq!(table.counts().held, HELD);
    table
}

/// The numbers that the next acquire uses, and gets.
struct Next {
    ticket: u64,
    token: u64,
}

/// A batch that acquires `count` locks, and one that releases them. The table counts tokens up, so they are known.
fn acquires_and_releases(session: SessionId, next: &mut Next, count: u64) -> [Batch; 2] {
    let acked = Ticket::new(next.ticket);
    let numbers = (0..count).map(|number| (number, next.ticket + number, next.token + number));
    let acquire = |(number, ticket, _)| {
        acquire(session, Ticket::new(ticket), &format!("bench:{session}:{number}"), acked)
    };
    let release = |(_, ticket, token)| Command::Release {
        session,
        ticket: Ticket::new(ticket),
        token: Token::new(token),
        acked,
    };
    let batch = |commands| Batch { commands, ..Batch::new(0) };
    let batches = [batch(numbers.clone().map(acquire).collect()), batch(numbers.map(release).collect())];
    next.ticket += count;
    next.token += count;
    batches
}

fn acquire(session: SessionId, ticket: Ticket, name: &str, acked: Ticket) -> Command {
    Command::Acquire {
        session,
        ticket,
        names: [Name::new(name).expect("a short name")].into(),
        mode: Mode::Exclusive,
        wait: Wait::None,
        metadata: Metadata::default(),
        acked,
    }
}

fn renewals(sessions: &[SessionId], number: RenewalNumber) -> Batch {
    let renewal = |session: &SessionId| Renewal { session: *session, number, ttl: None };
    Batch { renewals: sessions.iter().map(renewal).collect(), ..Batch::new(1) }
}

criterion_group!(benches, lock_table);
criterion_main!(benches);
