//! The one way in which this server opens and accepts connections.
//!
//! A node is handed a [`Net`] and never reaches for a socket itself, so that a simulation can put a network of its
//! own underneath. [`TcpNet`] is the real one.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How to reach others and how to be reached.
pub trait Net: Send + Sync + fmt::Debug + 'static {
    /// Connects to `address` (`host:port`).
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Wire>>;
    /// Listens on `address`; port 0 takes a free one, which [`Listen::address`] tells.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>>;
}

/// An open port.
pub trait Listen: Send + Sync {
    /// Where it listens, with the real port.
    fn address(&self) -> String;
    /// The next connection.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Wire>>;
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One connection, whatever carries it.
pub struct Wire {
    stream: Box<dyn Duplex>,
    peer: Option<IpAddr>,
}

impl Wire {
    /// Wraps a connection with somebody who has no address of his own.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Wire::from_peer(None, stream)
    }

    /// Wraps a connection with whoever is at `peer`.
    pub fn from_peer(
        peer: Option<IpAddr>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Wire { stream: Box::new(stream), peer }
    }

    /// Where the other end is. Whoever connected is told apart by it; a dialled connection does not say.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// TCP with Nagle's delay off: a lock's answer is one small packet that somebody waits for.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNet;

impl TcpNet {
    /// The usual way to hand it to a node.
    pub fn shared() -> Arc<dyn Net> {
        Arc::new(TcpNet)
    }
}

impl Net for TcpNet {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Wire>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Wire::new(stream))
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?.to_string();
            Ok(Box::new(TcpPort { listener, address }) as Box<dyn Listen>)
        })
    }
}

struct TcpPort {
    listener: TcpListener,
    address: String,
}

impl Listen for TcpPort {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Wire>> {
        Box::pin(async move {
            let (stream, peer) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Wire::from_peer(Some(peer.ip().to_canonical()), stream))
        })
    }
}
