//! When each member last answered, and what follows from it. Pure: the time is an argument.
//!
//! The observer's own stalls are left out: time counts at most [`STEP_MAX`] between two looks, so a node that was
//! frozen accuses nobody when it wakes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Liveness;

/// How often each member is asked.
pub const PING_EVERY: Duration = Duration::from_millis(250);

/// How long an answer may take. Two asked in a row and unanswered make a suspect.
pub const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Silence that makes a member suspect: three pings.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(750);

/// Silence that makes it dead: six pings. With the time to the next look it shows within two seconds.
pub const DEAD_AFTER: Duration = Duration::from_millis(1_500);

/// The most that counts between two looks.
const STEP_MAX: Duration = Duration::from_millis(500);

/// Every member's last answer.
#[derive(Debug, Default)]
pub struct Contacts {
    /// The observer's own time, its stalls left out.
    now: Duration,
    looked: Option<Duration>,
    members: BTreeMap<u64, Contact>,
}

#[derive(Clone, Copy, Debug)]
struct Contact {
    /// The last answer, or when the member was first looked for.
    at: Duration,
    answered: bool,
    last_log: u64,
}

/// What is known of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contacted {
    pub liveness: Liveness,
    /// For how long it has been silent.
    pub silent_for: Duration,
    /// Whether it ever answered.
    pub answered: bool,
    /// Its last log index, as it said itself.
    pub last_log: Option<u64>,
}

impl Contacts {
    /// Moves the observer's time, and looks for `members` and for nobody else.
    pub fn look(&mut self, monotonic: Duration, members: impl IntoIterator<Item = u64>) {
        let before = self.looked.replace(monotonic).unwrap_or(monotonic);
        self.now += monotonic.saturating_sub(before).min(STEP_MAX);
        let known = std::mem::take(&mut self.members);
        let fresh = Contact { at: self.now, answered: false, last_log: 0 };
        self.members = members.into_iter().map(|id| (id, known.get(&id).copied().unwrap_or(fresh))).collect();
    }

    /// A member answered just now.
    pub fn answered(&mut self, id: u64, last_log: u64) {
        let now = self.now;
        if let Some(contact) = self.members.get_mut(&id) {
            *contact = Contact { at: now, answered: true, last_log };
        }
    }

    /// What is known of a member that is looked for.
    pub fn of(&self, id: u64) -> Option<Contacted> {
        let contact = self.members.get(&id)?;
        let silent_for = self.now - contact.at;
        Some(Contacted {
            liveness: match silent_for {
                silent if silent >= DEAD_AFTER => Liveness::Dead,
                silent if silent >= SUSPECT_AFTER => Liveness::Suspect,
                _ => Liveness::Alive,
            },
            silent_for,
            answered: contact.answered,
            last_log: contact.answered.then_some(contact.last_log),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: u64 = 2;

    fn watched(contacts: &mut Contacts, from_ms: u64, to_ms: u64) -> Liveness {
        for ms in (from_ms..=to_ms).step_by(PING_EVERY.as_millis() as usize) {
            contacts.look(Duration::from_millis(ms), [PEER]);
        }
        contacts.of(PEER).expect("it is looked for").liveness
    }

    #[test]
    fn a_silent_member_is_suspect_and_then_dead_and_an_answer_brings_it_back() {
        let mut contacts = Contacts::default();
        assert_eq!(watched(&mut contacts, 0, 0), Liveness::Alive);
        contacts.answered(PEER, 7);
        assert_eq!(watched(&mut contacts, 250, 500), Liveness::Alive);
        assert_eq!(watched(&mut contacts, 750, 1_250), Liveness::Suspect);
        assert_eq!(watched(&mut contacts, 1_500, 1_500), Liveness::Dead);
        contacts.answered(PEER, 9);
        let back = contacts.of(PEER).expect("it is looked for");
        assert_eq!((back.liveness, back.last_log), (Liveness::Alive, Some(9)));
    }

    #[test]
    fn a_frozen_observer_accuses_nobody() {
        let mut contacts = Contacts::default();
        watched(&mut contacts, 0, 0);
        contacts.answered(PEER, 7);
        contacts.look(Duration::from_secs(3_600), [PEER]);
        assert_eq!(contacts.of(PEER).expect("it is looked for").liveness, Liveness::Alive);
    }

    #[test]
    fn who_never_answered_dies_as_well_and_who_left_is_forgotten() {
        let mut contacts = Contacts::default();
        assert_eq!(watched(&mut contacts, 0, 2_000), Liveness::Dead);
        assert_eq!(contacts.of(PEER).expect("it is looked for").last_log, None);
        contacts.look(Duration::from_millis(2_250), []);
        assert_eq!(contacts.of(PEER), None);
    }
}
