//! The tiers: which suites run, in which order, for how long. `quick` is what `cargo test` has of each suite.
//!
//! A step is this same program with other arguments, in a process of its own: a suite that aborts ends its step and
//! not the tier. What a step came to it leaves in a file, so that the tier can add up.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Tally;

/// What runs before a change lands, and what runs before a release.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Tier {
    /// Inside `.ci/run`.
    Ci,
    /// Everything, at full length: hours.
    Full,
}

/// A suite and how long it runs.
type Step = &'static [&'static str];

impl Tier {
    fn steps(self) -> &'static [Step] {
        match self {
            Tier::Ci => &[
                &["clock", "--seeds", "10000"],
                &["table", "--seeds", "200"],
                &["fuzz", "--seeds", "20000"],
                &["schedules", "--seeds", "10000"],
                &["founding", "--seeds", "200"],
                &["crash", "--images", "100000"],
                &["sim", "--seeds", "600"],
                &["chaos", "--scale", "0.5"],
            ],
            Tier::Full => &[
                &["clock", "--seeds", "100000"],
                &["table", "--seeds", "2000"],
                &["fuzz", "--seeds", "200000"],
                &["schedules", "--seeds", "50000"],
                &["founding", "--seeds", "1000"],
                &["crash", "--images", "300000"],
                &["sim", "--seeds", "2000"],
                &["chaos"],
                &["planted"],
            ],
        }
    }
}

/// Runs a tier to its end, also after a step that failed.
pub fn run(tier: Tier) -> anyhow::Result<Tally> {
    let (mut all, mut failed) = (Tally::default(), Vec::new());
    for step in tier.steps() {
        let name = step.join(" ");
        println!("--- {name}");
        let (took, done) = timed(|| one(step));
        match done {
            Ok(tally) => {
                println!("--- {name}: {:.0} s: {tally}", took.as_secs_f64());
                all.merge(&tally);
            }
            Err(error) => {
                println!("--- {name}: {:.0} s: FAILED: {error:#}", took.as_secs_f64());
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} steps failed: {}", failed.len(), tier.steps().len(), failed.join("; "));
    }
    Ok(all)
}

/// Runs this program with other arguments, and gives what its suite came to.
pub fn one(arguments: &[impl AsRef<str>]) -> anyhow::Result<Tally> {
    let left = Left::new()?;
    let status = again(arguments, &left)?.status().context("this program, started again")?;
    if !status.success() {
        bail!("it ended with {status}");
    }
    left.read()
}

/// The same, and what it says is heard only if it fails.
pub fn one_quietly(arguments: &[impl AsRef<str>]) -> anyhow::Result<Tally> {
    let left = Left::new()?;
    let output = again(arguments, &left)?.output().context("this program, started again")?;
    if !output.status.success() {
        bail!("it ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    left.read()
}

fn again(arguments: &[impl AsRef<str>], left: &Left) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command.args(arguments.iter().map(AsRef::as_ref)).arg("--tally").arg(&left.0);
    Ok(command)
}

/// Where a step leaves its counts. It is gone with this.
struct Left(PathBuf);

impl Left {
    fn new() -> anyhow::Result<Left> {
        let (file, path) = tempfile::Builder::new().prefix("tally-").tempfile()?.keep()?;
        drop(file);
        Ok(Left(path))
    }

    fn read(&self) -> anyhow::Result<Tally> {
        let text = std::fs::read_to_string(&self.0).context("what the step came to")?;
        Ok(serde_json::from_str(&text)?)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[allow(clippy::disallowed_methods, reason = "the harness measures with its own clock")]
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let done = work();
    (began.elapsed(), done)
}
