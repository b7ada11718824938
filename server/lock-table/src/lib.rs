//! The lock table: who holds which lock, who waits, and whose lease has ended.
//!
//! It is the part of RaftLock that decides. Batches of commands and the time that passed go in,
//! outcomes and events come out, and every node of a cluster that puts in the same batches gets the
//! same table. Everything else in the server carries its decisions around.
//!
//! **What is absent**: nothing here reads a clock, a disk, a socket or a random number, starts a
//! task, or writes a log line. No hash decides an order. There is no error to return from applying:
//! "held by another" is an outcome, and a command that cannot be executed is answered with a
//! [`Rejection`]. No input makes it panic.
//!
//! # What always holds
//!
//! [`LockTable::check`] looks at each of these, and more; tests run it after every batch.
//!
//! - An exclusive lock has at most one holder; shared holders share with shared ones only; permits
//!   never add up to more than their capacity.
//! - Every grant has a token, and tokens rise with every grant of the table, whatever the lock.
//! - Waiters are served in the order in which they came. The oldest waiter of a lock is blocked by
//!   holders only, so requests for several locks at once cannot deadlock, and nobody starves.
//! - Nobody waits for what it could have, and nobody gets anything whose lease has ended.
//! - Time moves only by what batches carry. A lease ends when that much time was counted since its
//!   last renewal, never before. No command takes a lock away.
//! - A ticket is executed at most once, however often it comes.
//!
//! # A batch
//!
//! [`LockTable::begin`] adds the batch's time; [`LockTable::step`] does the rest, a bounded part a
//! call: renewals, then what is due, then the commands, and after each of them all that it sets off
//! (freed locks, grants). A session that ends with a million locks is many short steps.
//!
//! ```
//! use lock_table::*;
//!
//! // One batch, all its steps at once.
//! fn apply(table: &mut LockTable, dt_ms: u64, command: Option<Command>) -> Vec<Output> {
//!     let batch = Batch { commands: command.into_iter().collect(), ..Batch::new(dt_ms) };
//!     table.begin(batch).expect("made under the rules of this code");
//!     let mut out = Vec::new();
//!     while !table.step(1000, &mut out) {}
//!     out
//! }
//! let acquire = |session, ticket| Command::Acquire {
//!     session,
//!     ticket: Ticket::new(ticket),
//!     names: [Name::new("payment:42").unwrap()].into(),
//!     mode: Mode::Exclusive,
//!     wait: Wait::Forever,
//!     metadata: Metadata::default(),
//!     acked: Ticket::new(0),
//! };
//!
//! // A cluster begins with its settings, a client with a session. Its lease is 10 s.
//! let mut table = LockTable::new();
//! let settings = Settings { limits: Limits::standard(), voters: 3 };
//! apply(&mut table, 0, Some(Command::Configure { settings, token_start: Token::new(100) }));
//! for (secret, owner) in [([1; 16], "ann"), ([2; 16], "bob")] {
//!     let open = Command::Open {
//!         secret: Secret::new(secret),
//!         owner: Owner::new(owner).unwrap(),
//!         ttl: Ttl::new(10_000),
//!         number: RenewalNumber::new(1),
//!     };
//!     apply(&mut table, 0, Some(open));
//! }
//! let (ann, bob) = (SessionId::new(1), SessionId::new(2));
//!
//! // Ann gets the lock, Bob waits for it.
//! apply(&mut table, 0, Some(acquire(ann, 1)));
//! apply(&mut table, 0, Some(acquire(bob, 1)));
//! let lock = table.get("payment:42", 10);
//! assert_eq!(lock.holders[0].owner.as_str(), "ann");
//! assert_eq!(lock.waiters[0].owner.as_str(), "bob");
//!
//! // Bob renews, Ann does not. When her lease has ended, the lock is his, under a higher token.
//! let renewal = Renewal { session: bob, number: RenewalNumber::new(2), ttl: None };
//! table.begin(Batch { renewals: vec![renewal], ..Batch::new(9_000) }).unwrap();
//! while !table.step(1000, &mut Vec::new()) {}
//! let out = apply(&mut table, 1_000, None);
//! assert_eq!(
//!     out,
//!     [
//!         Output::Event(Event::SessionEnded { session: ann, cause: EndCause::Expired }),
//!         Output::Event(Event::Granted {
//!             session: bob,
//!             ticket: Ticket::new(1),
//!             token: Token::new(102),
//!             remaining_ms: 9_000,
//!         }),
//!     ]
//! );
//!
//! // He gives it back, and nothing is left of it.
//! let release = Command::Release {
//!     session: bob,
//!     ticket: Ticket::new(1),
//!     token: Token::new(102),
//!     acked: Ticket::new(2),
//! };
//! apply(&mut table, 0, Some(release));
//! assert_eq!(table.counts().locks, 0);
//! table.check().unwrap();
//! ```
//!
//! # Where things are
//!
//! | what | where |
//! |---|---|
//! | what can be asked, and what is answered | `command.rs`, `outcome.rs`, `types.rs`, `text.rs`, `limits.rs` |
//! | the order inside a batch | `table.rs` |
//! | what each command does | `sessions.rs`, `tickets.rs` (streams), `unary.rs` |
//! | who may have a lock, and what follows when one is free | `grant.rs`, `work.rs` |
//! | records, and what is derived from them | `session.rs`, `requests.rs`, `lock.rs`, `sequences.rs`, `deadlines.rs` |
//! | reading | `view.rs`, `check.rs` |
//! | one number that is equal on all nodes | `trail.rs` |
//! | bytes | `envelope.rs`, `wire.rs`, `fields.rs`, `convert.rs`; snapshots: `cow.rs`, `snapshot.rs`, `records.rs`, `restore.rs` |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod check;
mod command;
mod convert;
mod cow;
mod deadlines;
mod envelope;
mod fields;
mod grant;
mod limits;
mod live;
mod lock;
mod outcome;
#[doc(hidden)]
pub mod planted;
mod records;
mod requests;
mod restore;
mod sequences;
mod session;
mod sessions;
mod snapshot;
mod table;
mod text;
mod tickets;
mod trail;
mod types;
mod unary;
mod view;
mod wire;
mod work;

pub use command::{BATCH_BYTES_MAX, Batch, Command, NameList, RULE_VERSION, Renewal, SEAL_BYTES_MAX};
pub use envelope::DecodeError;
pub use limits::{
    Limits, METADATA_BYTES_CEILING, NAMES_PER_REQUEST_CEILING, Settings, TICKET_WINDOW_CEILING,
};
pub use outcome::{Contention, ContentionKind, EndCause, Event, How, Outcome, Output, Rejection};
pub use restore::Restore;
pub use table::{BatchInProgress, BeginError, Counts, LockTable};
pub use text::{NAME_BYTES_CEILING, Name, OWNER_BYTES_CEILING, Owner, REQUEST_ID_BYTES_CEILING, RequestId};
pub use types::{ClusterTime, Metadata, Mode, RenewalNumber, Secret, SessionId, Ticket, Token, Ttl, Wait};
pub use view::{HolderView, LockSummary, LockView, SessionView, WaiterView};
