//! A set of sequence numbers: the holders of one lock, or its queue.
//!
//! Numbers enter at the end, because they are counted up, and leave anywhere. None or one costs no
//! allocation, which is what most locks have. Many lie in sorted chunks, so that a removal moves at
//! most one chunk and a place in the queue is found by adding up the lengths of the chunks before
//! it: of 100,000 waiters, at most some 1,600 additions.

use crate::types::Sequence;

/// Numbers of a full chunk: two kilobytes, which are moved in less time than a map looks one up.
const CHUNK_LEN: usize = 256;
/// A chunk below this joins its neighbour if both together are at most half full.
const CHUNK_LEN_LOW: usize = 64;

#[derive(Debug, Default)]
pub(crate) enum SequenceSet {
    #[default]
    None,
    One(Sequence),
    Many(Box<Chunks>),
}

/// At least two numbers, rising through all chunks; no chunk is empty.
#[derive(Debug)]
pub(crate) struct Chunks {
    len: usize,
    chunks: Vec<Vec<Sequence>>,
}

impl SequenceSet {
    /// Adds a number above all that are in it.
    pub(crate) fn push(&mut self, sequence: Sequence) {
        debug_assert!(self.last() < Some(sequence));
        match self {
            Self::None => *self = Self::One(sequence),
            Self::One(first) => {
                let chunks = vec![vec![*first, sequence]];
                *self = Self::Many(Box::new(Chunks { len: 2, chunks }));
            }
            Self::Many(many) => many.push(sequence),
        }
    }

    /// Takes a number out; `false` if it was not in.
    pub(crate) fn remove(&mut self, sequence: Sequence) -> bool {
        match self {
            Self::None => false,
            Self::One(only) => {
                let found = *only == sequence;
                if found {
                    *self = Self::None;
                }
                found
            }
            Self::Many(many) => {
                let found = many.remove(sequence);
                if many.len == 1 {
                    *self = Self::One(many.chunks[0][0]);
                }
                found
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(many) => many.len,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(crate) fn first(&self) -> Option<Sequence> {
        self.iter().next()
    }

    pub(crate) fn last(&self) -> Option<Sequence> {
        self.iter().next_back()
    }

    /// How many numbers lie below this one.
    pub(crate) fn rank(&self, sequence: Sequence) -> usize {
        self.partition(|other| other < sequence).0
    }

    /// Of a condition that holds up to some point and not after it: for how many it holds, and the
    /// first for which it does not.
    pub(crate) fn partition(&self, mut holds: impl FnMut(Sequence) -> bool) -> (usize, Option<Sequence>) {
        match self {
            Self::None => (0, None),
            Self::One(only) if holds(*only) => (1, None),
            Self::One(only) => (0, Some(*only)),
            Self::Many(many) => many.partition(holds),
        }
    }

    /// In rising order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Sequence> {
        let (one, many) = match self {
            Self::None => (None, &[][..]),
            Self::One(only) => (Some(*only), &[][..]),
            Self::Many(many) => (None, &many.chunks[..]),
        };
        one.into_iter().chain(many.iter().flatten().copied())
    }
}

impl Chunks {
    fn push(&mut self, sequence: Sequence) {
        self.len += 1;
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK_LEN => chunk.push(sequence),
            _ => self.chunks.push(vec![sequence]),
        }
    }

    fn remove(&mut self, sequence: Sequence) -> bool {
        let index = self.chunk_index(|other| other < sequence);
        let Some(chunk) = self.chunks.get_mut(index) else {
            return false;
        };
        let Ok(position) = chunk.binary_search(&sequence) else {
            return false;
        };
        chunk.remove(position);
        self.len -= 1;
        let chunk_len = chunk.len();
        if chunk_len == 0 {
            self.chunks.remove(index);
        } else if chunk_len < CHUNK_LEN_LOW && index + 1 < self.chunks.len() {
            self.join(index);
        } else if chunk_len < CHUNK_LEN_LOW && index > 0 {
            self.join(index - 1);
        }
        true
    }

    /// Joins a chunk with the next if that leaves room for more.
    fn join(&mut self, index: usize) {
        if self.chunks[index].len() + self.chunks[index + 1].len() <= CHUNK_LEN / 2 {
            let next = self.chunks.remove(index + 1);
            self.chunks[index].extend(next);
        }
    }

    /// The chunk in which a condition stops to hold.
    fn chunk_index(&self, mut holds: impl FnMut(Sequence) -> bool) -> usize {
        self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| holds(*last)))
    }

    fn partition(&self, mut holds: impl FnMut(Sequence) -> bool) -> (usize, Option<Sequence>) {
        let index = self.chunk_index(&mut holds);
        let Some(chunk) = self.chunks.get(index) else {
            return (self.len, None);
        };
        let position = chunk.partition_point(|other| holds(*other));
        let before: usize = self.chunks[..index].iter().map(Vec::len).sum();
        (before + position, chunk.get(position).copied())
    }
}

impl PartialEq for SequenceSet {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn does_what_a_plain_set_does(
            pushes in 0u64..900,
            removals in proptest::collection::vec(0u64..900, 0..700),
        ) {
            let (mut set, mut plain) = (SequenceSet::default(), BTreeSet::new());
            for number in 1..=pushes {
                set.push(Sequence::new(number));
                plain.insert(Sequence::new(number));
            }
            for number in removals {
                let number = Sequence::new(number);
                prop_assert_eq!(set.remove(number), plain.remove(&number));
                prop_assert_eq!(set.len(), plain.len());
                prop_assert_eq!(set.rank(number), plain.range(..number).count());
                prop_assert_eq!(set.first(), plain.first().copied());
                prop_assert_eq!(set.last(), plain.last().copied());
                let next = plain.range(number..).next().copied();
                prop_assert_eq!(set.partition(|other| other < number).1, next);
            }
            prop_assert!(set.iter().eq(plain.into_iter()));
        }
    }

    #[test]
    fn none_or_one_costs_no_allocation() {
        assert_eq!(size_of::<SequenceSet>(), 16);
    }
}
