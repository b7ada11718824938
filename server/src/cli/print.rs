//! What goes to stdout: lines, tables for people, JSON for scripts.
//!
//! Whoever reads may stop reading (`raftlock list | head`); that is no failure.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use raftlock_proto::v1::Mode;
use serde_json::Value;

use super::failure::Failure;

/// Prints one line, or several.
pub fn line(text: impl Display) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Says something on stderr. If nobody can hear it, that must not stop what is being done.
pub fn aside(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a table with a heading over each column.
pub fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Failure> {
    let mut table = plain();
    table.set_header(headings);
    table.add_rows(rows);
    line(trimmed(table))
}

/// Prints rows whose first cell says what the others are.
pub fn facts(rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Failure> {
    let mut table = plain();
    table.add_rows(rows);
    line(trimmed(table))
}

/// Prints JSON, indented as `jq` does.
pub fn json(value: &Value) -> Result<(), Failure> {
    line(format_args!("{value:#}"))
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// Without the spaces that the table puts around every cell of its edges.
fn trimmed(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A duration as people like it: tenths below a minute, then whole seconds.
pub fn brief(duration: Duration) -> String {
    if duration < Duration::from_secs(60) {
        let tenths = duration.as_millis() / 100;
        return match tenths % 10 {
            0 => format!("{}s", tenths / 10),
            _ => format!("{}.{}s", tenths / 10, tenths % 10),
        };
    }
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Milliseconds from the wire.
pub fn brief_ms(ms: i64) -> String {
    brief(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

/// How a lock is held.
pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
        Mode::Permits => "permits",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_brief() {
        let of = |ms| brief(Duration::from_millis(ms));
        assert_eq!(of(0), "0s");
        assert_eq!(of(29_990), "29.9s");
        assert_eq!(of(30_000), "30s");
        assert_eq!(of(3_661_500), "1h 1m 1s");
    }
}
