//! `raftlock get R`: who holds a lock, and who waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use raftlock_proto::v1::{GetLockRequest, GetLockResponse, LockHolder, Mode};
use serde_json::{Value, json};

use super::failure::Failure;
use super::target::Target;
use super::{calls, print};

/// Show who holds a lock and who waits for it. That it is free is an answer too.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lock.
    #[arg(value_name = "RESOURCE")]
    resource: String,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Asks, and prints.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let request = GetLockRequest { resource_id: args.resource };
    let lock = calls::repeatable(target, Duration::ZERO, async |mut attempt: calls::Attempt| {
        let request = attempt.request(request.clone());
        attempt.client.get_lock(request).await
    });
    let lock = lock.await?;
    if args.json { print::json(&as_json(&lock)) } else { for_people(&lock) }
}

fn for_people(lock: &GetLockResponse) -> Result<(), Failure> {
    let name = &lock.resource_id;
    match (lock.holder_count, lock.queue_length) {
        (0, 0) => return print::line(format_args!("{name} is free")),
        (0, waiting) => print::line(format_args!("{name} is free, {waiting} waiting"))?,
        (1, 0) => print::line(format_args!("{name} is held"))?,
        (1, waiting) => print::line(format_args!("{name} is held, {waiting} waiting"))?,
        (holders, 0) => print::line(format_args!("{name} is held by {holders}"))?,
        (holders, waiting) => print::line(format_args!("{name} is held by {holders}, {waiting} waiting"))?,
    }
    if !lock.holders.is_empty() {
        let rows = lock.holders.iter().map(|holder| {
            let token = holder.fencing_token.to_string();
            [
                holder.owner.clone(),
                token,
                print::brief_ms(holder.remaining_ms),
                held_as(holder),
                pairs(&holder.metadata),
            ]
        });
        print::line("")?;
        print::table(["HOLDER", "TOKEN", "REMAINING", "MODE", "METADATA"], rows)?;
    }
    if !lock.waiters.is_empty() {
        let rows = lock.waiters.iter().map(|waiter| {
            let mode = print::mode(waiter.mode()).to_owned();
            [waiter.place.to_string(), waiter.owner.clone(), print::brief_ms(waiter.waiting_ms), mode]
        });
        print::line("")?;
        print::table(["PLACE", "WAITER", "SINCE", "MODE"], rows)?;
    }
    Ok(())
}

fn held_as(holder: &LockHolder) -> String {
    match holder.mode() {
        Mode::Permits => format!("{} of {} permits", holder.permits, holder.capacity),
        other => print::mode(other).to_owned(),
    }
}

fn pairs(metadata: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(" ")
}

fn as_json(lock: &GetLockResponse) -> Value {
    let holders = lock.holders.iter().map(|holder| {
        json!({
            "owner": holder.owner,
            "fencing_token": holder.fencing_token,
            "remaining_ms": holder.remaining_ms,
            "mode": print::mode(holder.mode()),
            "permits": holder.permits,
            "capacity": holder.capacity,
            "metadata": holder.metadata,
        })
    });
    let waiters = lock.waiters.iter().map(|waiter| {
        json!({
            "owner": waiter.owner,
            "place": waiter.place,
            "waiting_ms": waiter.waiting_ms,
            "mode": print::mode(waiter.mode()),
        })
    });
    json!({
        "name": lock.resource_id,
        "free": lock.holder_count == 0 && lock.queue_length == 0,
        "holder_count": lock.holder_count,
        "queue_length": lock.queue_length,
        "holders": holders.collect::<Vec<_>>(),
        "waiters": waiters.collect::<Vec<_>>(),
    })
}
