//! Rules of the lock table that clients of a sound cluster never put to the test: an old token, and a session whose
//! deadline has passed while more were due than one batch removes. (Scripts and properties of the table itself are in
//! its own crate.)

use lock_table::{
    Batch, Command, Limits, LockTable, Metadata, Mode, Name, Outcome, Output, Owner, RenewalNumber, Secret,
    SessionId, Settings, Ticket, Token, Ttl, Wait,
};

use crate::tally::Tally;

/// More than one batch removes.
const DUE: u64 = 4_096 + 50;

/// Puts both to the test, in the way of one seed.
///
/// # Errors
/// What was wrong.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    old_token(&mut rng)?;
    overdue(&mut rng)?;
    let mut tally = Tally::default();
    tally.add("table schedules", 1);
    Ok(tally)
}

struct Table(LockTable);

impl Table {
    fn new() -> Table {
        let mut table = Table(LockTable::new());
        let settings = Settings { limits: Limits::standard(), voters: 3 };
        table.run(0, vec![Command::Configure { settings, token_start: Token::new(0) }]);
        table
    }

    /// Runs a batch and gives the outcome of each command.
    fn run(&mut self, dt_ms: u64, commands: Vec<Command>) -> Vec<Outcome> {
        let mut outputs = Vec::new();
        self.0.begin(Batch { commands, ..Batch::new(dt_ms) }).expect("rules that it knows");
        while !self.0.step(usize::MAX, &mut outputs) {}
        let outcome = |output| match output {
            Output::Outcome { outcome, .. } => Some(outcome),
            Output::Event(_) => None,
        };
        outputs.into_iter().filter_map(outcome).collect()
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

fn owner(text: &str) -> Owner {
    Owner::new(text).expect("a good owner")
}

/// E5: an unlock with an old token leaves the newer grant alone.
fn old_token(rng: &mut fastrand::Rng) -> Result<(), String> {
    let mut table = Table::new();
    let lock = |ttl| Command::UnaryLock {
        owner: owner("a"),
        name: name("k"),
        request_id: None,
        ttl: Ttl::new(ttl),
        wait_ms: 0,
        mode: Mode::Exclusive,
        metadata: Metadata::default(),
    };
    let unlock = |token| Command::UnaryUnlock {
        owner: owner("a"),
        name: name("k"),
        request_id: None,
        token: Some(token),
    };
    let ttl = rng.u64(1_000..5_000);
    let first = granted(&table.run(0, vec![lock(ttl)]))?;
    // It expires, and the same owner has it again.
    while table.0.has_sessions() {
        table.run(400, Vec::new());
    }
    let second = granted(&table.run(0, vec![lock(ttl)]))?;
    table.run(rng.u64(0..400), vec![unlock(first)]);
    match table.run(0, vec![unlock(second)]).as_slice() {
        [Outcome::Unlocked { token }] if *token == second => Ok(()),
        other => Err(format!("E5: token {first:?} released what {second:?} held: {other:?}")),
    }
}

fn granted(outcomes: &[Outcome]) -> Result<Token, String> {
    match outcomes {
        [Outcome::Granted { token, .. }] => Ok(*token),
        other => Err(format!("a free lock was not granted: {other:?}")),
    }
}

/// T4: a session past its deadline is granted nothing, also before it is removed.
fn overdue(rng: &mut fastrand::Rng) -> Result<(), String> {
    let mut table = Table::new();
    let open = |at: u64| Command::Open {
        secret: Secret::new([at.to_le_bytes(), [7; 8]].concat().try_into().expect("16 bytes")),
        owner: owner("o"),
        ttl: Ttl::new(1_000),
        number: RenewalNumber::new(1),
    };
    table.run(0, (0..DUE).map(open).collect());
    let ask = |session: u64| Command::Acquire {
        session: SessionId::new(session),
        ticket: Ticket::new(1),
        names: [name("k")].into(),
        mode: Mode::Exclusive,
        wait: Wait::None,
        metadata: Metadata::default(),
        acked: Ticket::new(1),
    };
    table.run(400, Vec::new());
    table.run(400, Vec::new());
    // Past all deadlines: one batch removes the first 4,096 only.
    let last = DUE - rng.u64(0..40);
    match table.run(400, vec![ask(last)]).as_slice() {
        [Outcome::SessionUnknown { .. }] => Ok(()),
        other => Err(format!("T4: a session past its deadline was answered {other:?}")),
    }
}
