//! `raftlock unlock R`: releases a lock.

use raftlock_proto::v1::UnlockRequest;
use serde_json::json;

use super::failure::Failure;
use super::target::Target;
use super::{calls, print};

/// Release a lock that you hold.
///
/// Without --token it acts on what --id holds now, so a delayed duplicate of it can hit a later grant.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lock.
    #[arg(value_name = "RESOURCE")]
    resource: String,
    /// Token of the grant to release.
    #[arg(long, value_name = "TOKEN")]
    token: Option<u64>,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Releases the lock, or says that it is not held.
pub async fn execute(args: Args, target: &Target) -> Result<(), Failure> {
    let request = UnlockRequest {
        resource_id: args.resource.clone(),
        client_id: target.id.clone(),
        fencing_token: args.token.unwrap_or(0),
        ..UnlockRequest::default()
    };
    // A repeat after a release that was executed would be told that nothing is held.
    let answered = calls::once(target, async |mut attempt: calls::Attempt| {
        let request = attempt.request(request.clone());
        attempt.client.unlock(request).await
    });
    let unknown = format!("{} may have been released; `raftlock get` shows it", args.resource);
    let answer = answered.await.map_err(|reason| reason.into_failure(&unknown))?;
    if args.json {
        print::json(&json!({ "name": args.resource, "success": answer.success, "message": answer.message }))?;
    } else if answer.success {
        print::line(format_args!("{}: {}", answer.message, args.resource))?;
    }
    match answer.success {
        true => Ok(()),
        false => Err(Failure::NotAcquired(format!("{}: {}", args.resource, answer.message))),
    }
}
