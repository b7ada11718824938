//! A node's two ports: what is listened on, what others are told, and the services behind.

use std::sync::Arc;

use raftlock_proto::peer::peer_server::PeerServer;
use raftlock_proto::v1::admin_server::AdminServer;
use raftlock_proto::v1::raft_lock_server::RaftLockServer;
use raftlock_proto::{DESCRIPTOR, SESSION_REQUEST_BYTES_MAX};
use tokio_util::sync::CancellationToken;

use super::NodeError;
use crate::edge::Edge;
use crate::links::PEER_MESSAGE_BYTES_MAX;
use crate::net::{Listen, Net};
use crate::service::admin::AdminService;
use crate::service::gate::Gate;
use crate::service::lock::LockService;
use crate::service::peer::PeerService;
use crate::service::serve;

pub async fn listen(net: &dyn Net, address: &str) -> Result<Box<dyn Listen>, NodeError> {
    let listening = net.listen(address).await;
    listening.map_err(|source| NodeError::Listen { address: address.to_owned(), source: Arc::new(source) })
}

/// What others are told. A wildcard address is no address: then it is the node's name, with the real port.
pub fn advertised(given: Option<&str>, listening: &str, node_name: &str) -> String {
    if let Some(given) = given {
        return given.to_owned();
    }
    let (host, port) = listening.rsplit_once(':').unwrap_or((listening, "0"));
    match host {
        "0.0.0.0" | "[::]" => format!("{node_name}:{port}"),
        _ => listening.to_owned(),
    }
}

/// Serves clients until `stop`, and says in the health service whether calls get anywhere.
pub async fn serve_public(
    edge: Arc<Edge>,
    admin: AdminService,
    reflection: bool,
    port: Box<dyn Listen>,
    stop: CancellationToken,
) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let lock = RaftLockServer::new(LockService { edge: edge.clone() })
        .max_decoding_message_size(SESSION_REQUEST_BYTES_MAX);
    let admin = AdminServer::new(admin).max_decoding_message_size(SESSION_REQUEST_BYTES_MAX);
    let reflected = reflection.then(|| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptor is checked in with the code")
    });
    let router = serve::builder()
        .layer(serve::Corrected)
        .add_service(health)
        .add_service(lock)
        .add_service(admin)
        .add_optional_service(reflected);
    let mut route = edge.watch_route();
    let report = async {
        loop {
            let ready = !matches!(*route.borrow_and_update(), crate::edge::Route::Nowhere(_));
            let status = if ready {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            reporter.set_service_status("", status).await;
            reporter.set_service_status("raftlock.v1.RaftLock", status).await;
            if route.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        served = serve::run(router, port, Gate::public(), stop) => log_end("public", served),
        () = report => {}
    }
}

/// Serves the other nodes until `stop`.
pub async fn serve_peers(peers: PeerService, port: Box<dyn Listen>, stop: CancellationToken) {
    let service = PeerServer::new(peers)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let router = serve::builder().layer(serve::Corrected).add_service(service);
    log_end("peer", serve::run(router, port, Gate::peers(), stop).await);
}

fn log_end(port: &str, served: Result<(), tonic::transport::Error>) {
    if let Err(error) = served {
        tracing::error!(port, %error, "a port stopped serving");
    }
}
