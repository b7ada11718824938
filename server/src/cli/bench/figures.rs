//! One line of results, for people and for scripts.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::print;

/// One measurement. Times are in microseconds, and `None` is what could not be known here.
#[derive(Debug, Serialize)]
pub struct Row {
    pub workload: &'static str,
    /// In flight at once.
    pub clients: usize,
    pub nodes: usize,
    pub api: &'static str,
    pub secs: f64,
    pub ops: u64,
    pub per_s: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    /// A 4 KiB write and flush on the disk of the data, and the same with three writers: medians.
    pub flush_us: Option<u64>,
    pub flush3_us: Option<u64>,
    /// In the write-ahead log of each node, per command.
    pub wal_bytes_per_op: Option<f64>,
    /// Commands in a batch.
    pub ops_per_batch: Option<f64>,
    /// Of all nodes together.
    pub cpu_s_server: Option<f64>,
    pub cpu_s_client: f64,
    pub elections: u64,
    /// What only this workload has.
    #[serde(flatten)]
    pub more: BTreeMap<&'static str, f64>,
}

impl Row {
    /// With the percentiles of `times`.
    pub fn timed(self, times: &Histogram<u64>) -> Row {
        Row {
            p50_us: times.value_at_quantile(0.5),
            p99_us: times.value_at_quantile(0.99),
            p999_us: times.value_at_quantile(0.999),
            max_us: times.max(),
            ..self
        }
    }
}

/// Three digits, from a microsecond up to more than a minute.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000, 3).expect("these bounds are sound")
}

/// Microseconds, as a histogram takes them.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One JSON object a line.
pub fn print_json(rows: &[Row]) -> Result<(), Failure> {
    rows.iter().try_for_each(|row| print::line(serde_json::to_string(row).expect("numbers and names")))
}

/// A table, a column for each figure.
pub fn print_table(rows: &[Row]) -> Result<(), Failure> {
    print::table(
        [
            "workload",
            "clients",
            "nodes",
            "api",
            "ops",
            "per s",
            "p50",
            "p99",
            "p99.9",
            "max",
            "flush",
            "flush3",
            "wal B/op",
            "ops/batch",
            "cpu s server",
            "cpu s client",
            "elections",
            "",
        ],
        rows.iter().map(|row| {
            [
                row.workload.to_owned(),
                row.clients.to_string(),
                row.nodes.to_string(),
                row.api.to_owned(),
                row.ops.to_string(),
                format!("{:.0}", row.per_s),
                time(row.p50_us),
                time(row.p99_us),
                time(row.p999_us),
                time(row.max_us),
                row.flush_us.map_or_else(dash, time),
                row.flush3_us.map_or_else(dash, time),
                row.wal_bytes_per_op.map_or_else(dash, |bytes| format!("{bytes:.0}")),
                row.ops_per_batch.map_or_else(dash, |ops| format!("{ops:.1}")),
                row.cpu_s_server.map_or_else(dash, |secs| format!("{secs:.2}")),
                format!("{:.2}", row.cpu_s_client),
                row.elections.to_string(),
                more(&row.more),
            ]
        }),
    )
}

fn more(figures: &BTreeMap<&'static str, f64>) -> String {
    let each = figures.iter().map(|(what, figure)| format!("{what} {figure:.0}"));
    each.collect::<Vec<_>>().join(", ")
}

fn dash() -> String {
    "-".to_owned()
}

fn time(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What every line of JSON has.
    const FIELDS: [&str; 18] = [
        "workload",
        "clients",
        "nodes",
        "api",
        "secs",
        "ops",
        "per_s",
        "p50_us",
        "p99_us",
        "p999_us",
        "max_us",
        "flush_us",
        "flush3_us",
        "wal_bytes_per_op",
        "ops_per_batch",
        "cpu_s_server",
        "cpu_s_client",
        "elections",
    ];

    #[test]
    fn a_line_has_every_field() {
        let row = Row {
            workload: "pairs",
            clients: 1,
            nodes: 3,
            api: "session",
            secs: 1.0,
            ops: 2,
            per_s: 2.0,
            p50_us: 0,
            p99_us: 0,
            p999_us: 0,
            max_us: 0,
            flush_us: None,
            flush3_us: None,
            wal_bytes_per_op: None,
            ops_per_batch: None,
            cpu_s_server: None,
            cpu_s_client: 0.0,
            elections: 0,
            more: BTreeMap::new(),
        };
        let mut times = histogram();
        (1..=1_000).for_each(|us| times.saturating_record(us));
        let row = row.timed(&times);
        assert_eq!((row.p50_us, row.p99_us, row.max_us), (500, 990, 1_000));
        let Value::Object(line) = serde_json::to_value(&row).expect("numbers and names") else { panic!() };
        assert!(FIELDS.iter().all(|field| line.contains_key(*field)) && line.len() == FIELDS.len());
    }

    #[test]
    fn times_are_brief() {
        assert_eq!(
            [time(90), time(9_999), time(12_345), time(12_345_678)],
            ["90 us", "9999 us", "12.3 ms", "12.3 s"]
        );
    }
}
