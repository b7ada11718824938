//! An ordered map that can be read as it was while it changes.
//!
//! After [`read_begin`](CowMap::read_begin), [`read_next`](CowMap::read_next) hands out the entries
//! as they were then, in key order and as slowly as the caller likes. A change at or above the
//! point reached first puts the old value aside; below it nothing is kept, and without a reading in
//! progress a change costs what it costs in a plain map.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

#[derive(Debug)]
pub(crate) struct CowMap<K, V> {
    map: BTreeMap<K, V>,
    reading: Option<Reading<K, V>>,
}

#[derive(Debug)]
struct Reading<K, V> {
    /// The last key handed out.
    passed: Option<K>,
    /// What entries above `passed` were when the reading began, if they changed since; `None`:
    /// there was none.
    before: BTreeMap<K, Option<V>>,
}

impl<K: Ord + Copy, V: Clone> CowMap<K, V> {
    pub(crate) fn get(&self, key: K) -> Option<&V> {
        self.map.get(&key)
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (K, &V)> {
        self.map.iter().map(|(key, value)| (*key, value))
    }

    pub(crate) fn last_key(&self) -> Option<K> {
        self.map.last_key_value().map(|(key, _)| *key)
    }

    /// The first key within a range.
    pub(crate) fn first_in(&self, range: impl RangeBounds<K>) -> Option<K> {
        self.map.range(range).next().map(|(key, _)| *key)
    }

    /// The entries within a range.
    pub(crate) fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (K, &V)> {
        self.map.range(range).map(|(key, value)| (*key, value))
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let value = self.map.get_mut(&key)?;
        if let Some(reading) = &mut self.reading {
            reading.set_aside(key, Some(value));
        }
        Some(value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let before = self.map.insert(key, value);
        if let Some(reading) = &mut self.reading {
            reading.set_aside(key, before.as_ref());
        }
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let before = self.map.remove(&key)?;
        if let Some(reading) = &mut self.reading {
            reading.set_aside(key, Some(&before));
        }
        Some(before)
    }

    /// Begins to read the map as it is now; forgets a reading in progress.
    pub(crate) fn read_begin(&mut self) {
        self.reading = Some(Reading { passed: None, before: BTreeMap::new() });
    }

    /// The next entry, as it was at [`read_begin`](Self::read_begin). After the last one the
    /// reading is over.
    pub(crate) fn read_next(&mut self) -> Option<(K, V)> {
        let reading = self.reading.as_mut()?;
        loop {
            let above = match reading.passed {
                None => Bound::Unbounded,
                Some(passed) => Bound::Excluded(passed),
            };
            let current = self.map.range((above, Bound::Unbounded)).next();
            let aside = reading.before.first_key_value().map(|(key, _)| *key);
            let (key, value) = match (current, aside) {
                (None, None) => {
                    self.reading = None;
                    return None;
                }
                (Some((key, value)), aside) if aside.is_none_or(|aside| *key < aside) => {
                    (*key, Some(value.clone()))
                }
                (_, _) => reading.before.pop_first().expect("the arm above took the case without one"),
            };
            reading.passed = Some(key);
            if let Some(value) = value {
                return Some((key, value));
            }
        }
    }

    /// Ends a reading before its last entry.
    pub(crate) fn read_abort(&mut self) {
        self.reading = None;
    }
}

impl<K: Ord + Copy, V: Clone> Reading<K, V> {
    fn set_aside(&mut self, key: K, value: Option<&V>) {
        if self.passed.is_none_or(|passed| key > passed) {
            self.before.entry(key).or_insert_with(|| value.cloned());
        }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self { map: BTreeMap::new(), reading: None }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for CowMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.map == other.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Insert(u8, u8),
        Change(u8, u8),
        Remove(u8),
        Next,
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = 0u8..24;
        prop_oneof![
            (key.clone(), any::<u8>()).prop_map(|(key, value)| Op::Insert(key, value)),
            (key.clone(), any::<u8>()).prop_map(|(key, value)| Op::Change(key, value)),
            key.prop_map(Op::Remove),
            Just(Op::Next),
        ]
    }

    proptest! {
        #[test]
        fn a_reading_shows_the_map_as_it_was(
            start in proptest::collection::btree_map(0u8..24, any::<u8>(), 0..20),
            ops in proptest::collection::vec(op(), 0..80),
        ) {
            let mut map = CowMap { map: start.clone(), reading: None };
            let mut plain = start.clone();
            map.read_begin();
            let mut read = Vec::new();
            for op in ops {
                match op {
                    Op::Insert(key, value) => {
                        map.insert(key, value);
                        plain.insert(key, value);
                    }
                    Op::Change(key, value) => {
                        let changed = map.get_mut(key).map(|old| *old = value).is_some();
                        prop_assert_eq!(changed, plain.contains_key(&key));
                        plain.entry(key).and_modify(|old| *old = value);
                    }
                    Op::Remove(key) => prop_assert_eq!(map.remove(key), plain.remove(&key)),
                    Op::Next => read.extend(map.read_next()),
                }
            }
            read.extend(std::iter::from_fn(|| map.read_next()));
            prop_assert_eq!(read, start.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(map.map, plain);
        }
    }
}
