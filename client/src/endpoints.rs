//! Whom to ask next, given what the endpoints answered so far.
//!
//! Pure: no sockets, no clock, no randomness beyond the starting place it is given.
//!
//! - Every endpoint gets a chance before any gets a second one (a *round*).
//! - The first answer pins the cluster. An endpoint of another cluster counts as failed, and says so.
//! - A leader's address from outside the configured ones is tried at the next connect only, and only once a cluster
//!   is pinned that its answer can be checked against. Only a configured endpoint is believed about it: strangers that
//!   name each other would otherwise be asked in a circle, without end and without a pause.

use crate::error::{EndpointFailure, Failure};

/// One to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `host:port`.
    pub address: String,
}

#[derive(Debug)]
pub(crate) struct Endpoints {
    known: Vec<Known>,
    /// Where the next round goes on.
    next: usize,
    next_standby: usize,
    hint: Option<String>,
    cluster: Option<String>,
}

#[derive(Debug)]
struct Known {
    address: String,
    failure: Option<Failure>,
    /// In this round.
    tried: bool,
    warned: bool,
}

/// What the answer of an endpoint says about it.
#[derive(Debug, PartialEq)]
pub(crate) enum Reached {
    Ours,
    /// Not one of ours; the text says why. To be warned about if it is the first time.
    Foreign {
        reason: String,
        is_news: bool,
    },
}

impl Endpoints {
    /// Addresses are distinct and at least one; `start` is the place of the first.
    pub(crate) fn new(addresses: Vec<String>, start: usize) -> Endpoints {
        let known = |address| Known { address, failure: None, tried: false, warned: false };
        let known = addresses.into_iter().map(known).collect();
        Endpoints { known, next: start, next_standby: start, hint: None, cluster: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is another than this one.
    pub(crate) fn has_other(&self, address: &str) -> bool {
        self.known.iter().any(|known| known.address != address)
    }

    /// The one at this address, if it is not `but`.
    pub(crate) fn known(&self, address: &str, but: &Target) -> Option<Target> {
        let known = self.known.iter().find(|known| known.address == address && address != but.address);
        known.map(|known| Target { address: known.address.clone() })
    }

    /// How many are left in this round.
    pub(crate) fn untried(&self) -> usize {
        self.known.iter().filter(|known| !known.tried).count()
    }

    pub(crate) fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// The next to connect to. `avoid` is one that asked to be left, `prefer` one that is connected already; `None`
    /// if there is no other than the avoided.
    pub(crate) fn choose(&mut self, avoid: Option<&str>, prefer: Option<&str>) -> Option<Target> {
        let wanted = |address: &str| avoid != Some(address);
        if let Some(address) = self.hint.take().filter(|address| wanted(address)) {
            return Some(Target { address });
        }
        if !self.known.iter().any(|known| wanted(&known.address)) {
            return None;
        }
        let open = |known: &Known| !known.tried && wanted(&known.address);
        if !self.known.iter().any(open) {
            self.known.iter_mut().for_each(|known| known.tried = false);
        }
        let preferred =
            self.known.iter().position(|known| open(known) && prefer == Some(known.address.as_str()));
        let in_turn = || (0..self.known.len()).map(|i| (self.next + i) % self.known.len());
        let index = preferred.or_else(|| in_turn().find(|&i| open(&self.known[i])))?;
        self.next = (index + 1) % self.known.len();
        Some(Target { address: self.known[index].address.clone() })
    }

    /// One to keep connected beside the one in use; another each time, because the last may be down.
    pub(crate) fn choose_standby(&mut self, in_use: &str) -> Option<Target> {
        let in_turn = (0..self.known.len()).map(|i| (self.next_standby + i) % self.known.len());
        let index = in_turn.into_iter().find(|&i| self.known[i].address != in_use)?;
        self.next_standby = (index + 1) % self.known.len();
        Some(Target { address: self.known[index].address.clone() })
    }

    /// It did not do. True if the round is over: pause before the next. `avoid` is one that is not asked anyway.
    pub(crate) fn failed(&mut self, target: &Target, failure: &Failure, avoid: Option<&str>) -> bool {
        if let Some(known) = self.known.iter_mut().find(|known| known.address == target.address) {
            known.tried = true;
            known.failure = Some(failure.clone());
            if let Some(leader) = &failure.leader {
                self.note_leader(leader, avoid);
            }
        }
        let is_open = |known: &Known| !known.tried && avoid != Some(known.address.as_str());
        self.hint.is_none() && !self.known.iter().any(is_open)
    }

    /// A hint from one that failed. Not followed to where it came from, or the two would chase each other.
    fn note_leader(&mut self, leader: &str, avoid: Option<&str>) {
        let leader = leader.strip_prefix("http://").unwrap_or(leader);
        let is_known = self.known.iter().find(|known| known.address == leader);
        let is_usable = match is_known {
            Some(known) => !known.tried,
            None => self.cluster.is_some(),
        };
        if is_usable && !leader.is_empty() && avoid != Some(leader) {
            self.hint = Some(leader.to_owned());
        }
    }

    /// It answered, and names its cluster.
    pub(crate) fn reached(&mut self, target: &Target, cluster: Option<&str>) -> Reached {
        let reason = match (cluster, &self.cluster) {
            (Some(cluster), None) => {
                self.cluster = Some(cluster.to_owned());
                return Reached::Ours;
            }
            (Some(cluster), Some(ours)) if cluster == ours => return Reached::Ours,
            (Some(cluster), Some(ours)) => {
                format!("belongs to cluster {cluster}, not to {ours}; skipped")
            }
            (None, _) => "names no cluster, so it is no RaftLock server; skipped".to_owned(),
        };
        let known = self.known.iter_mut().find(|known| known.address == target.address);
        let is_news = known.is_some_and(|known| !std::mem::replace(&mut known.warned, true));
        Reached::Foreign { reason, is_news }
    }

    /// It serves.
    pub(crate) fn serves(&mut self, target: &Target) {
        if let Some(known) = self.known.iter_mut().find(|known| known.address == target.address) {
            known.failure = None;
        }
    }

    /// One served for a while: what the others did before it is long ago, and each gets its chance again.
    pub(crate) fn begin_round(&mut self) {
        self.known.iter_mut().for_each(|known| known.tried = false);
    }

    /// The one in use is gone: all others come first.
    pub(crate) fn lost(&mut self, target: &Target, failure: &Failure) {
        if let Some(index) = self.known.iter().position(|known| known.address == target.address) {
            self.next = (index + 1) % self.known.len();
            self.known[index].failure = Some(failure.clone());
        }
    }

    /// Why none of them answered.
    pub(crate) fn report(&self, in_use: Option<&str>) -> Vec<EndpointFailure> {
        let reason = |known: &Known| match &known.failure {
            _ if in_use == Some(known.address.as_str()) => {
                "connected, but the cluster gave no answer".to_owned()
            }
            Some(failure) => failure.reason.clone(),
            None => "not reached yet".to_owned(),
        };
        self.known
            .iter()
            .map(|known| EndpointFailure {
                endpoint: known.address.clone(),
                reason: reason(known),
                source: known.failure.as_ref().and_then(|failure| failure.source.clone()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(addresses: &[&str]) -> Endpoints {
        Endpoints::new(addresses.iter().map(|&a| a.to_owned()).collect(), 0)
    }

    fn next(endpoints: &mut Endpoints) -> String {
        endpoints.choose(None, None).unwrap().address
    }

    fn fail(endpoints: &mut Endpoints, address: &str, leader: Option<&str>) -> bool {
        let failure = Failure { leader: leader.map(str::to_owned), ..Failure::new("down") };
        endpoints.failed(&Target { address: address.to_owned() }, &failure, None)
    }

    #[test]
    fn each_gets_a_chance_before_any_gets_a_second() {
        let mut e = endpoints(&["a", "b", "c"]);
        assert_eq!(next(&mut e), "a");
        assert!(!fail(&mut e, "a", None));
        assert_eq!(next(&mut e), "b");
        assert!(!fail(&mut e, "b", None));
        assert_eq!(next(&mut e), "c");
        assert!(fail(&mut e, "c", None), "the round is over");
        assert_eq!(next(&mut e), "a");
    }

    #[test]
    fn after_a_loss_the_others_come_first() {
        let mut e = endpoints(&["a", "b", "c"]);
        let b = Target { address: "b".into() };
        fail(&mut e, "a", None);
        e.begin_round();
        e.lost(&b, &Failure::new("gone"));
        let order: Vec<String> = ["c", "a", "b"]
            .map(|want| {
                let address = next(&mut e);
                fail(&mut e, want, None);
                address
            })
            .into();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn one_that_drains_is_avoided_and_a_connected_one_preferred() {
        let mut e = endpoints(&["a", "b", "c"]);
        assert_eq!(e.choose(Some("a"), Some("c")).unwrap().address, "c");
        assert_eq!(e.choose(Some("a"), Some("a")).unwrap().address, "b");
        assert_eq!(endpoints(&["a"]).choose(Some("a"), None), None);
    }

    #[test]
    fn a_round_is_over_when_all_but_the_avoided_one_were_asked() {
        let mut e = endpoints(&["a", "b", "c"]);
        e.reached(&Target { address: "a".into() }, Some("C1"));
        let mut ask = || {
            let target = e.choose(Some("a"), None).unwrap();
            // They name the one that is to be left: that is no news.
            let failure = Failure { leader: Some("a".into()), ..Failure::new("not the leader") };
            let is_over = e.failed(&target, &failure, Some("a"));
            (target.address, is_over)
        };
        for _ in 0..3 {
            assert_eq!([ask(), ask()], [("b".into(), false), ("c".into(), true)]);
        }
    }

    #[test]
    fn strangers_that_name_each_other_are_not_asked_in_a_circle() {
        let mut e = endpoints(&["a"]);
        e.reached(&Target { address: "a".into() }, Some("C1"));
        assert!(!fail(&mut e, "a", Some("x")));
        assert_eq!(next(&mut e), "x");
        assert!(fail(&mut e, "x", Some("y")), "the round is over");
    }

    #[test]
    fn a_hint_is_followed_once_if_it_can_be_trusted() {
        let mut e = endpoints(&["a", "b", "c"]);
        // One of ours: at once.
        assert!(!fail(&mut e, "a", Some("c")));
        assert_eq!(next(&mut e), "c");
        // Back to one that was tried already: no.
        assert!(!fail(&mut e, "c", Some("a")));
        assert_eq!(next(&mut e), "b");
        // A stranger, while no cluster is pinned: no.
        let mut e = endpoints(&["a", "b"]);
        fail(&mut e, "a", Some("x"));
        assert_eq!(next(&mut e), "b");
        // With a pinned cluster its answer can be checked.
        assert_eq!(e.reached(&Target { address: "b".into() }, Some("C1")), Reached::Ours);
        fail(&mut e, "b", Some("http://x"));
        assert_eq!(next(&mut e), "x");
        assert_eq!(next(&mut e), "a", "used once");
    }

    #[test]
    fn the_first_answer_pins_the_cluster_and_others_are_told_once() {
        let mut e = endpoints(&["a", "b"]);
        let (a, b) = (Target { address: "a".into() }, Target { address: "b".into() });
        assert_eq!(e.reached(&a, Some("C1")), Reached::Ours);
        let reason = "belongs to cluster C2, not to C1; skipped".to_owned();
        assert_eq!(e.reached(&b, Some("C2")), Reached::Foreign { reason: reason.clone(), is_news: true });
        assert_eq!(e.reached(&b, Some("C2")), Reached::Foreign { reason, is_news: false });
        assert!(matches!(e.reached(&a, None), Reached::Foreign { .. }));
        assert_eq!(e.reached(&a, Some("C1")), Reached::Ours);
    }

    #[test]
    fn the_report_names_every_endpoint_and_why() {
        let mut e = endpoints(&["a", "b", "c"]);
        fail(&mut e, "a", None);
        let report: Vec<String> = e.report(Some("c")).iter().map(ToString::to_string).collect();
        assert_eq!(report, ["a: down", "b: not reached yet", "c: connected, but the cluster gave no answer"]);
    }
}
