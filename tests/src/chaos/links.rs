//! The links between hosts: a proxy for every address that is shared, with weather of its own for each direction of each
//! pair of hosts.
//!
//! TCP repairs what a network loses, doubles and reorders; what is left of it for a program is delay, silence, and
//! connections that end. So that is what the weather makes, and a loss is the delay of a retransmission. What is blocked
//! waits, as unacknowledged segments do, and goes on when the link is open again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use raftlock::CancellationToken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::place::{CLIENT_PORT, Host, PEER_PORT};
use crate::tally::Tally;
use crate::world::lock;

/// Pieces that may be under way in one direction of a connection; beyond that the sender's window is closed.
const UNDER_WAY: usize = 64;

/// Bytes of one piece.
const PIECE: usize = 16 * 1024;

/// The delay of a segment that was lost: a retransmission comes 200 ms later at the soonest, and may be lost too.
const RETRANSMISSION_MS: RangeInclusive<u64> = 200..=1_000;

/// One direction of a link.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Weather {
    /// Nothing gets through.
    pub(crate) blocked: bool,
    /// Milliseconds that everything takes, from and to.
    pub(crate) delay_ms: Option<(u64, u64)>,
    /// Of a hundred pieces, so many are lost at first.
    pub(crate) lost_percent: u8,
    /// Of a thousand pieces, so many never arrive, because the connection ends with them.
    pub(crate) cut_permille: u16,
}

/// By who speaks and to whom.
type Sky = BTreeMap<(Host, Host), Weather>;

/// All links. Clones share them.
#[derive(Clone)]
pub(crate) struct Links {
    sky: Arc<watch::Sender<Sky>>,
    tally: Arc<Mutex<Tally>>,
    rng: Arc<Mutex<fastrand::Rng>>,
}

impl Links {
    /// Opens the shared addresses of all nodes.
    pub(crate) async fn open(seed: u64) -> anyhow::Result<Links> {
        let rng = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
        let links = Links { sky: Arc::new(watch::Sender::new(Sky::new())), tally: Arc::default(), rng };
        for host in Host::nodes() {
            for port in [CLIENT_PORT, PEER_PORT] {
                let address = SocketAddr::from((host.shared(), port));
                let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
                tokio::spawn(links.clone().serve(listener, host, port));
            }
        }
        Ok(links)
    }

    /// Sets one direction.
    pub(crate) fn set(&self, from: Host, to: Host, weather: &Weather) {
        self.sky.send_modify(|sky| {
            sky.insert((from, to), weather.clone());
        });
    }

    /// Sets both directions.
    pub(crate) fn set_both(&self, one: Host, other: Host, weather: &Weather) {
        self.set(one, other, weather);
        self.set(other, one, weather);
    }

    /// Nothing gets through between the two groups.
    pub(crate) fn part(&self, some: &[Host], others: &[Host]) {
        let blocked = Weather { blocked: true, ..Weather::default() };
        for one in some {
            others.iter().for_each(|other| self.set_both(*one, *other, &blocked));
        }
    }

    /// Good weather everywhere.
    pub(crate) fn heal(&self) {
        self.sky.send_modify(Sky::clear);
    }

    /// Good weather, and nothing has happened yet.
    pub(crate) fn renew(&self) {
        self.heal();
        *lock(&self.tally) = Tally::default();
    }

    /// What happened to connections and pieces.
    pub(crate) fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    fn count(&self, what: &str) {
        lock(&self.tally).add(what, 1);
    }

    async fn serve(self, listener: TcpListener, to: Host, port: u16) {
        loop {
            // Out of descriptors: the harness is broken, and its scenario will fail of itself.
            let Ok((near, address)) = listener.accept().await else { continue };
            let IpAddr::V4(address) = address.ip() else { continue };
            let Some(from) = Host::at_address(address) else { continue };
            let links = self.clone();
            tokio::spawn(async move {
                links.way(from, to).open().await;
                let Ok(far) = TcpStream::connect((to.inside(), port)).await else { return };
                links.way(to, from).open().await;
                links.carry(near, far, from, to).await;
            });
        }
    }

    async fn carry(&self, near: TcpStream, far: TcpStream, from: Host, to: Host) {
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let cut = CancellationToken::new();
        let there = pump(near_read, far_write, self.way(from, to), cut.clone());
        let back = pump(far_read, near_write, self.way(to, from), cut.clone());
        tokio::select! {
            () = cut.cancelled() => {}
            ((), ()) = async { tokio::join!(there, back) } => {}
        }
    }

    fn way(&self, from: Host, to: Host) -> Way {
        Way { links: self.clone(), from, to }
    }
}

/// One direction of a link, as a connection sees it.
struct Way {
    links: Links,
    from: Host,
    to: Host,
}

impl Way {
    fn weather(&self) -> Weather {
        self.links.sky.borrow().get(&(self.from, self.to)).cloned().unwrap_or_default()
    }

    /// Waits until something gets through.
    async fn open(&self) {
        let pair = (self.from, self.to);
        let mut sky = self.links.sky.subscribe();
        let is_open = |sky: &Sky| !sky.get(&pair).is_some_and(|weather| weather.blocked);
        if !is_open(&sky.borrow()) {
            self.links.count("pieces and connections held up");
        }
        // The sender lives in `links`.
        let _ = sky.wait_for(is_open).await;
    }

    /// When a piece that is sent now arrives; `None`: never, and the connection ends.
    fn arrival(&self) -> Option<Instant> {
        let Weather { delay_ms, lost_percent, cut_permille, .. } = self.weather();
        let mut rng = lock(&self.links.rng);
        if rng.u16(0..1_000) < cut_permille {
            self.links.count("connections cut with an answer under way");
            return None;
        }
        let mut delay = delay_ms.map_or(0, |(from, to)| rng.u64(from..=to));
        if delay > 0 {
            self.links.count("pieces delayed");
        }
        while rng.u8(0..100) < lost_percent {
            self.links.count("pieces lost and sent again");
            delay += rng.u64(RETRANSMISSION_MS);
        }
        Some(Instant::now() + Duration::from_millis(delay))
    }
}

/// Carries one direction until its sender is through. Cancels `cut` when the connection is at its end for both.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, cut: CancellationToken) {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let take_in = async {
        let mut latest = Instant::now();
        let mut piece = vec![0; PIECE];
        while let Ok(size @ 1..) = from.read(&mut piece).await {
            let Some(arrival) = way.arrival() else { return cut.cancel() };
            latest = latest.max(arrival);
            if queue.send((latest, piece[..size].to_vec())).await.is_err() {
                return;
            }
        }
        drop(queue);
    };
    let hand_out = async {
        while let Some((arrival, piece)) = queued.recv().await {
            sleep_until(arrival).await;
            way.open().await;
            if to.write_all(&piece).await.is_err() {
                return cut.cancel();
            }
        }
        way.open().await;
        let _ = to.shutdown().await;
    };
    tokio::join!(take_in, hand_out);
}
