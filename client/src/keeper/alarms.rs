//! When the patience of each caller ends.
//!
//! Most alarms are cleared before they sound, and those that are set together are due together: so they lie in groups,
//! and one is set and cleared without a search through all.

use std::collections::{BTreeMap, btree_map};

use rustc_hash::FxHashSet;
use tokio::time::Instant;

use super::RequestId;

/// A caller's time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Alarm {
    /// If no server was ever reached, none will be waited for.
    Contact,
    /// No call without a wait lasts longer.
    Limit,
    WaitEnd,
    WaitGrace,
    ReadAgain,
}

/// All alarms that are set: at most two a call. No group is empty.
#[derive(Debug, Default)]
pub(super) struct Alarms(BTreeMap<Instant, FxHashSet<(RequestId, Alarm)>>);

impl Alarms {
    pub(super) fn set(&mut self, at: Instant, request: RequestId, alarm: Alarm) {
        self.0.entry(at).or_default().insert((request, alarm));
    }

    pub(super) fn clear(&mut self, at: Instant, request: RequestId, alarm: Alarm) {
        if let btree_map::Entry::Occupied(mut group) = self.0.entry(at) {
            group.get_mut().remove(&(request, alarm));
            if group.get().is_empty() {
                group.remove();
            }
        }
    }

    /// When the first is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.0.first_key_value().map(|(at, _)| *at)
    }

    /// Takes out the first group that is due, by the age of their calls. Whoever sounds them looks whether each is still
    /// set, for one that sounds may clear another.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Instant, Vec<(RequestId, Alarm)>)> {
        let due = self.0.first_entry().filter(|group| *group.key() <= now)?;
        let (at, group) = due.remove_entry();
        let mut group: Vec<_> = group.into_iter().collect();
        group.sort_unstable();
        Some((at, group))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn alarms_sound_in_their_order_unless_they_are_cleared() {
        let (mut alarms, start) = (Alarms::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let request = RequestId;
        alarms.set(at(2), request(1), Alarm::Limit);
        alarms.set(at(1), request(3), Alarm::Limit);
        alarms.set(at(1), request(2), Alarm::WaitEnd);
        alarms.set(at(1), request(2), Alarm::Contact);
        alarms.set(at(0), request(4), Alarm::Limit);
        alarms.clear(at(0), request(4), Alarm::Limit);
        alarms.clear(at(0), request(4), Alarm::Limit);

        assert_eq!(alarms.first(), Some(at(1)));
        assert_eq!(alarms.take_due(at(0)), None);
        let due =
            vec![(request(2), Alarm::Contact), (request(2), Alarm::WaitEnd), (request(3), Alarm::Limit)];
        assert_eq!(alarms.take_due(at(1)), Some((at(1), due)));
        assert_eq!(alarms.take_due(at(1)), None);
        assert_eq!(alarms.take_due(at(2)), Some((at(2), vec![(request(1), Alarm::Limit)])));
        assert_eq!(alarms.first(), None);
    }
}
