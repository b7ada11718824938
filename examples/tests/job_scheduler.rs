//! The scheduler example does what it says: each firing is run to its end once, whoever is killed.

mod run;

use run::example;

#[test]
fn a_firing_whose_runner_is_killed_is_taken_over() {
    let ended = example("job_scheduler", &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    assert_eq!(ended.count("firings"), 10);
    assert_eq!(ended.count("duplicates"), 0);
    assert!(ended.count("taken over") >= 1, "{}", ended.output);
    assert!(ended.count("runs") > 10, "{}", ended.output);
}

#[test]
fn without_a_death_every_firing_is_finished_once() {
    let ended = example("job_scheduler", &["--kill=false", "--seconds=6"]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    assert_eq!(ended.count("duplicates"), 0);
    assert_eq!(ended.count("firings"), 5);
}

#[test]
fn a_wrong_argument_is_an_error_of_usage() {
    let ended = example("job_scheduler", &["--workers=1"]);
    assert_eq!(ended.code, Some(2), "{}", ended.output);
}
