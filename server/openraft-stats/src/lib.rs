//! Stands in for the crate `base2histogram`, by `[patch]` in the workspace's Cargo.toml.
//!
//! openraft keeps histograms of itself with that crate and shows them under its feature `runtime-stats`, which we do
//! not use: a node has counters of its own. The first histogram of a process fills tables for all sixteen widths that
//! crate knows, 26 MiB that stay resident, two thirds of an idle node. What openraft asks of it is here, and keeps
//! nothing. Without the line in Cargo.toml everything works as before, with that much more memory.

use std::fmt;
use std::marker::PhantomData;

/// Takes values and keeps none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    /// An empty one, as it will stay.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Takes a value.
    pub fn record(&mut self, _value: u64) {}

    /// Takes a value `count` times.
    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// Of no values: all zero.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// How many values there were, and below which value each share of them lies.
#[allow(missing_docs, reason = "each is named by its percentile")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not kept")
    }
}

/// A drawing of histograms: empty, as they are.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// With nothing in it.
    pub fn new() -> Self {
        Self
    }

    /// Adds a histogram under a name.
    pub fn add<T>(self, _name: impl Into<String>, _histogram: Histogram<T>) -> Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
