//! `raftlock list [PREFIX]`: all locks that are held or waited for.

use std::time::Duration;

use raftlock_proto::v1::{ListLocksRequest, LockSummary};
use serde_json::{Value, json};

use super::failure::Failure;
use super::target::Target;
use super::{calls, print};

/// The most that a server gives at once.
const PAGE_SIZE: u32 = 1_000;

/// Show the locks that are held or waited for, by name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only names that begin so.
    #[arg(value_name = "PREFIX", default_value = "", hide_default_value = true)]
    prefix: String,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

/// Asks for page after page, and prints.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let mut locks = Vec::new();
    let mut next = ListLocksRequest { prefix: args.prefix, page_size: PAGE_SIZE, page_token: String::new() };
    loop {
        let page = calls::repeatable(target, Duration::ZERO, async |mut attempt: calls::Attempt| {
            let request = attempt.request(next.clone());
            attempt.client.list_locks(request).await
        });
        let page = page.await?;
        locks.extend(page.locks);
        next.page_token = page.next_page_token;
        if next.page_token.is_empty() {
            break;
        }
    }
    match (args.json, locks.is_empty()) {
        (true, _) => print::json(&Value::Array(locks.iter().map(as_json).collect())),
        (false, true) => print::line("No lock is held or waited for"),
        (false, false) => print::table(
            ["NAME", "HOLDER", "TOKEN", "REMAINING", "MODE", "HOLDERS", "WAITING"],
            locks.iter().map(row),
        ),
    }
}

fn row(lock: &LockSummary) -> [String; 7] {
    let held = |text: String| if lock.holder_count > 0 { text } else { "-".to_owned() };
    [
        lock.resource_id.clone(),
        held(lock.owner.clone()),
        held(lock.fencing_token.to_string()),
        held(print::brief_ms(lock.remaining_ms)),
        print::mode(lock.mode()).to_owned(),
        lock.holder_count.to_string(),
        lock.queue_length.to_string(),
    ]
}

fn as_json(lock: &LockSummary) -> Value {
    json!({
        "name": lock.resource_id,
        "owner": lock.owner,
        "fencing_token": lock.fencing_token,
        "remaining_ms": lock.remaining_ms,
        "mode": print::mode(lock.mode()),
        "holder_count": lock.holder_count,
        "queue_length": lock.queue_length,
    })
}
