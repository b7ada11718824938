//! Addresses that stay free, and TCP whose links a test can cut, mute and count, one direction at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use crate::net::{BoxFuture, Listen, Net, TcpNet, Wire};

/// Addresses on this machine that nobody else uses.
///
/// On Linux they stay so while this lives, also while a node is down: each is bound by a socket that does not listen,
/// so that dials are refused, the system gives the port to nobody, and a node may listen there all the same.
/// Elsewhere they were free a moment ago.
#[derive(Debug)]
pub struct FreePorts {
    /// `host:port` each.
    pub addresses: Vec<String>,
    _held: Vec<TcpSocket>,
}

impl FreePorts {
    /// Finds `count` of them.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn take(count: usize) -> FreePorts {
        FreePorts::find(count).expect("free ports")
    }

    /// As [`take`](Self::take); fails if there are not so many.
    pub fn find(count: usize) -> io::Result<FreePorts> {
        let mut held = (0..count).map(|_| bound()).collect::<io::Result<Vec<TcpSocket>>>()?;
        let address = |port: &TcpSocket| Ok(port.local_addr()?.to_string());
        let addresses = held.iter().map(address).collect::<io::Result<_>>()?;
        if !cfg!(target_os = "linux") {
            held.clear();
        }
        Ok(FreePorts { addresses, _held: held })
    }
}

fn bound() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // As every listener of ours: it is what lets two sockets have one address while only one listens.
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    Ok(socket)
}

/// A link or a direction: two peer addresses.
type Pair = (String, String);

/// Which links are cut or muted, and what went over them. A link is named by who dials and whom, both as peer addresses.
#[derive(Debug, Default)]
pub struct Switchboard {
    trouble: watch::Sender<Trouble>,
    counts: Mutex<BTreeMap<Pair, Counts>>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// By who dials and whom.
    cut: BTreeSet<Pair>,
    /// By who speaks and to whom, whoever dialled.
    muted: BTreeSet<Pair>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    dials: u64,
    bytes: u64,
    /// The link is cut by itself after so many more bytes.
    cut_after: Option<u64>,
}

impl Switchboard {
    /// Cuts every connection that `from` makes to `to`, present and future.
    pub fn cut(&self, from: &str, to: &str) {
        self.trouble.send_modify(|trouble| {
            trouble.cut.insert((from.to_owned(), to.to_owned()));
        });
    }

    /// Cuts that link when `bytes` more have gone over it.
    pub fn cut_after(&self, from: &str, to: &str, bytes: u64) {
        self.lock().entry((from.to_owned(), to.to_owned())).or_default().cut_after = Some(bytes);
    }

    /// Whether connections that `from` makes to `to` are cut.
    pub fn is_cut(&self, from: &str, to: &str) -> bool {
        self.trouble.borrow().cut.contains(&(from.to_owned(), to.to_owned()))
    }

    /// What `from` says to `to` vanishes, on every connection between them; what `to` says arrives, and new connections
    /// are accepted. A connection that lost something stays mute, also when all is whole again.
    pub fn mute(&self, from: &str, to: &str) {
        self.trouble.send_modify(|trouble| {
            trouble.muted.insert((from.to_owned(), to.to_owned()));
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
        self.trouble.send_modify(|trouble| {
            trouble.cut.remove(&(from.to_owned(), to.to_owned()));
        });
    }

    /// Everything is whole again.
    pub fn heal(&self) {
        self.trouble.send_modify(|trouble| *trouble = Trouble::default());
    }

    /// How many bytes `from` has sent to `to` on connections that it dialled.
    pub fn bytes(&self, from: &str, to: &str) -> u64 {
        self.lock().get(&(from.to_owned(), to.to_owned())).map_or(0, |counts| counts.bytes)
    }

    /// How many connections `from` has made to `to`.
    pub fn dials(&self, from: &str, to: &str) -> u64 {
        self.lock().get(&(from.to_owned(), to.to_owned())).map_or(0, |counts| counts.dials)
    }

    fn sent(&self, link: &Pair, bytes: u64) {
        let full = {
            let mut counts = self.lock();
            let counts = counts.entry(link.clone()).or_default();
            counts.bytes += bytes;
            counts.cut_after = counts.cut_after.map(|left| left.saturating_sub(bytes));
            let full = counts.cut_after == Some(0);
            if full {
                counts.cut_after = None;
            }
            full
        };
        if full {
            self.cut(&link.0, &link.1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Pair, Counts>> {
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
            let back = (address.to_owned(), self.me.clone());
            if self.switchboard.trouble.borrow().cut.contains(&link) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let wire = TcpNet.dial(address).await?;
            self.switchboard.lock().entry(link.clone()).or_default().dials += 1;
            let when = |hit: fn(&Trouble, &Pair) -> bool, pair: Pair| -> Severed {
                let mut trouble = self.switchboard.trouble.subscribe();
                Severed::when(async move {
                    let _ = trouble.wait_for(|trouble| hit(trouble, &pair)).await;
                })
            };
            Ok(Wire::new(TroubledWire {
                wire,
                switchboard: self.switchboard.clone(),
                link: link.clone(),
                cut: when(|trouble, pair| trouble.cut.contains(pair), link.clone()),
                deaf: when(|trouble, pair| trouble.muted.contains(pair), back),
                mute: when(|trouble, pair| trouble.muted.contains(pair), link),
            }))
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
        TcpNet.listen(address)
    }
}

/// Something that happens to a connection once, for good.
struct Severed {
    happens: Pin<Box<dyn Future<Output = ()> + Send>>,
    happened: bool,
}

impl Severed {
    fn when(happens: impl Future<Output = ()> + Send + 'static) -> Severed {
        Severed { happens: Box::pin(happens), happened: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.happened = self.happened || self.happens.as_mut().poll(cx).is_ready();
        self.happened
    }
}

/// A connection that turns silent when its link is cut or muted: what should come does not, what goes is lost, and
/// nobody is told.
struct TroubledWire {
    wire: Wire,
    switchboard: Arc<Switchboard>,
    link: Pair,
    cut: Severed,
    /// Nothing comes any more.
    deaf: Severed,
    /// What goes is lost.
    mute: Severed,
}

impl AsyncRead for TroubledWire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.poll(cx) | self.deaf.poll(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for TroubledWire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // A packet that is lost looks like one that was sent.
        if self.cut.poll(cx) | self.mute.poll(cx) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = std::task::ready!(Pin::new(&mut self.wire).poll_write(cx, buf))?;
        self.switchboard.sent(&self.link, written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_taken_address_refuses_dials_and_can_be_listened_on_again_and_again() {
        let ports = FreePorts::take(1);
        let address = ports.addresses[0].as_str();
        for _ in 0..2 {
            let refused = TcpNet.dial(address).await.err().expect("nobody listens");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            let _port = TcpNet.listen(address).await.expect("it is ours");
            TcpNet.dial(address).await.expect("somebody listens");
        }
    }
}
