//! Each check fires on the smallest history that breaks it, and on none that is like it and good.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A history whose clock moves by one with each look.
fn history() -> History {
    let clock = AtomicU64::new(0);
    History::with_clock(move || Duration::from_millis(clock.fetch_add(1, Ordering::Relaxed)))
}

fn grant(history: &History, client: &str, token: u64) -> HoldId {
    let asked = history.now();
    history.granted(client, "k", token, asked)
}

fn fired(history: &History) -> Option<&'static str> {
    history.check().err().map(|violation| violation.check)
}

#[test]
fn one_holder_after_another_is_fine() {
    let history = history();
    let first = grant(&history, "a", 1);
    history.wrote("db", "a", 1, true);
    history.releasing(first);
    grant(&history, "b", 2);
    history.wrote("db", "b", 2, true);
    history.wrote("db", "a", 1, false);
    let summary = Summary { grants: 2, ended: 1, writes: 2, stale_writes_refused: 1, unknown: 1 };
    assert_eq!(history.check(), Ok(summary));
}

#[test]
fn two_believers_are_seen() {
    let history = history();
    grant(&history, "a", 1);
    grant(&history, "b", 2);
    assert_eq!(fired(&history), Some("H1"));
}

#[test]
fn a_long_hold_under_a_short_one_is_seen() {
    let history = history();
    let long = grant(&history, "a", 1);
    history.paused("a");
    let short = grant(&history, "b", 2);
    history.releasing(short);
    history.resumed("a");
    grant(&history, "c", 3);
    history.releasing(long);
    assert_eq!(fired(&history), Some("H1"), "a was running again when c was granted");
}

#[test]
fn a_frozen_client_is_excused() {
    let history = history();
    grant(&history, "a", 1);
    history.paused("a");
    grant(&history, "b", 2);
    assert_eq!(fired(&history), None);
}

#[test]
fn a_lease_that_passes_on_too_early_is_seen() {
    let early = history();
    let hold = grant(&early, "a", 1);
    early.promised(hold, Duration::from_secs(1));
    early.died("a", early.now());
    grant(&early, "b", 2);
    assert_eq!(fired(&early), Some("H7"));
}

#[test]
fn a_look_at_a_lease_that_is_over_promises_nothing() {
    let history = history();
    let hold = grant(&history, "a", 1);
    history.paused("a");
    history.read("c", "k", None, history.now());
    history.resumed("a");
    history.promised(hold, Duration::ZERO);
    history.lost(hold);
    assert_eq!(fired(&history), None);
}

#[test]
fn an_extension_that_is_cut_short_is_seen() {
    let passes_on_after = |is_answered: bool| {
        let history = history();
        let hold = grant(&history, "a", 1);
        let extension = history.extending(hold, Duration::from_secs(1));
        if is_answered {
            history.extended(extension);
        }
        history.died("a", history.now());
        grant(&history, "b", 2);
        (history.unknown(), fired(&history))
    };
    assert_eq!(passes_on_after(true), (0, Some("H7")));
    assert_eq!(passes_on_after(false), (1, None), "nobody knows whether it was extended");
}

#[test]
fn a_holder_that_never_asked_is_seen() {
    let history = history();
    let acquire = history.asks("a", &["k".to_owned()]);
    history.answered(acquire, Answer::Granted(1));
    let hold = grant(&history, "a", 1);
    history.releasing(hold);
    let read = |history: &History| history.read("c", "k", Some(2), history.now());
    read(&history);
    assert_eq!(fired(&history), Some("H5"));
    history.asks("b", &["k".to_owned()]);
    assert_eq!(fired(&history), Some("H5"), "it asked too late");
    let unknown = self::history();
    unknown.asks("b", &["k".to_owned()]);
    read(&unknown);
    assert_eq!(fired(&unknown), None, "nobody knows what became of it");
}

#[test]
fn a_kept_history_is_the_same_and_fails_the_same() {
    let history = history();
    grant(&history, "a", 1);
    history.wrote("db", "a", 1, true);
    history.paused("a");
    history.refused("b", "k", Some(1), history.now());
    history.read("c", "k", Some(1), history.now());
    history.asks("d", &["k".to_owned()]);
    let again = History::of_lines(&history.lines()).expect("it is ours");
    assert_eq!(again.lines(), history.lines());
    assert_eq!(again.check(), history.check());
    let bad = History::of_lines("{}\n").map(drop).expect_err("no line of a history");
    assert!(format!("{bad:#}").starts_with("line 1"), "{bad:#}");
}

#[test]
fn a_stale_write_that_is_accepted_is_seen() {
    let history = history();
    let first = grant(&history, "a", 1);
    history.releasing(first);
    grant(&history, "b", 2);
    history.wrote("db", "b", 2, true);
    history.wrote("db", "a", 1, true);
    assert_eq!(fired(&history), Some("H2"));
}

#[test]
fn a_token_nobody_was_granted_is_seen() {
    let history = history();
    grant(&history, "a", 1);
    history.wrote("db", "b", 1, true);
    assert_eq!(fired(&history), Some("H2"));
}

#[test]
fn tokens_that_fall_or_repeat_are_seen() {
    let history = history();
    let first = grant(&history, "a", 5);
    history.releasing(first);
    grant(&history, "b", 4);
    assert_eq!(fired(&history), Some("H3"));

    let history = self::history();
    let first = grant(&history, "a", 5);
    history.releasing(first);
    grant(&history, "b", 5);
    assert_eq!(fired(&history), Some("H3"));
}

#[test]
fn a_stale_read_is_seen() {
    let history = history();
    let first = grant(&history, "a", 1);
    let asked = history.now();
    history.read("c", "k", Some(1), asked);
    history.releasing(first);
    history.released(first);
    assert_eq!(fired(&history), None);
    let asked = history.now();
    history.read("c", "k", Some(1), asked);
    assert_eq!(fired(&history), Some("H4"));

    let lost = self::history();
    lost.lost(grant(&lost, "a", 1));
    lost.read("c", "k", Some(1), lost.now());
    assert_eq!(fired(&lost), None, "the cluster sees the end of a lease later than its client");
}

#[test]
fn a_read_of_what_is_long_over_or_that_misses_a_holder_is_seen() {
    let over = history();
    let first = grant(&over, "a", 1);
    over.releasing(first);
    over.released(first);
    grant(&over, "b", 2);
    over.read("c", "k", Some(1), over.now());
    assert_eq!(fired(&over), Some("H4"));

    let missed = history();
    grant(&missed, "a", 1);
    missed.read("c", "k", None, missed.now());
    assert_eq!(fired(&missed), Some("H4"));
}

#[test]
fn a_grant_that_vanished_is_seen() {
    let history = history();
    let released = grant(&history, "a", 1);
    history.released(released);
    grant(&history, "b", 2);
    let held = |token| BTreeSet::from([("k".to_owned(), token)]);
    assert_eq!(history.check_durable(&held(2)), Ok(1));
    assert_eq!(history.check_durable(&held(3)).map_err(|v| v.check), Err("H10"));
    let both: BTreeSet<_> = held(1).union(&held(2)).cloned().collect();
    assert_eq!(history.check_durable(&both).map_err(|v| v.check), Err("H10"), "a released lock is back");
}
