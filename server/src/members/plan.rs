//! Which change of the membership is due. Pure: everything it depends on is in a [`Scene`].
//!
//! The rules, first that applies:
//! - A joint configuration that is found is finished.
//! - A node that came back with an empty disk (a new id, under the name and at the address of a dead one) takes the
//!   dead one's place.
//! - Where the operator asked for it, a voter that has been dead for long gives its place to a learner, and a
//!   learner that has been dead for long goes.
//! - The number of voters is odd and as near to what was asked for as there are members: the rest are learners. While
//!   a voter is dead, nobody is promoted or demoted for the sake of the number alone.
//!
//! Every change keeps the leader a voter, and no change makes a voter of a node that is not caught up.

use std::collections::BTreeSet;
use std::time::Duration;

/// What is known, on the leader.
#[derive(Clone, Debug)]
pub struct Scene {
    pub me: u64,
    /// How many voters the operator wants; odd.
    pub voters_wanted: usize,
    /// Between two sets of voters.
    pub joint: bool,
    pub members: Vec<Seen>,
    /// How long a member may be dead before it is removed.
    pub remove_dead_after: Option<Duration>,
}

/// One member, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub id: u64,
    pub name: String,
    pub peer_address: String,
    pub voter: bool,
    /// For how long it has been dead; `None` while it is not.
    pub dead_for: Option<Duration>,
    /// Its log has been near the leader's for a while.
    pub caught_up: bool,
}

/// A change to make now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Leave the joint configuration.
    FinishJoint,
    /// Who votes, and who is out altogether.
    Voters { voters: BTreeSet<u64>, out: BTreeSet<u64>, why: &'static str },
}

impl Scene {
    /// The change that is due, if any.
    pub fn due(&self) -> Option<Change> {
        if self.joint {
            return Some(Change::FinishJoint);
        }
        self.wiped().or_else(|| self.dead_for_long()).or_else(|| self.count())
    }

    /// What removing a member comes to: the others vote, as many as there should be.
    pub fn without(&self, id: u64) -> Change {
        let left: Vec<Seen> = self.members.iter().filter(|seen| seen.id != id).cloned().collect();
        let left = Scene { members: left, ..self.clone() };
        let voters = left.counted().unwrap_or_else(|| left.voters());
        Change::Voters { voters, out: BTreeSet::from([id]), why: "removed by the operator" }
    }

    /// What replacing one member by another comes to.
    pub fn replaced(&self, old: u64, new: u64, why: &'static str) -> Change {
        let mut voters = self.voters();
        if voters.remove(&old) {
            voters.insert(new);
        }
        Change::Voters { voters, out: BTreeSet::from([old]), why }
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.members.iter().filter(|seen| seen.voter).map(|seen| seen.id).collect()
    }

    fn wiped(&self) -> Option<Change> {
        let gone = self.members.iter().filter(|seen| seen.dead_for.is_some() && seen.id != self.me);
        gone.filter_map(|old| {
            let new = self.members.iter().find(|new| {
                new.id != old.id
                    && (&new.name, &new.peer_address) == (&old.name, &old.peer_address)
                    && new.caught_up
                    && new.dead_for.is_none()
            })?;
            Some(self.replaced(old.id, new.id, "its disk came back empty"))
        })
        .next()
    }

    fn dead_for_long(&self) -> Option<Change> {
        let patience = self.remove_dead_after?;
        let long_dead =
            |seen: &&Seen| seen.id != self.me && seen.dead_for.is_some_and(|dead| dead >= patience);
        let why = "dead for too long";
        if let Some(learner) = self.members.iter().filter(|seen| !seen.voter).find(long_dead) {
            return Some(Change::Voters { voters: self.voters(), out: BTreeSet::from([learner.id]), why });
        }
        let voter = self.members.iter().filter(|seen| seen.voter).find(long_dead)?;
        let heir = self.candidates().next()?;
        Some(self.replaced(voter.id, heir, why))
    }

    fn count(&self) -> Option<Change> {
        if self.members.iter().any(|seen| seen.voter && seen.dead_for.is_some()) {
            return None;
        }
        let voters = self.counted()?;
        Some(Change::Voters { voters, out: BTreeSet::new(), why: "the number of voters" })
    }

    /// The voters that there should be, if they are others than there are.
    fn counted(&self) -> Option<BTreeSet<u64>> {
        let voters = self.voters();
        let wanted = odd(self.voters_wanted.min(self.members.len()));
        let within_reach = odd((voters.len() + self.candidates().count()).min(wanted));
        let next: BTreeSet<u64> = if voters.len() > wanted {
            self.by_worth().take(wanted).collect()
        } else if within_reach > voters.len() {
            voters.iter().copied().chain(self.candidates()).take(within_reach).collect()
        } else {
            return None;
        };
        (next != voters).then_some(next)
    }

    /// Voters, the ones to keep first: the leader, those that live, then by name.
    fn by_worth(&self) -> impl Iterator<Item = u64> {
        let mut voters: Vec<&Seen> = self.members.iter().filter(|seen| seen.voter).collect();
        voters.sort_by_key(|seen| (seen.id != self.me, seen.dead_for.is_some(), seen.name.clone(), seen.id));
        voters.into_iter().map(|seen| seen.id)
    }

    /// Learners that may vote, by name.
    fn candidates(&self) -> impl Iterator<Item = u64> {
        let fit = |seen: &&Seen| !seen.voter && seen.caught_up && seen.dead_for.is_none();
        let mut fit: Vec<&Seen> = self.members.iter().filter(fit).collect();
        fit.sort_by_key(|seen| (seen.name.clone(), seen.id));
        fit.into_iter().map(|seen| seen.id)
    }
}

/// The largest odd number up to `count`, and at least 1.
fn odd(count: usize) -> usize {
    count.saturating_sub(1) / 2 * 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `v1 v2 l3`: two voters and a learner. `+` behind a learner: caught up; `!`: dead for a minute. Node 1 leads.
    fn scene(voters_wanted: usize, text: &str) -> Scene {
        let seen = |word: &str| {
            let id: u64 = word[1..].trim_end_matches(['+', '!']).parse().expect("a number");
            Seen {
                id,
                name: format!("n{id}"),
                peer_address: format!("n{id}:50052"),
                voter: word.starts_with('v'),
                dead_for: word.ends_with('!').then_some(Duration::from_secs(60)),
                caught_up: word.starts_with('v') || word.ends_with('+'),
            }
        };
        let members = text.split_whitespace().map(seen).collect();
        Scene { me: 1, voters_wanted, joint: false, members, remove_dead_after: None }
    }

    fn voters(change: Option<Change>) -> Option<Vec<u64>> {
        match change? {
            Change::Voters { voters, .. } => Some(voters.into_iter().collect()),
            Change::FinishJoint => None,
        }
    }

    fn out(change: Option<Change>) -> Vec<u64> {
        match change {
            Some(Change::Voters { out, .. }) => out.into_iter().collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn the_number_of_voters_is_odd_and_grows_with_the_caught_up_members() {
        assert_eq!(voters(scene(3, "v1").due()), None);
        assert_eq!(voters(scene(3, "v1 l2+").due()), None, "with two members one votes");
        assert_eq!(voters(scene(3, "v1 l2+ l3").due()), None, "the third is not caught up");
        assert_eq!(voters(scene(3, "v1 l2+ l3+").due()), Some(vec![1, 2, 3]));
        assert_eq!(voters(scene(3, "v1 v2 v3 l4+").due()), None);
        assert_eq!(voters(scene(5, "v1 v2 v3 l4+").due()), None);
        assert_eq!(voters(scene(5, "v1 v2 v3 l4+ l5+ l6+").due()), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(voters(scene(1, "v1 v2 v3").due()), Some(vec![1]));
        assert_eq!(voters(scene(3, "v1 v2").due()), Some(vec![1]));
        assert_eq!(voters(scene(3, "v1 v2 v3 v4 v5").due()), Some(vec![1, 2, 3]));
        assert_eq!(voters(scene(3, "v2 v3 v4 v5 v1").due()), Some(vec![1, 2, 3]), "the leader stays");
        assert_eq!(voters(scene(3, "v1 v2 l3+").due()), Some(vec![1, 2, 3]));
    }

    #[test]
    fn while_a_voter_is_dead_nobody_is_promoted_for_the_number() {
        assert_eq!(scene(5, "v1 v2 v3! l4+ l5+").due(), None);
        assert_eq!(scene(1, "v1 v2 v3!").due(), None);
    }

    #[test]
    fn a_joint_configuration_is_finished_first() {
        let joint = Scene { joint: true, ..scene(3, "v1 l2+ l3+") };
        assert_eq!(joint.due(), Some(Change::FinishJoint));
    }

    #[test]
    fn a_wiped_node_takes_its_own_place_when_it_is_caught_up() {
        let wiped = |text: &str| {
            let mut scene = scene(3, text);
            for seen in &mut scene.members {
                if seen.id == 13 {
                    seen.name = "n3".to_owned();
                    seen.peer_address = "n3:50052".to_owned();
                }
            }
            scene.due()
        };
        assert_eq!(voters(wiped("v1 v2 v3! l13+")), Some(vec![1, 2, 13]));
        assert_eq!(out(wiped("v1 v2 v3! l13+")), [3]);
        assert_eq!(wiped("v1 v2 v3! l13"), None, "not caught up");
        assert_eq!(wiped("v1 v2 v3 l13+"), None, "the old one is not dead yet");
        assert_eq!((voters(wiped("v1 l3! l13+")), out(wiped("v1 l3! l13+"))), (Some(vec![1]), vec![3]));
    }

    #[test]
    fn the_long_dead_go_only_if_the_operator_said_so_and_only_for_an_heir() {
        let patient = |text: &str| {
            let mut scene = scene(3, text);
            scene.remove_dead_after = Some(Duration::from_secs(30));
            scene.due()
        };
        assert_eq!(scene(3, "v1 v2 v3! l4+").due(), None);
        assert_eq!(voters(patient("v1 v2 v3! l4+")), Some(vec![1, 2, 4]));
        assert_eq!(out(patient("v1 v2 v3! l4+")), [3]);
        assert_eq!(patient("v1 v2 v3!"), None, "nobody to take its place");
        assert_eq!(patient("v1 v2 v3! l4"), None, "nobody who is caught up");
        assert_eq!(out(patient("v1 v2 v3 l4!")), [4]);
    }

    #[test]
    fn who_is_removed_leaves_an_odd_number_of_voters() {
        let without = |text: &str, id| Some(scene(3, text).without(id));
        assert_eq!(voters(without("v1 v2 v3", 3)), Some(vec![1]));
        assert_eq!(voters(without("v1 v2 v3 l4+", 3)), Some(vec![1, 2, 4]));
        assert_eq!(voters(without("v1 v2 v3 l4+", 4)), Some(vec![1, 2, 3]));
        assert_eq!(out(without("v1 v2 v3", 2)), [2]);
    }
}
