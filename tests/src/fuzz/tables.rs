//! Batches of commands and snapshots of the lock table.

use lock_table::{
    Batch, Command, Limits, LockTable, Metadata, Mode, Name, Owner, Renewal, RenewalNumber, RequestId,
    Restore, Secret, SessionId, Settings, Ticket, Token, Ttl, Wait,
};

use super::{INPUTS, change, count, hex};
use crate::tally::Tally;

/// Format bytes of `lock_table`'s envelope, which is: format, CRC32C over format and body in little-endian, body.
const BATCH: u8 = 0x11;
const SNAPSHOT: u8 = 0x22;
const ENVELOPE: usize = 5;

/// Names, sessions and tickets are few, so that commands meet.
const FEW: u64 = 6;

pub(super) fn batches(rng: &mut fastrand::Rng, tally: &mut Tally) -> Result<(), String> {
    let (mut table, mut twin) = (LockTable::new(), LockTable::new());
    let mut valid = Vec::new();
    for batch in beginning(rng) {
        valid.push(batch.encode()[ENVELOPE..].to_vec());
        apply(&mut table, batch.clone())?;
        apply(&mut twin, batch)?;
    }
    for _ in 0..INPUTS {
        let mut body = valid[rng.usize(0..valid.len())].clone();
        change(rng, &mut body, &valid);
        let bytes = sealed(rng, BATCH, &body);
        let read = Batch::decode(&bytes);
        count(tally, "batches", read.is_ok());
        let Ok(batch) = read else { continue };
        let wrong = |what: String| format!("{what}; the batch: {}", hex(&bytes));
        let again =
            Batch::decode(&batch.encode()).map_err(|error| wrong(format!("not read again: {error}")))?;
        if again != batch {
            return Err(wrong(format!("{batch:?} is read again as {again:?}")));
        }
        apply(&mut table, batch).map_err(wrong)?;
        apply(&mut twin, again).map_err(wrong)?;
    }
    if chunks(&mut table, 100) != chunks(&mut twin, 100) {
        return Err("two tables that took the same batches differ".to_owned());
    }
    Ok(())
}

pub(super) fn snapshots(rng: &mut fastrand::Rng, tally: &mut Tally) -> Result<(), String> {
    let mut table = LockTable::new();
    for batch in beginning(rng) {
        apply(&mut table, batch)?;
    }
    let valid: Vec<Vec<u8>> =
        chunks(&mut table, 4).into_iter().map(|chunk| chunk[ENVELOPE..].to_vec()).collect();
    for _ in 0..INPUTS {
        let mut bodies = valid.clone();
        let at = rng.usize(0..bodies.len());
        change(rng, &mut bodies[at], &valid);
        let sealed: Vec<Vec<u8>> = bodies.iter().map(|body| sealed(rng, SNAPSHOT, body)).collect();
        let mut restore = Restore::new();
        let read = sealed.iter().try_for_each(|chunk| restore.push(chunk)).and_then(|()| restore.finish());
        count(tally, "snapshots", read.is_ok());
        let Ok(mut table) = read else { continue };
        let wrong = |what: String| format!("{what}; chunk {at}: {}", hex(&sealed[at]));
        table.check().map_err(wrong)?;
        let mut again = Restore::new();
        let written = chunks(&mut table, 3);
        let read = written.iter().try_for_each(|chunk| again.push(chunk)).and_then(|()| again.finish());
        let mut again = read.map_err(|error| wrong(format!("its own snapshot is not read: {error}")))?;
        for _ in 0..5 {
            let batch = some_batch(rng);
            apply(&mut table, batch.clone()).map_err(wrong)?;
            apply(&mut again, batch).map_err(wrong)?;
        }
        if chunks(&mut table, 100) != chunks(&mut again, 100) {
            return Err(wrong("a table and the one restored from it differ".to_owned()));
        }
    }
    Ok(())
}

/// With the right checksum, but for a few.
fn sealed(rng: &mut fastrand::Rng, format: u8, body: &[u8]) -> Vec<u8> {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[format]), body);
    let wrong = u32::from(rng.u8(0..20) == 0);
    [&[format][..], &(sum ^ wrong).to_le_bytes(), body].concat()
}

fn chunks(table: &mut LockTable, budget: usize) -> Vec<Vec<u8>> {
    table.snapshot_begin().expect("no batch is in progress");
    std::iter::from_fn(|| table.snapshot_step(budget)).collect()
}

/// A batch that the table does not know the rules of has no effect; every other one keeps the invariants.
fn apply(table: &mut LockTable, batch: Batch) -> Result<(), String> {
    let mut outputs = Vec::new();
    if table.begin(batch).is_ok() {
        while !table.step(7, &mut outputs) {}
    }
    table.check()
}

fn beginning(rng: &mut fastrand::Rng) -> Vec<Batch> {
    let settings = Settings { limits: Limits::standard(), voters: 3 };
    let configure = Command::Configure { settings, token_start: Token::new(rng.u64(0..1_000)) };
    let first = Batch { commands: vec![configure], ..Batch::new(0) };
    std::iter::once(first).chain((0..20).map(|_| some_batch(rng))).collect()
}

fn some_batch(rng: &mut fastrand::Rng) -> Batch {
    let renewal = |rng: &mut fastrand::Rng| Renewal {
        session: SessionId::new(rng.u64(0..FEW)),
        number: RenewalNumber::new(rng.u64(0..9)),
        ttl: rng.bool().then(|| some_ttl(rng)),
    };
    Batch {
        stamp: rng.u64(..),
        renewals_complete: rng.u8(0..5) > 0,
        renewals: (0..rng.u8(0..3)).map(|_| renewal(rng)).collect(),
        commands: (0..rng.u8(0..8)).map(|_| some_command(rng)).collect(),
        ..Batch::new(rng.u64(0..=400))
    }
}

fn some_ttl(rng: &mut fastrand::Rng) -> Ttl {
    Ttl::new(rng.u64(1_000..10_000))
}

fn some_name(rng: &mut fastrand::Rng) -> Name {
    Name::new(&format!("lock-{}", rng.u64(0..FEW))).expect("a good name")
}

fn some_owner(rng: &mut fastrand::Rng) -> Owner {
    Owner::new(&format!("owner-{}", rng.u64(0..FEW))).expect("a good owner")
}

fn some_mode(rng: &mut fastrand::Rng) -> Mode {
    match rng.u8(0..5) {
        0 => Mode::Shared,
        1 => Mode::Permits { permits: rng.u32(1..4), capacity: 4 },
        _ => Mode::Exclusive,
    }
}

fn some_command(rng: &mut fastrand::Rng) -> Command {
    let session = SessionId::new(rng.u64(0..FEW));
    let (ticket, acked) = (Ticket::new(rng.u64(0..FEW)), Ticket::new(rng.u64(0..3)));
    let token = Token::new(rng.u64(0..1_100));
    match rng.u8(0..12) {
        0..=2 => Command::Open {
            secret: Secret::new([rng.u8(0..FEW as u8); 16]),
            owner: some_owner(rng),
            ttl: some_ttl(rng),
            number: RenewalNumber::new(rng.u64(0..9)),
        },
        3 => Command::Close { session },
        4..=6 => {
            let wait = match rng.u8(0..3) {
                0 => Wait::None,
                1 => Wait::Ms(rng.u64(1..5_000)),
                _ => Wait::Forever,
            };
            let mut names: Vec<Name> = (0..rng.u8(1..3)).map(|_| some_name(rng)).collect();
            names.dedup();
            let entries = (0..rng.u8(0..2)).map(|at| (format!("key-{at}"), "value".to_owned()));
            let metadata = Metadata::new(entries.collect());
            Command::Acquire {
                session,
                ticket,
                names: names.into(),
                mode: some_mode(rng),
                wait,
                metadata,
                acked,
            }
        }
        7 => Command::Cancel { session, ticket, acked },
        8 => Command::Release { session, ticket, token, acked },
        9 => Command::UnaryLock {
            owner: some_owner(rng),
            name: some_name(rng),
            request_id: rng.bool().then(|| RequestId::new(&format!("r{}", rng.u8(0..4))).expect("a good id")),
            ttl: some_ttl(rng),
            wait_ms: rng.u64(0..1_000),
            mode: some_mode(rng),
            metadata: Metadata::default(),
        },
        10 => Command::UnaryUnlock {
            owner: some_owner(rng),
            name: some_name(rng),
            request_id: None,
            token: rng.bool().then_some(token),
        },
        _ => Command::UnaryRenew {
            owner: some_owner(rng),
            name: some_name(rng),
            token: rng.bool().then_some(token),
            ttl: some_ttl(rng),
        },
    }
}
