//! Checks that look at pairs of what clients saw: each says for itself what may not be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Hold, State, Violation};

pub(super) fn believers(state: &State) -> Result<(), Violation> {
    let mut by_lock: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    for hold in &state.holds {
        by_lock.entry(&hold.lock).or_default().push(hold);
    }
    for holds in by_lock.values_mut() {
        holds.sort_by_key(|hold| hold.granted);
        let mut latest: Option<&Hold> = None;
        for next in holds.iter() {
            if let Some(before) = latest {
                let believed_until = before.ended.unwrap_or(Duration::MAX);
                if believed_until > next.granted && !was_paused(state, &before.client, next.granted) {
                    return Err(Violation {
                        check: "H1",
                        seen: format!("{next:?} was granted while {before:?} was believed to be held"),
                    });
                }
            }
            let longer = |hold: &&Hold| hold.ended.unwrap_or(Duration::MAX);
            latest = Some(latest.into_iter().chain([*next]).max_by_key(longer).expect("one at least"));
        }
    }
    Ok(())
}

pub(super) fn was_paused(state: &State, client: &str, at: Duration) -> bool {
    state.pauses.iter().any(|p| p.client == client && p.from <= at && p.to.is_none_or(|to| at <= to))
}

pub(super) fn fenced_resource(state: &State) -> Result<(), Violation> {
    let granted: BTreeSet<(&str, u64)> =
        state.holds.iter().map(|hold| (hold.client.as_str(), hold.token)).collect();
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for write in &state.writes {
        let highest = highest.entry(&write.resource).or_insert(0);
        let wrong = |what: &str| {
            Err(Violation { check: "H2", seen: format!("{write:?} {what} (highest: {highest})") })
        };
        if !write.accepted {
            if write.token >= *highest {
                return wrong("was refused although its token is not stale");
            }
            continue;
        }
        if write.token < *highest {
            return wrong("is stale and was accepted");
        }
        if !granted.contains(&(write.client.as_str(), write.token)) {
            return wrong("has a token that its writer was never granted");
        }
        *highest = write.token;
    }
    Ok(())
}

pub(super) fn token_order(state: &State) -> Result<(), Violation> {
    let mut by_token: Vec<&Hold> = state.holds.iter().collect();
    by_token.sort_by_key(|hold| hold.token);
    // One grant may be of several locks.
    let same_grant = |one: &Hold, other: &Hold| one.client == other.client && one.lock != other.lock;
    let twice = |pair: &&[&Hold]| pair[0].token == pair[1].token && !same_grant(pair[0], pair[1]);
    if let Some(twice) = by_token.windows(2).find(twice) {
        return Err(Violation { check: "H3", seen: format!("one token, two grants: {twice:?}") });
    }
    // Walking up the tokens: nobody may have asked after a grant with a higher token was answered.
    let mut earliest_answer_above: Option<&Hold> = None;
    for hold in by_token.iter().rev() {
        if let Some(above) = earliest_answer_above
            && above.granted < hold.asked
            && above.token > hold.token
        {
            return Err(Violation {
                check: "H3",
                seen: format!(
                    "{above:?} was answered before {hold:?} was asked for, and has the higher token"
                ),
            });
        }
        if earliest_answer_above.is_none_or(|above| hold.granted < above.granted) {
            earliest_answer_above = Some(hold);
        }
    }
    Ok(())
}

pub(super) fn reads(state: &State) -> Result<(), Violation> {
    let mut by_lock: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    state.holds.iter().for_each(|hold| by_lock.entry(&hold.lock).or_default().push(hold));
    for read in &state.reads {
        for hold in by_lock.get(read.lock.as_str()).into_iter().flatten() {
            let is_older = read.token.is_some_and(|token| token < hold.token) && hold.granted < read.asked;
            let released_before = hold.released.is_some_and(|at| at < read.asked);
            let is_over = read.token == Some(hold.token) && released_before;
            // Whoever believes all the while does hold it, unless it is frozen.
            let held = hold.granted < read.asked && hold.ended.is_none_or(|ended| ended > read.answered);
            let is_missed = held && read.token.is_none() && !was_paused(state, &hold.client, read.answered);
            if is_older || is_over || is_missed {
                return Err(Violation { check: "H4", seen: format!("{read:?} is stale: {hold:?}") });
            }
        }
    }
    Ok(())
}

/// A lease that was not given back does not pass on before its end, as its client counts it.
pub(super) fn leases(state: &State) -> Result<(), Violation> {
    let mut by_lock: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    state.holds.iter().for_each(|hold| by_lock.entry(&hold.lock).or_default().push(hold));
    for holds in by_lock.values_mut() {
        holds.sort_by_key(|hold| hold.token);
        let early = |pair: &&[&Hold]| !pair[0].gave_back && pair[1].granted < pair[0].promised;
        if let Some(early) = holds.windows(2).find(early) {
            let seen = format!("{:?} was granted before the lease of {:?} may end", early[1], early[0]);
            return Err(Violation { check: "H7", seen });
        }
    }
    Ok(())
}
