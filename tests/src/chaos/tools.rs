//! Faults that other programs make: strace, which has calls of a process fail or last, and libfaketime, which has its
//! clocks lie. `tests/chaos-tools` installs them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

use super::nodes::{signal_process, within};

/// How long strace may take to get hold of a process.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

/// What is to happen to the calls that bring data to the disk. Both are named: which one is used is the library's choice.
#[derive(Clone, Debug)]
pub(crate) enum SyncFault {
    /// The next one fails.
    FailsOnce,
    /// All fail.
    Fails,
    /// Each lasts longer.
    Lasts(Duration),
    /// The next one does.
    LastsOnce(Duration),
}

impl SyncFault {
    fn injection(&self) -> String {
        let calls = "inject=fsync,fdatasync";
        match self {
            SyncFault::FailsOnce => format!("{calls}:error=EIO:when=1"),
            SyncFault::Fails => format!("{calls}:error=EIO"),
            SyncFault::Lasts(time) => format!("{calls}:delay_exit={}", time.as_micros()),
            SyncFault::LastsOnce(time) => format!("{calls}:delay_exit={}:when=1", time.as_micros()),
        }
    }
}

/// A fault in a process. It is over when this is dropped.
pub(crate) struct Traced {
    child: Child,
    log: PathBuf,
}

impl Traced {
    /// Begins it, and waits until it has hold of the process.
    pub(crate) async fn begin(pid: u32, fault: &SyncFault, folder: &Path) -> anyhow::Result<Traced> {
        let log = tempfile::Builder::new().prefix("strace-").tempfile_in(folder)?.into_temp_path().keep()?;
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", "trace=fsync,fdatasync", "-e", &fault.injection()]);
        strace.args(["-p", &pid.to_string(), "-o"]).arg(&log).stdin(Stdio::null());
        let child = strace.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("strace")?;
        let traced = Traced { child, log };
        // A process that is hit at once may be gone before anybody looks.
        let attached =
            within(ATTACH_LIMIT, async || (is_traced(pid) || traced.hits() > 0).then_some(())).await;
        attached.with_context(|| format!("strace has no hold of process {pid} after {ATTACH_LIMIT:?}"))?;
        Ok(traced)
    }

    /// How many calls it has changed.
    pub(crate) fn hits(&self) -> u64 {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains("INJECTED") || line.contains("DELAYED")).count() as u64
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Asked nicely it lets the process go on.
        let _ = signal_process(self.child.id(), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Whether all threads of a process are traced.
fn is_traced(pid: u32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let traced = |task: &Path| {
        let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    };
    tasks.flatten().all(|task| traced(&task.path()))
}

/// The clocks of one process.
pub(crate) struct FakeTime {
    library: PathBuf,
    offset: PathBuf,
}

impl FakeTime {
    /// For a process whose offset is in a file of this name.
    pub(crate) fn new(folder: &Path, name: &str) -> anyhow::Result<FakeTime> {
        let libraries = std::fs::read_dir("/usr/lib")?.flatten();
        let mut libraries = libraries.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
        let library =
            libraries.find(|path| path.exists()).context("libfaketime: tests/chaos-tools installs it")?;
        let offset = folder.join(format!("{name}.offset"));
        std::fs::write(&offset, "+0")?;
        Ok(FakeTime { library, offset })
    }

    /// What the process must see at its start so that its wall clock can be set, and nothing else.
    pub(crate) fn wall(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// What it must see so that all its clocks go at a rate.
    pub(crate) fn rate(&self, rate: f64) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.display().to_string()), ("FAKETIME", format!("+0 x{rate}"))]
    }

    /// Sets the wall clock, as in `+10y`.
    pub(crate) fn jump(&self, offset: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(&self.offset, offset)?)
    }
}

/// Fails unless the programs are there.
pub(crate) fn probe() -> anyhow::Result<()> {
    for (program, option) in [("ip", "-V"), ("strace", "-V"), ("unshare", "-V")] {
        let found = Command::new(program).arg(option).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let is_there = found.is_ok_and(|status| status.success());
        ensure!(is_there, "{program} is not there: tests/chaos-tools installs it");
    }
    Ok(())
}
