//! Connections in memory. Each direction delays its pieces; a connection is cut, or swallows what comes, at times that the
//! seed chooses.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftlock::CancellationToken;
use raftlock::seams::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::world::lock;

/// Bytes that may be under way in one direction.
const UNDER_WAY: usize = 64 * 1024;

/// Bytes of one piece.
const PIECE: usize = 4 * 1024;

/// The lines of one client. Clones share them.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Where new connections go.
    accepted: mpsc::UnboundedSender<DuplexStream>,
}

struct State {
    rng: fastrand::Rng,
    /// The longest that a piece takes, in milliseconds.
    delay_ms: u64,
    /// Dials are refused.
    down: bool,
    /// What comes from the leader gets lost.
    deaf: bool,
    /// Ends the connections that are open.
    cut: CancellationToken,
}

impl Lines {
    /// Lines to whoever listens at `accepted`.
    pub(super) fn new(seed: u64, delay_ms: u64, accepted: mpsc::UnboundedSender<DuplexStream>) -> Lines {
        let rng = fastrand::Rng::with_seed(seed);
        let state = State { rng, delay_ms, down: false, deaf: false, cut: CancellationToken::new() };
        Lines(Arc::new(Shared { state: Mutex::new(state), accepted }))
    }

    /// Ends all connections.
    pub(super) fn cut(&self) {
        let mut state = lock(&self.0.state);
        std::mem::replace(&mut state.cut, CancellationToken::new()).cancel();
    }

    /// Refuses dials, or takes them again.
    pub(super) fn set_down(&self, down: bool) {
        lock(&self.0.state).down = down;
    }

    /// Loses what the leader says, or lets it through again. A connection that lost something is cut when it gets through
    /// again: it would not make sense any more.
    pub(super) fn set_deaf(&self, deaf: bool) {
        let was_deaf = std::mem::replace(&mut lock(&self.0.state).deaf, deaf);
        if was_deaf && !deaf {
            self.cut();
        }
    }

    /// Good lines from here on.
    pub(super) fn heal(&self) {
        self.set_down(false);
        self.set_deaf(false);
        lock(&self.0.state).delay_ms = 1;
    }

    /// As the SDK dials.
    pub(super) async fn dial(self) -> io::Result<Connection> {
        let cut = {
            let state = lock(&self.0.state);
            if state.down {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            state.cut.clone()
        };
        let (ours, near) = duplex(UNDER_WAY);
        let (far, theirs) = duplex(UNDER_WAY);
        self.0.accepted.send(theirs).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
        let there = self.clone().pump(near_read, far_write, false);
        let back = self.pump(far_read, near_write, true);
        tokio::spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                ((), ()) = async { tokio::join!(there, back) } => {}
            }
        });
        Ok(Connection::new(ours))
    }

    async fn pump(
        self,
        mut from: ReadHalf<DuplexStream>,
        mut to: WriteHalf<DuplexStream>,
        from_leader: bool,
    ) {
        let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let take_in = async {
            let (mut latest, mut piece) = (Instant::now(), vec![0; PIECE]);
            while let Ok(size @ 1..) = from.read(&mut piece).await {
                let Some(delay) = self.delay(from_leader) else { continue };
                latest = latest.max(Instant::now() + delay);
                if queue.send((latest, piece[..size].to_vec())).is_err() {
                    return;
                }
            }
            drop(queue);
        };
        let hand_out = async {
            while let Some((at, piece)) = queued.recv().await {
                sleep_until(at).await;
                if to.write_all(&piece).await.is_err() {
                    return;
                }
            }
            let _ = to.shutdown().await;
        };
        tokio::join!(take_in, hand_out);
    }

    /// How long a piece takes; `None`: for ever.
    fn delay(&self, from_leader: bool) -> Option<Duration> {
        let mut state = lock(&self.0.state);
        if from_leader && state.deaf {
            return None;
        }
        let longest = state.delay_ms;
        Some(Duration::from_millis(state.rng.u64(0..=longest)))
    }
}
