//! What must be true of all that the workers saw.

use std::collections::BTreeMap;
use std::time::Duration;

/// From when to when a worker believed that it held a lock.
#[derive(Clone, Debug)]
pub struct Hold {
    pub lock: String,
    pub worker: String,
    pub token: u64,
    pub from: Duration,
    pub until: Duration,
}

/// What was found, if all is well.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub grants: usize,
    pub locks: usize,
    /// Between two grants, of any lock.
    pub longest_pause: Duration,
}

/// No two holds of a lock overlap, and its tokens rise. The error says who broke it.
pub fn check(holds: &[Hold]) -> Result<Found, String> {
    let mut by_time: Vec<&Hold> = holds.iter().collect();
    by_time.sort_by_key(|hold| hold.from);
    let mut last: BTreeMap<&str, &Hold> = BTreeMap::new();
    let mut longest_pause = Duration::ZERO;
    for pair in by_time.windows(2) {
        longest_pause = longest_pause.max(pair[1].from - pair[0].from);
    }
    for hold in by_time {
        if let Some(before) = last.insert(&hold.lock, hold) {
            let (worker, other, lock) = (&hold.worker, &before.worker, &hold.lock);
            if hold.from < before.until {
                return Err(format!("{worker} got {lock} while {other} held it"));
            }
            if hold.token <= before.token {
                let (new, old) = (hold.token, before.token);
                return Err(format!("{worker} got {lock} with token {new} after {other} with {old}"));
            }
        }
    }
    if last.is_empty() {
        return Err("nobody ever got a lock".to_owned());
    }
    Ok(Found { grants: holds.len(), locks: last.len(), longest_pause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(lock: &str, token: u64, from: u64, until: u64) -> Hold {
        let (from, until) = (Duration::from_secs(from), Duration::from_secs(until));
        Hold { lock: lock.into(), worker: format!("w{token}"), token, from, until }
    }

    #[test]
    fn holds_one_after_another_are_fine_in_whatever_order_they_were_noted() {
        let found = check(&[hold("a", 3, 5, 9), hold("a", 1, 0, 5), hold("b", 2, 1, 9)]);
        assert_eq!(found, Ok(Found { grants: 3, locks: 2, longest_pause: Duration::from_secs(4) }));
    }

    #[test]
    fn an_overlap_is_found() {
        let error = check(&[hold("a", 1, 0, 5), hold("a", 2, 4, 6)]).expect_err("they overlap");
        assert_eq!(error, "w2 got a while w1 held it");
    }

    #[test]
    fn a_token_that_falls_is_found() {
        let error = check(&[hold("a", 2, 0, 1), hold("a", 1, 2, 3)]).expect_err("the token falls");
        assert_eq!(error, "w1 got a with token 1 after w2 with 2");
    }

    #[test]
    fn nothing_is_no_success() {
        assert!(check(&[]).is_err());
    }
}
