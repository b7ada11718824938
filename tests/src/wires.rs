//! TCP whose links a test can cut, one direction of dialling at a time.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use raftlock_server::net::{BoxFuture, Listen, Net, TcpNet, Wire};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Addresses that were free a moment ago, all of them at once.
pub struct FreePorts {
    /// `host:port` each.
    pub addresses: Vec<String>,
    _held: Vec<std::net::TcpListener>,
}

impl FreePorts {
    /// Finds `count` of them.
    pub fn take(count: usize) -> FreePorts {
        let held: Vec<std::net::TcpListener> =
            (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let addresses = held.iter().map(|port| port.local_addr().expect("it is bound").to_string()).collect();
        FreePorts { addresses, _held: held }
    }
}

/// Which links are cut. A link is named by who dials and whom, both as peer addresses.
#[derive(Debug, Default)]
pub struct Switchboard {
    cut: watch::Sender<BTreeSet<(String, String)>>,
}

impl Switchboard {
    /// Cuts every connection that `from` makes to `to`, present and future.
    pub fn cut(&self, from: &str, to: &str) {
        self.cut.send_modify(|cut| {
            cut.insert((from.to_owned(), to.to_owned()));
        });
    }

    /// Cuts a node off from the others, both ways.
    pub fn isolate(&self, node: &str, others: &[String]) {
        for other in others.iter().filter(|other| *other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Connections that `from` makes to `to` from now on are whole again.
    pub fn mend(&self, from: &str, to: &str) {
        self.cut.send_modify(|cut| {
            cut.remove(&(from.to_owned(), to.to_owned()));
        });
    }

    /// Everything is whole again.
    pub fn heal(&self) {
        self.cut.send_modify(BTreeSet::clear);
    }
}

/// TCP as one node sees it through the switchboard.
#[derive(Debug)]
pub struct WiredNet {
    /// This node's peer address.
    pub me: String,
    /// The links.
    pub switchboard: Arc<Switchboard>,
}

impl Net for WiredNet {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Wire>> {
        Box::pin(async move {
            let link = (self.me.clone(), address.to_owned());
            let mut cut = self.switchboard.cut.subscribe();
            if cut.borrow().contains(&link) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let wire = TcpNet.dial(address).await?;
            let severed = Box::pin(async move {
                let _ = cut.wait_for(|cut| cut.contains(&link)).await;
            });
            Ok(Wire::new(CutWire { wire, severed, dead: false }))
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
        TcpNet.listen(address)
    }
}

/// A connection that turns silent when its link is cut: nothing comes, nothing goes, and nobody is told.
struct CutWire {
    wire: Wire,
    severed: Pin<Box<dyn Future<Output = ()> + Send>>,
    dead: bool,
}

impl CutWire {
    fn is_dead(&mut self, cx: &mut Context<'_>) -> bool {
        self.dead = self.dead || self.severed.as_mut().poll(cx).is_ready();
        self.dead
    }
}

impl AsyncRead for CutWire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_dead(cx) { Poll::Pending } else { Pin::new(&mut self.wire).poll_read(cx, buf) }
    }
}

impl AsyncWrite for CutWire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // A packet that is lost looks like one that was sent.
        if self.is_dead(cx) {
            Poll::Ready(Ok(buf.len()))
        } else {
            Pin::new(&mut self.wire).poll_write(cx, buf)
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
