//! What a measurement cost: processor time, log bytes, batches, elections. Read before and after.

use futures_util::future::join_all;
use raftlock_proto::v1::StatusResponse;

use crate::cli::calls;

/// One reading.
#[derive(Debug)]
pub struct Reading {
    statuses: Vec<StatusResponse>,
    /// Seconds of processor time of the nodes, where they run on this machine and it says so.
    server_cpu: Option<f64>,
    client_cpu: f64,
}

/// The difference of two readings.
#[derive(Debug)]
pub struct Cost {
    pub wal_bytes_per_op: Option<f64>,
    pub ops_per_batch: Option<f64>,
    pub cpu_s_server: Option<f64>,
    pub cpu_s_client: f64,
    pub elections: u64,
}

impl Reading {
    /// Of the nodes at these addresses, in these processes.
    pub async fn take(addresses: &[String], pids: &[u32]) -> Reading {
        let statuses = join_all(addresses.iter().map(|address| calls::status(address))).await;
        let cpu: Option<Vec<f64>> = pids.iter().map(|pid| cpu_seconds(&pid.to_string())).collect();
        Reading {
            statuses: statuses.into_iter().filter_map(Result::ok).collect(),
            server_cpu: cpu.filter(|cpu| !cpu.is_empty()).map(|cpu| cpu.iter().sum()),
            client_cpu: cpu_seconds("self").unwrap_or(0.0),
        }
    }

    /// What happened since `before`.
    pub fn since(&self, before: &Reading) -> Cost {
        let sum = |of: &dyn Fn(&StatusResponse) -> u64| {
            let all = |reading: &Reading| reading.statuses.iter().map(of).sum::<u64>();
            all(self).saturating_sub(all(before)) as f64
        };
        let work = |status: &StatusResponse| status.counters.unwrap_or_default();
        let (batches, commands) = (sum(&|s| work(s).batches), sum(&|s| work(s).commands));
        let wal = sum(&|s| work(s).wal_bytes) / self.statuses.len().max(1) as f64;
        let term = |reading: &Reading| reading.statuses.iter().map(|status| status.term).max().unwrap_or(0);
        // A node that was started anew counts from nothing.
        let is_whole = self.statuses.len() == before.statuses.len()
            && self
                .statuses
                .iter()
                .zip(&before.statuses)
                .all(|(now, then)| work(now).flushes >= work(then).flushes);
        Cost {
            wal_bytes_per_op: (is_whole && commands > 0.0).then(|| wal / commands),
            ops_per_batch: (is_whole && batches > 0.0).then(|| commands / batches),
            cpu_s_server: self
                .server_cpu
                .zip(before.server_cpu)
                .map(|(now, then)| now - then)
                .filter(|cpu| *cpu >= 0.0),
            cpu_s_client: self.client_cpu - before.client_cpu,
            elections: term(self).saturating_sub(term(before)),
        }
    }
}

impl Cost {
    /// Of what no node was asked for.
    pub fn nothing() -> Cost {
        Cost {
            wal_bytes_per_op: None,
            ops_per_batch: None,
            cpu_s_server: None,
            cpu_s_client: 0.0,
            elections: 0,
        }
    }
}

/// What a process has in memory, in bytes, from `/proc`; see proc_pid_statm(5).
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Processor time of a process so far.
pub fn processor_seconds(pid: u32) -> Option<f64> {
    cpu_seconds(&pid.to_string())
}

/// User and system time of a process, from `/proc`; see proc_pid_stat(5).
fn cpu_seconds(pid: &str) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = ticks(11)? + ticks(12)?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
