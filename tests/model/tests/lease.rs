//! The protocol holds in every state of the model, and fails without any one of its rules.

use raftlock_model::{Lease, Rule};
use stateright::{Checker, HasDiscoveries, Model};

const BELIEVERS: &str = "no two believers";

fn check(without: Option<Rule>, until: HasDiscoveries) -> impl Checker<Lease> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Lease { without }.checker().threads(threads).finish_when(until).spawn_bfs().join()
}

#[test]
fn no_two_believers_in_any_state() {
    let checker = check(None, HasDiscoveries::AllFailures);
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

fn fails_without(rule: Rule) {
    let checker = check(Some(rule), HasDiscoveries::AnyOf([BELIEVERS].into()));
    let path = checker.discovery(BELIEVERS);
    let path = path.unwrap_or_else(|| panic!("without {rule:?} all is well: the model is too small"));
    println!("without {rule:?}: {:?}", path.into_actions());
}

#[test]
fn a_stall_must_not_be_caught_up() {
    fails_without(Rule::Reanchor);
}

#[test]
fn a_leaders_time_is_that_between_its_batches() {
    fails_without(Rule::TimeFromBatches);
}

#[test]
fn an_answer_must_name_its_renewal() {
    fails_without(Rule::RenewalNumber);
}

#[test]
fn a_lease_must_count_from_before_the_send() {
    fails_without(Rule::BeforeSend);
}

#[test]
fn a_batch_must_be_proposed_under_one_leader_only() {
    fails_without(Rule::OneLeaderPerBatch);
}
