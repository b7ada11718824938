//! Somebody who only asks who holds what, each node in its turn, and in the chaos only: a leader that was deposed and has
//! not heard of it is asked too, and must not answer from its own memory.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use raftlock_proto::v1::GetLockRequest;
use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use tonic::transport::{Channel, Endpoint};

use super::clients::Shared;
use super::hosts::CLIENT_PORT;

/// The host that it is.
pub(crate) const READER: &str = "reader";

/// Between two questions to one node.
const EVERY: Duration = Duration::from_millis(150);

/// A node that does not answer is asked again later.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks each node in a task of its own, so that one that is silent holds nobody up.
pub(crate) async fn read(shared: Shared) -> turmoil::Result {
    for (at, host) in shared.plan.hosts().iter().enumerate() {
        tokio::spawn(of_one(host, at as u64, shared.clone()));
    }
    // With its host's own future its tasks would stand still.
    std::future::pending().await
}

async fn of_one(host: &'static str, at: u64, shared: Shared) {
    let mut rng = fastrand::Rng::with_seed(shared.plan.seed ^ at ^ 0x0EAD);
    let dial = tower::service_fn(move |_| async move {
        Ok::<_, std::io::Error>(TokioIo::new(turmoil::net::TcpStream::connect((host, CLIENT_PORT)).await?))
    });
    let endpoint = Endpoint::from_shared(format!("http://{host}:{CLIENT_PORT}")).expect("a good address");
    // No retransmission is simulated: what a partition swallowed has to be given up.
    let endpoint = endpoint.timeout(LIMIT).http2_keep_alive_interval(LIMIT).keep_alive_timeout(LIMIT);
    let mut node = RaftLockClient::new(endpoint.connect_with_connector_lazy(dial));
    let history = shared.history.clone();
    while history.now() < shared.plan.chaos {
        tokio::time::sleep(EVERY).await;
        one(&mut node, format!("lock-{}", rng.usize(0..shared.plan.locks)), &shared).await;
    }
}

async fn one(node: &mut RaftLockClient<Channel>, lock: String, shared: &Shared) {
    let asked = shared.history.now();
    let request = GetLockRequest { resource_id: lock.clone() };
    if let Ok(answer) = node.get_lock(request).await {
        let token = answer.into_inner().holders.first().map(|holder| holder.fencing_token);
        shared.history.read(READER, &lock, token, asked);
        shared.count("reads");
    }
}
