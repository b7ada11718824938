//! A lock table of a few lines behind a node that answers by itself: exclusive locks, first come, first served.
//! Sessions end only by `Close`. For tests that are about threads, not about what the wire says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Clone, Default)]
pub struct Table(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    last: u64,
    /// Holder first, then who waits.
    locks: BTreeMap<String, VecDeque<(u64, u64)>>,
    tokens: BTreeMap<(u64, u64), u64>,
    /// The highest renewal number of each session.
    numbers: BTreeMap<u64, u64>,
    pushes: BTreeMap<u64, mpsc::UnboundedSender<Event>>,
    pub renewals: usize,
    closed: usize,
}

impl Table {
    /// Serves on a thread of its own, so that a blocked test does not block it.
    pub fn serve(&self, net: &Net, address: &str) {
        let (net, address, table) = (net.clone(), address.to_owned(), self.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut node = net.node(&address);
                ready.send(()).unwrap();
                loop {
                    tokio::spawn(table.clone().answer(node.stream().await));
                }
            });
        });
        is_ready.recv().unwrap();
    }

    pub fn is_free(&self, name: &str) -> bool {
        self.0.lock().unwrap().locks.get(name).is_none_or(VecDeque::is_empty)
    }

    pub fn renewals(&self) -> usize {
        self.0.lock().unwrap().renewals
    }

    pub fn closed(&self) -> usize {
        self.0.lock().unwrap().closed
    }

    async fn answer(self, mut script: Script) {
        script.renews = false;
        let (push, mut pushes) = mpsc::unbounded_channel();
        loop {
            tokio::select! {
                op = script.op() => match op {
                    Some(op) => self.0.lock().unwrap().take(op, &push),
                    None => return,
                },
                Some(event) = pushes.recv() => script.send(event).await,
            }
        }
    }
}

impl Inner {
    fn take(&mut self, op: Op, push: &mpsc::UnboundedSender<Event>) {
        let send = |event| drop(push.send(event));
        match op {
            Op::Open(open) => {
                self.last += 1;
                self.pushes.insert(self.last, push.clone());
                self.numbers.insert(self.last, open.number);
                send(Event::Opened(v1::SessionOpened {
                    key: open.key,
                    session: self.last,
                    number: open.number,
                }));
            }
            Op::Renew(renew) => {
                self.renewals += 1;
                for session in &renew.sessions {
                    self.numbers.insert(*session, renew.number);
                }
                send(Event::Renewed(v1::SessionsRenewed { number: renew.number, sessions: renew.sessions }));
            }
            Op::Acquire(acquire) => {
                let name = acquire.names[0].clone();
                let queue = self.locks.entry(name.clone()).or_default();
                assert!(!queue.contains(&(acquire.session, acquire.ticket)), "asked twice");
                queue.push_back((acquire.session, acquire.ticket));
                match queue.len() {
                    1 => self.grant(&name),
                    place => {
                        let queued = Outcome::Queued(v1::Queued { place: place as u32 - 1 });
                        self.tell(acquire.session, acquire.ticket, queued);
                    }
                }
            }
            Op::Release(v1::Release { session, ticket, .. })
            | Op::Cancel(v1::Cancel { session, ticket, .. }) => {
                self.remove(|request| request == (session, ticket));
                self.tell(session, ticket, Outcome::Finished(v1::Finished::default()));
            }
            Op::Close(v1::CloseSession { session }) => {
                self.closed += 1;
                self.remove(|(of, _)| of == session);
                send(Event::Lost(v1::SessionLost {
                    session,
                    key: 0,
                    reason: v1::session_lost::Reason::Closed.into(),
                }));
            }
            // A machine under load lets an answer wait for so long that the client tries another stream.
            Op::Resume(v1::ResumeSession { key, session, .. }) => {
                self.pushes.insert(session, push.clone());
                send(Event::Resumed(self.resumed(key, session)));
            }
        }
    }

    fn resumed(&self, key: u64, session: u64) -> v1::SessionResumed {
        let mut answer =
            v1::SessionResumed { key, session, number: self.numbers[&session], ..Default::default() };
        for queue in self.locks.values() {
            for (place, &(of, ticket)) in queue.iter().enumerate().filter(|(_, (of, _))| *of == session) {
                match place {
                    0 => answer.held.push(v1::HeldTicket { ticket, token: self.tokens[&(of, ticket)] }),
                    _ => answer.queued.push(v1::QueuedTicket { ticket, place: place as u32 }),
                }
            }
        }
        answer
    }

    fn remove(&mut self, goes: impl Fn((u64, u64)) -> bool) {
        let names: Vec<String> = self.locks.keys().cloned().collect();
        for name in names {
            let queue = self.locks.get_mut(&name).unwrap();
            let holder = queue.front().copied();
            queue.retain(|&request| !goes(request));
            if queue.front().copied() != holder {
                self.grant(&name);
            }
        }
    }

    fn grant(&mut self, name: &str) {
        if let Some(&(session, ticket)) = self.locks[name].front() {
            self.last += 1;
            let token = self.last;
            self.tokens.insert((session, ticket), token);
            self.tell(session, ticket, Outcome::Granted(v1::Granted { token }));
        }
    }

    fn tell(&self, session: u64, ticket: u64, outcome: Outcome) {
        let _ = self.pushes[&session].send(Event::Outcome(v1::TicketOutcome {
            session,
            ticket,
            outcome: Some(outcome),
        }));
    }
}
