//! Counts by name: what a suite came to, in a form that adds up over seeds, processes and runs.
//!
//! It travels between processes as one line of JSON. Times and rates are not here: they do not add up.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Named counts. The names of one suite do not depend on its seed, only the counts do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// Adds `more` under a name. Adding zero makes the name known, so that a table shows what never happened.
    pub fn add(&mut self, name: &str, more: u64) {
        *self.0.entry(name.to_owned()).or_default() += more;
    }

    /// What stands under a name, zero if nothing does.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Tally) {
        other.0.iter().for_each(|(name, more)| self.add(name, *more));
    }

    /// Names and counts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

/// One line, as in `12 cuts, 3 deaths`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, count)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_over_processes() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.add("cuts", 2);
        one.add("deaths", 0);
        other.add("cuts", 3);
        let line = serde_json::to_string(&other).unwrap();
        one.merge(&serde_json::from_str(&line).unwrap());
        assert_eq!(one.to_string(), "5 cuts, 0 deaths");
    }
}
