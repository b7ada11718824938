//! The payment example does what it says: each payment is charged once with locks, and more than once without.

mod run;

use raftlock_examples::cluster::LocalCluster;
use run::example;

#[test]
fn each_payment_is_charged_once() {
    let ended = example("payment_processor", &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    assert_eq!(ended.count("payments"), 40);
    assert_eq!(ended.count("charges"), 40);
}

#[test]
fn a_given_cluster_is_used() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cluster = runtime.block_on(LocalCluster::start(1, dir.path())).unwrap();
    let endpoints = format!("--endpoints={}", cluster.endpoints());
    let ended = example("payment_processor", &[&endpoints, "--payments=5"]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    assert_eq!(ended.count("charges"), 5);
    runtime.block_on(cluster.stop());
}

#[test]
fn the_late_charge_of_a_frozen_holder_is_refused() {
    let ended = example("payment_processor", &["--freeze", "--payments=5"]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    assert_eq!(ended.count("charges"), 5);
    assert!(ended.count("refused stale writes") >= 1, "{}", ended.output);
}

#[test]
fn without_locks_payments_are_charged_more_than_once() {
    let ended = example("payment_processor", &["--no-lock", "--payments=5"]);
    assert_eq!(ended.code, Some(1), "{}", ended.output);
    assert_eq!(ended.count("charges"), 15);
}

#[test]
fn a_wrong_argument_is_an_error_of_usage() {
    let ended = example("payment_processor", &["--freeze", "--workers=1"]);
    assert_eq!(ended.code, Some(2), "{}", ended.output);
}
