//! The numbers and small values that commands and outcomes are made of.
//!
//! Each is a type of its own, so that a ticket is never taken for a token. Texts are in `text.rs`,
//! bounds in `limits.rs`. Nothing here reads a clock: a [`ClusterTime`] is a number that only
//! batches raise.

use std::collections::BTreeMap;
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $visibility:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility struct $name(u64);

        impl $name {
            /// Wraps the number.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Names a session. Given by the table, counted up from 1, never used twice.
    pub SessionId
}
number! {
    /// Names a request within its session. Counted up by the client.
    pub Ticket
}
number! {
    /// A fencing token: rises with every grant of the cluster, whatever lock it is for.
    pub Token
}
number! {
    /// The number of a renewal, counted up by the client over the opens and renewals of a session.
    pub RenewalNumber
}
number! {
    /// Milliseconds that the cluster has counted. Stands still while there is no leader.
    pub ClusterTime
}
number! {
    /// The length of a lease in milliseconds. Its bounds are in [`Limits`](crate::Limits).
    pub Ttl
}
number! {
    /// Numbers every request ever accepted; the order of all queues.
    pub(crate) Sequence
}

impl ClusterTime {
    /// The time `ms` later; the end of time instead of an overflow.
    pub const fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// The milliseconds from `earlier` to here, 0 if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Token {
    /// The token of the next grant; `None` when the counter is used up.
    pub(crate) const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }
}

impl Ticket {
    /// The ticket after this one; `None` after the last.
    pub(crate) const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }
}

/// 16 random bytes of the client's choice. Who shows them may speak for the session.
///
/// `Debug` prints no byte of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secret([u8; 16]);

impl Secret {
    /// Wraps the bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Compares all 16 bytes, wherever the first difference is, so that the time taken tells
    /// nothing of it.
    pub fn matches(&self, other: &Secret) -> bool {
        let difference = self.0.iter().zip(&other.0).fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What a holder wants others to see beside its name. Opaque to the table: who prints it escapes
/// it.
///
/// None at all costs one word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::box_collection, reason = "an empty map is three words, no map is one")]
pub struct Metadata(Option<Box<BTreeMap<String, String>>>);

impl Metadata {
    /// Takes the entries; their size is checked against the limits when the command is applied.
    pub fn new(entries: BTreeMap<String, String>) -> Self {
        Self((!entries.is_empty()).then(|| Box::new(entries)))
    }

    /// The entries by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|entries| entries.iter()).map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Bytes of all keys and values together.
    pub fn byte_count(&self) -> u64 {
        self.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// How a request shares a lock with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Against everybody.
    Exclusive,
    /// Together with other shared holders.
    Shared,
    /// Together with other permits of the same capacity while their sum fits into it.
    Permits {
        /// How many permits the request takes: 1 to `capacity`.
        permits: u32,
        /// How many the lock has in all.
        capacity: u32,
    },
}

/// How long a request may stay queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wait {
    /// Not at all: granted at once or refused.
    None,
    /// At most so many milliseconds of cluster time; 0 is [`Wait::None`].
    Ms(u64),
    /// Until it is granted, cancelled, or its session ends.
    Forever,
}
