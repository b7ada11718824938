//! Who may come in through a port, and how long somebody may stand in the door.
//!
//! Neither tonic nor hyper bounds the connections of a server, nor how long one may be open without a word of HTTP/2.
//! Without a bound one stranger's idle sockets use up the process's descriptors, and the disk and the other nodes need
//! some too.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::host;
use crate::net::Wire;

/// How long a new connection may take to send the preface of HTTP/2, from when it was accepted. From then on the
/// pings of [`super::serve::PING`] tell whether anybody is there.
pub const PREFACE_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of that preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// Connections of one port, however many descriptors there are: one costs tens of kilobytes, so this many cost a few
/// gigabytes.
const CONNECTIONS_MAX: usize = 100_000;

/// Counts the connections of a port, and refuses those above its bounds.
#[derive(Debug)]
pub struct Gate {
    port: &'static str,
    /// Connections in all.
    most: usize,
    /// Connections from one address: half of them all, so that no single address shuts everybody else out.
    most_of_one: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: Count,
    /// Addresses with at least one open connection.
    by_address: HashMap<IpAddr, Count>,
}

#[derive(Debug, Default)]
struct Count {
    connections: usize,
    /// Somebody was refused, and it was said; it is said again once there was room in between.
    refusing: bool,
}

impl Gate {
    /// For clients: five eighths of the descriptors that this process may have.
    pub fn public() -> Arc<Gate> {
        Gate::new("public", host::descriptors_max() / 8 * 5)
    }

    /// For the other nodes: a quarter. The eighth that is left is for the disk and for what this node dials.
    pub fn peers() -> Arc<Gate> {
        Gate::new("peer", host::descriptors_max() / 4)
    }

    fn new(port: &'static str, most: usize) -> Arc<Gate> {
        let most = most.clamp(2, CONNECTIONS_MAX);
        Arc::new(Gate { port, most, most_of_one: most / 2, open: Mutex::default() })
    }

    /// The connection, if there is room for it; dropped, and so closed, if not.
    pub fn admit(self: &Arc<Self>, wire: Wire) -> Option<Wire> {
        let address = wire.peer();
        let mut open = self.open();
        let open = &mut *open;
        if !open.all.has_room(self.most) {
            if open.all.begins_to_refuse() {
                tracing::warn!(
                    port = self.port,
                    most = self.most,
                    "connections are refused: there are too many"
                );
            }
            return None;
        }
        if let Some(address) = address {
            let count = open.by_address.entry(address).or_default();
            if !count.has_room(self.most_of_one) {
                if count.begins_to_refuse() {
                    let (port, most) = (self.port, self.most_of_one);
                    tracing::warn!(port, %address, most, "connections from one address are refused: it has too many");
                }
                return None;
            }
            count.connections += 1;
        }
        open.all.connections += 1;
        let place = Place { gate: self.clone(), address };
        Some(Wire::from_peer(address, Visitor { wire, door: Some(Door::new()), _place: place }))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("nobody panics while counting")
    }
}

impl Count {
    fn has_room(&self, most: usize) -> bool {
        self.connections < most
    }

    /// Whether this refusal is the first one since there was room.
    fn begins_to_refuse(&mut self) -> bool {
        !std::mem::replace(&mut self.refusing, true)
    }

    fn leave(&mut self, most: usize) {
        self.connections -= 1;
        // With some distance, so that a connection that comes and goes at the bound does not fill the log.
        self.refusing &= self.connections >= most - most / 8;
    }
}

/// A place among the open connections, given back when it is dropped.
struct Place {
    gate: Arc<Gate>,
    address: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.gate.open();
        open.all.leave(self.gate.most);
        let Some(address) = self.address else { return };
        let count = open.by_address.get_mut(&address).expect("its connection was counted");
        count.leave(self.gate.most_of_one);
        if count.connections == 0 {
            open.by_address.remove(&address);
        }
    }
}

/// A connection that was let in.
struct Visitor {
    wire: Wire,
    /// Until the preface is whole.
    door: Option<Door>,
    _place: Place,
}

/// What is still missing of the preface, and until when. What it says is for the HTTP/2 server to judge.
struct Door {
    missing: usize,
    closes: Pin<Box<Sleep>>,
}

impl Door {
    fn new() -> Door {
        Door { missing: PREFACE_BYTES, closes: Box::pin(tokio::time::sleep(PREFACE_LIMIT)) }
    }
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Visitor { wire, door, .. } = &mut *self;
        let Some(Door { missing, closes }) = door else { return Pin::new(wire).poll_read(cx, buf) };
        if closes.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no preface of HTTP/2 in time")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(wire).poll_read(cx, buf))?;
        *missing = missing.saturating_sub(buf.filled().len() - before);
        if *missing == 0 {
            *door = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    const PREFACE: &[u8; PREFACE_BYTES] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn from(address: [u8; 4]) -> (Wire, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        (Wire::from_peer(Some(address.into()), ours), theirs)
    }

    /// Admits as many as it takes from one address.
    fn crowd(gate: &Arc<Gate>, address: [u8; 4], size: usize) -> Vec<Wire> {
        (0..size).map_while(|_| gate.admit(from(address).0)).collect()
    }

    #[tokio::test]
    async fn one_address_gets_half_of_the_places_and_all_get_them_all() {
        let gate = Gate::new("test", 10);
        let one = crowd(&gate, [10, 0, 0, 1], 100);
        assert_eq!(one.len(), 5);
        let two = crowd(&gate, [10, 0, 0, 2], 3);
        let three = crowd(&gate, [10, 0, 0, 3], 100);
        assert_eq!((two.len(), three.len()), (3, 2));
        assert!(gate.admit(Wire::new(duplex(1).0)).is_none(), "ten are open");
        drop(one);
        assert_eq!(crowd(&gate, [10, 0, 0, 1], 100).len(), 5);
        drop((two, three));
        let open = gate.open();
        assert_eq!(
            (open.all.connections, open.by_address.len()),
            (0, 0),
            "nothing is kept of those who left"
        );
    }

    #[tokio::test]
    async fn refusals_are_told_once_until_there_is_room_again() {
        let mut count = Count { connections: 80, refusing: false };
        assert!(count.begins_to_refuse() && !count.begins_to_refuse());
        for _ in 0..10 {
            count.leave(80);
            assert!(!count.begins_to_refuse(), "{count:?}");
        }
        count.leave(80);
        assert!(count.begins_to_refuse());
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_says_it_slowly_is_shown_out() {
        let gate = Gate::new("test", 10);
        let begun = Instant::now();
        let (wire, mut slow) = from([10, 0, 0, 1]);
        let mut wire = gate.admit(wire).expect("room");
        let speaking = tokio::spawn(async move {
            for byte in PREFACE {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if slow.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        });
        let mut heard = Vec::new();
        let ended = wire.read_to_end(&mut heard).await.expect_err("it took too long");
        assert_eq!((ended.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, PREFACE_LIMIT));
        assert!(heard.len() < PREFACE_BYTES);
        drop(wire);
        speaking.await.expect("it is told");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_introduced_himself_may_be_silent() {
        let gate = Gate::new("test", 10);
        let (wire, mut theirs) = from([10, 0, 0, 1]);
        let mut wire = gate.admit(wire).expect("room");
        theirs.write_all(&PREFACE[..20]).await.expect("it is open");
        let mut heard = [0; 20];
        wire.read_exact(&mut heard).await.expect("it is open");
        tokio::time::sleep(PREFACE_LIMIT - Duration::from_millis(1)).await;
        theirs.write_all(&PREFACE[20..]).await.expect("it is open");
        wire.read_exact(&mut heard[..4]).await.expect("the preface is whole");
        let silence = tokio::time::timeout(PREFACE_LIMIT * 100, wire.read_u8()).await;
        assert!(silence.is_err(), "{silence:?}");
    }
}
