//! A second connection, kept warm, so that the loss of the first costs no dial.
//!
//! It carries no stream and shows nobody a secret. Whether its server is one of ours is checked when it is used.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Happening;
use super::links::Task;
use crate::endpoints::Target;
use crate::seams::{Dial, Random};
use crate::transport::{self, Conn};

/// Before another try, after one that failed or a connection that ended.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Standby {
    state: State,
    last_id: u64,
}

enum State {
    None { again_at: Option<Instant> },
    Dialing { id: u64, _task: Task },
    Warm { id: u64, target: Target, conn: Conn, _task: Task },
}

impl Standby {
    pub(super) fn new() -> Standby {
        Standby { state: State::None { again_at: None }, last_id: 0 }
    }

    /// When one is to be dialled; `None` if there is one already, or under way.
    pub(super) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::None { again_at } => Some(again_at.unwrap_or(now)),
            State::Dialing { .. } | State::Warm { .. } => None,
        }
    }

    /// To whom it is connected.
    pub(super) fn address(&self) -> Option<&str> {
        match &self.state {
            State::Warm { target, conn, .. } if !conn.is_closed() => Some(&target.address),
            _ => None,
        }
    }

    /// The connection to `target`, if that is where it goes. Another is dialled later.
    pub(super) fn take(&mut self, target: &Target) -> Option<Conn> {
        if self.address() != Some(target.address.as_str()) {
            return None;
        }
        match std::mem::replace(&mut self.state, State::None { again_at: None }) {
            State::Warm { conn, .. } => Some(conn),
            State::None { .. } | State::Dialing { .. } => None,
        }
    }

    pub(super) fn dial(
        &mut self,
        dial: Dial,
        target: Target,
        limit: Duration,
        happenings: mpsc::Sender<Happening>,
    ) {
        self.last_id += 1;
        let id = self.last_id;
        let task = tokio::spawn(async move {
            let dialling = transport::connect(dial, &target.address);
            if let Ok(Ok(conn)) = tokio::time::timeout(limit, dialling).await {
                let closed = conn.closed();
                // A keeper that is gone needs no second connection; sending to it fails, and that is all.
                let _ = happenings.send(Happening::StandbyReady { id, target, conn }).await;
                closed.await;
            }
            let _ = happenings.send(Happening::StandbyGone { id }).await;
        });
        self.state = State::Dialing { id, _task: Task(task) };
    }

    pub(super) fn ready(&mut self, ready: u64, target: Target, conn: Conn) {
        self.state = match std::mem::replace(&mut self.state, State::None { again_at: None }) {
            State::Dialing { id, _task } if id == ready => State::Warm { id, target, conn, _task },
            other => other,
        };
    }

    pub(super) fn gone(&mut self, gone: u64, now: Instant, random: &mut Random) {
        if let State::Dialing { id, .. } | State::Warm { id, .. } = self.state
            && id == gone
        {
            self.state = State::None { again_at: Some(now + random.around(PAUSE, 0.5)) };
        }
    }
}
