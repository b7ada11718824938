//! `raftlock renew R`: gives a lock that is held a new lease.

use std::time::Duration;

use raftlock_proto::v1::RenewRequest;
use serde_json::json;

use super::failure::Failure;
use super::lease::Lease;
use super::target::Target;
use super::{calls, lock, print};

/// Extend a lock that you hold: its lease counts anew from now.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    lease: Lease,
    /// Token of the grant to extend. Without it, the one that --id holds now.
    #[arg(long, value_name = "TOKEN")]
    token: Option<u64>,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Renews the lock, or says that it is not held.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let Lease { resource, ttl } = args.lease;
    let request = RenewRequest {
        resource_id: resource.clone(),
        client_id: target.id.clone(),
        ttl_ms: lock::millis(ttl),
        fencing_token: args.token.unwrap_or(0),
        ..RenewRequest::default()
    };
    // Renewing twice is renewing once, later.
    let answered = calls::repeatable(target, Duration::ZERO, async |mut attempt: calls::Attempt| {
        let request = attempt.request(request.clone());
        attempt.client.renew(request).await
    });
    let unknown = format!("{resource} may have been renewed; `raftlock get` shows it");
    let answer = answered.await.map_err(|reason| reason.into_failure(&unknown))?;
    let (name, message) = (&resource, &answer.message);
    if args.json {
        let remaining_ms = answer.remaining_ms;
        print::json(
            &json!({ "name": name, "success": answer.success, "message": message, "remaining_ms": remaining_ms }),
        )?;
    } else if answer.success {
        print::line(format_args!("{message}: {name} for {}", print::brief_ms(answer.remaining_ms)))?;
    }
    match answer.success {
        true => Ok(()),
        false => Err(Failure::NotAcquired(format!("{name}: {message}"))),
    }
}
