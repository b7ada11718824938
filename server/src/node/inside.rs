//! The way into a node from its own process: the SDK's client, over a connection that is two ends of memory.
//!
//! The other end is the node's public service, the same that a TCP port would lead to. So a client in the process is
//! like any other: its sessions are relayed to the leader, and stay where they are when the leader changes. It has one
//! endpoint, though. When the node is cut off, the client is cut off with it, and its guards are lost by their own
//! deadline; when the node cannot go on or stops, it closes the client.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use raftlock::Client;
use raftlock::seams::Connection;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::net::{BoxFuture, Listen, Wire};

/// Connections that may wait to be accepted: a client opens one at a time.
const DIALS_WAITING_MAX: usize = 16;

/// Bytes that may lie unread in each direction: as much as one message of a session stream.
const BYTES_UNREAD_MAX: usize = 64 * 1024;

/// The end that dials.
#[derive(Clone, Debug)]
struct Door(mpsc::Sender<Wire>);

impl Door {
    async fn dial(&self) -> io::Result<DuplexStream> {
        let (near, far) = tokio::io::duplex(BYTES_UNREAD_MAX);
        let gone =
            |_| io::Error::new(io::ErrorKind::ConnectionRefused, "the node of this process has stopped");
        self.0.send(Wire::new(far)).await.map_err(gone)?;
        Ok(near)
    }
}

/// The end that listens. It is closed when the node stops.
struct InsidePort(mpsc::Receiver<Wire>);

impl Listen for InsidePort {
    fn address(&self) -> String {
        "inside the process".to_owned()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Wire>> {
        Box::pin(async move {
            match self.0.recv().await {
                Some(wire) => Ok(wire),
                // Whoever could dial is gone.
                None => std::future::pending().await,
            }
        })
    }
}

/// A node's client in its own process, made when it is first asked for.
#[derive(Debug)]
pub struct Inside {
    door: Door,
    client: OnceLock<Client>,
    owner: String,
    /// What the client calls its endpoint, in errors.
    endpoint: String,
    default_ttl: Duration,
}

impl Inside {
    /// The way in, and the port to serve it on.
    pub fn new(owner: &str, endpoint: &str, default_ttl: Duration) -> (Arc<Inside>, Box<dyn Listen>) {
        let (door, port) = mpsc::channel(DIALS_WAITING_MAX);
        let inside = Inside {
            door: Door(door),
            client: OnceLock::new(),
            owner: owner.to_owned(),
            endpoint: endpoint.to_owned(),
            default_ttl,
        };
        (Arc::new(inside), Box::new(InsidePort(port)))
    }

    /// The client; always the same one.
    pub fn client(&self) -> Result<Client, raftlock::Error> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let door = self.door.clone();
        let mut seams = raftlock::seams::Seams::production();
        // There is one way in, whichever address a server named.
        seams.dial = Arc::new(move |_| {
            let door = door.clone();
            Box::pin(async move { Ok(Connection::new(door.dial().await?)) })
        });
        let client = Client::builder()
            .endpoints(self.endpoint.as_str())
            .owner(self.owner.as_str())
            .default_ttl(self.default_ttl)
            .seams(seams)
            .lazy()?;
        // Of two that were made at once, the second is dropped before anybody used it.
        Ok(self.client.get_or_init(|| client).clone())
    }

    /// Closes the client, if there is one: its guards are lost at once, its locks are freed if the cluster can be
    /// asked. Takes no longer than [`Client::close`].
    pub async fn close(&self) {
        if let Some(client) = self.client.get() {
            client.close().await;
        }
    }
}
