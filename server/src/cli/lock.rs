//! `raftlock lock R`: takes a lock and leaves it to its lease.
//!
//! Each run is an attempt of its own: its fresh request id makes its repeats the same call, and the next run another.

use std::time::Duration;

use raftlock_proto::v1::{LockRequest, LockResponse, Mode};
use serde_json::json;

use super::failure::Failure;
use super::lease::Lease;
use super::target::Target;
use super::{calls, print, values};

/// Take a lock. It is yours until it is unlocked or its lease is over; nobody renews it but `raftlock renew`.
///
/// To hold a lock while a command runs, use `raftlock run`: it renews.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    lease: Lease,
    /// Wait for the lock at most so long, up to 10m. Default: do not wait.
    #[arg(long, value_name = "TIME", default_value = "0", hide_default_value = true, value_parser = values::duration)]
    wait: Duration,
    /// Together with other shared holders.
    #[arg(long, conflicts_with = "permits")]
    shared: bool,
    /// So many of the lock's permits; all who use the lock must name the same capacity.
    #[arg(long, value_name = "N/CAPACITY", value_parser = values::permits)]
    permits: Option<(u32, u32)>,
    /// Shown to whoever looks the lock up. May be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::key_value)]
    metadata: Vec<(String, String)>,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Takes the lock, or says who has it.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let (Lease { resource, ttl }, wait) = (args.lease, args.wait);
    let (mode, (permits, capacity)) = match args.permits {
        Some(of) => (Mode::Permits, of),
        None if args.shared => (Mode::Shared, (0, 0)),
        None => (Mode::Exclusive, (0, 0)),
    };
    let request = LockRequest {
        resource_id: resource.clone(),
        client_id: target.id.clone(),
        ttl_ms: millis(ttl),
        mode: mode.into(),
        permits,
        capacity,
        request_id: format!("{:032x}", rand::random::<u128>()),
        metadata: args.metadata.into_iter().collect(),
        ..LockRequest::default()
    };
    let answered = calls::repeatable(target, wait, async |mut attempt: calls::Attempt| {
        // A repeat waits for what is left of the wait.
        let wait_ms = millis(wait.saturating_sub(attempt.elapsed));
        let request = attempt.request(LockRequest { wait_ms, ..request.clone() });
        attempt.client.lock(request).await
    });
    let unknown =
        format!("{resource} may be held by {} until its lease is over; `raftlock get` shows it", target.id);
    let answer = answered.await.map_err(|reason| reason.into_failure(&unknown))?;
    if args.json {
        print::json(&as_json(&resource, &answer))?;
    }
    if !answer.success {
        return Err(Failure::NotAcquired(not_acquired(&resource, &target.id, &answer)));
    }
    if !args.json {
        let left = print::brief_ms(answer.remaining_ms);
        print::line(format_args!(
            "Lock acquired: {resource} by {}, token {}, for {left}",
            target.id, answer.fencing_token
        ))?;
    }
    Ok(())
}

/// For the wire, which bounds it.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn as_json(name: &str, answer: &LockResponse) -> serde_json::Value {
    json!({
        "name": name,
        "success": answer.success,
        "message": answer.message,
        "fencing_token": answer.fencing_token,
        "remaining_ms": answer.remaining_ms,
        "holder": answer.holder,
        "holder_count": answer.holder_count,
        "queue_length": answer.queue_length,
    })
}

fn not_acquired(name: &str, id: &str, answer: &LockResponse) -> String {
    let mut text = match (answer.holder.as_str(), answer.holder_count) {
        ("", _) => return format!("{name}: {}", answer.message),
        (waiter, 0) => {
            format!("Lock not acquired: {name} is free, but {waiter} waits for it and is served first")
        }
        (holder, count) => {
            let (token, left) = (answer.fencing_token, print::brief_ms(answer.remaining_ms));
            let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            format!("Lock not acquired: {name} is held by {holder}{others} for {left} more (token {token})")
        }
    };
    if answer.queue_length > 0 {
        text += &format!("; {} waiting", answer.queue_length);
    }
    if answer.holder == id && answer.holder_count > 0 {
        text += &format!("\nThat is your own --id: `raftlock renew {name}` extends a lock that you hold");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_holder_and_how_to_extend_your_own() {
        let held = LockResponse {
            holder: "b".into(),
            holder_count: 2,
            queue_length: 1,
            fencing_token: 7,
            remaining_ms: 12_300,
            ..LockResponse::default()
        };
        let text = not_acquired("k", "a", &held);
        assert_eq!(text, "Lock not acquired: k is held by b and 1 more for 12.3s more (token 7); 1 waiting");
        assert!(not_acquired("k", "b", &held).contains("raftlock renew k"));
        let behind = LockResponse { holder_count: 0, ..held };
        assert!(not_acquired("k", "b", &behind).starts_with("Lock not acquired: k is free, but b waits"));
    }
}
