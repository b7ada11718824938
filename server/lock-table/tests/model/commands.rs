//! What each command does to the lists; unary locks are in `unary.rs`.

use super::*;

impl Model {
    pub(super) fn execute(&mut self, command: &Command, after: &mut Vec<Output>) -> Answer {
        match command.clone() {
            Command::Configure { settings, token_start } => {
                if self.limits.is_some() {
                    return Ok(Outcome::AlreadyConfigured);
                }
                self.limits = Some(settings.limits);
                self.token = token_start.get();
                Ok(Outcome::Configured)
            }
            _ if self.limits.is_none() => Err(Rejection::NotConfigured),
            Command::SetSettings { settings } => {
                self.limits = Some(settings.limits);
                Ok(Outcome::Configured)
            }
            Command::Open { secret, owner, ttl, number } => {
                self.check_ttl(ttl)?;
                let known = self.sessions.iter().find(|its| its.kind == Kind::Stream(secret));
                let session = match known {
                    Some(known) if known.owner != owner => return Err(Rejection::RequestIdReused),
                    Some(known) => known.id,
                    None => self.new_session(Kind::Stream(secret), owner, ttl)?,
                };
                self.renew(&Renewal { session, number, ttl: Some(ttl) });
                Ok(Outcome::Opened { session, number: self.session(session).number })
            }
            Command::Close { session } => {
                if self.stream(session).is_none() {
                    return Ok(Outcome::SessionUnknown { session });
                }
                self.end_session(session, EndCause::Closed, after);
                Ok(Outcome::Closed { session })
            }
            Command::Acquire { session, ticket, names, mode, wait, metadata, acked } => {
                if names.is_empty() {
                    let problem = "must not be empty".to_owned();
                    return Err(Rejection::InvalidArgument { field: "names", problem });
                }
                if !self.is_alive(session) || !self.acknowledge(session, acked) {
                    return Ok(Outcome::SessionUnknown { session });
                }
                let wait = if wait == Wait::Ms(0) { Wait::None } else { wait };
                self.acquire(session, ticket.get(), (names.into_vec(), mode, metadata, Some(wait)))
            }
            Command::Cancel { session, ticket, acked } => {
                if !self.acknowledge(session, acked) {
                    return Ok(Outcome::SessionUnknown { session });
                }
                let how = match self.known(session, ticket.get()) {
                    Some(Err(how)) => how,
                    Some(Ok(at)) => {
                        let queued = self.requests[at].is_queued();
                        let how = if queued { How::Cancelled } else { How::Released };
                        self.requests[at].status = Status::Over(how);
                        how
                    }
                    None => {
                        self.check_window(session, ticket.get())?;
                        let status = Status::Over(How::Cancelled);
                        self.requests.push(Request {
                            session,
                            ticket: ticket.get(),
                            arguments: None,
                            status,
                        });
                        How::Cancelled
                    }
                };
                Ok(Outcome::Finished { session, ticket, how })
            }
            Command::Release { session, ticket, token, acked } => {
                if !self.acknowledge(session, acked) {
                    return Ok(Outcome::SessionUnknown { session });
                }
                Ok(match self.known(session, ticket.get()) {
                    None => Outcome::NotHolder { session, ticket, holder: None },
                    Some(Err(how)) => Outcome::Finished { session, ticket, how },
                    Some(Ok(at)) if self.requests[at].token() == Some(token) => {
                        self.requests[at].status = Status::Over(How::Released);
                        Outcome::Finished { session, ticket, how: How::Released }
                    }
                    Some(Ok(at)) => {
                        let holder = self.holder(&self.requests[at].names()[0]);
                        let holder = holder.map(|held| (held.owner, held.token.expect("it holds")));
                        Outcome::NotHolder { session, ticket, holder }
                    }
                })
            }
            Command::UnaryLock { owner, name, request_id, ttl, wait_ms, mode, metadata } => {
                self.unary_lock(owner, name, request_id, ttl, wait_ms, (mode, metadata))
            }
            Command::UnaryUnlock { owner, name, request_id, token } => {
                match self.unary_held(&owner, &name, &request_id, token)? {
                    None => Ok(Outcome::UnaryNotHolder { holder: self.holder(&name) }),
                    Some(at) => {
                        let (session, token) = (self.requests[at].session, self.requests[at].token());
                        self.requests[at].status = Status::Over(How::Released);
                        self.sessions.retain(|its| its.id != session);
                        Ok(Outcome::Unlocked { token: token.expect("it holds") })
                    }
                }
            }
            Command::UnaryRenew { owner, name, token, ttl } => {
                self.check_ttl(ttl)?;
                match self.unary_held(&owner, &name, &None, token)? {
                    None => Ok(Outcome::UnaryNotHolder { holder: self.holder(&name) }),
                    Some(at) => {
                        let (session, token) = (self.requests[at].session, self.requests[at].token());
                        let now = self.now;
                        let its = self.session_mut(session);
                        (its.ttl, its.deadline) = (ttl.get(), now + ttl.get());
                        Ok(Outcome::Renewed { token: token.expect("it holds"), remaining_ms: ttl.get() })
                    }
                }
            }
        }
    }

    fn acknowledge(&mut self, session: SessionId, acked: Ticket) -> bool {
        if self.stream(session).is_none() {
            return false;
        }
        let its = self.session_mut(session);
        its.acked = its.acked.max(acked.get());
        true
    }

    /// A ticket that is live, or how it is over; `None` if it was never seen.
    fn known(&self, session: SessionId, ticket: u64) -> Option<Result<usize, How>> {
        let at = self.find(session, ticket);
        match at.map(|at| self.requests[at].status) {
            Some(Status::Queued { .. } | Status::Held(_)) => at.map(Ok),
            _ if ticket < self.session(session).acked => Some(Err(How::Forgotten)),
            Some(Status::Over(how)) => Some(Err(how)),
            None => None,
        }
    }

    fn check_window(&self, session: SessionId, ticket: u64) -> Result<(), Rejection> {
        let window = self.limits().ticket_window;
        let beyond = ticket >= self.session(session).acked + window;
        if beyond { Err(Rejection::TicketGap { window }) } else { Ok(()) }
    }

    fn acquire(&mut self, session: SessionId, ticket: u64, arguments: Arguments) -> Answer {
        match self.known(session, ticket) {
            Some(Err(How::Forgotten)) => {
                return Ok(Outcome::Finished { session, ticket: Ticket::new(ticket), how: How::Forgotten });
            }
            Some(known) => {
                let at = self.find(session, ticket).expect("known");
                let before = &self.requests[at].arguments;
                if before.as_ref().is_some_and(|before| *before != arguments) {
                    return Err(Rejection::RequestIdReused);
                }
                return Ok(match known {
                    Ok(at) => self.standing(at),
                    Err(how) => Outcome::Finished { session, ticket: Ticket::new(ticket), how },
                });
            }
            None => self.check_window(session, ticket)?,
        }
        self.check_permits(&arguments)?;
        let wait = arguments.3.expect("of a stream");
        let status = match self.contention(&arguments.0, arguments.1, None) {
            None => None,
            Some(contention) if wait == Wait::None => {
                let status = Status::Over(How::Refused);
                self.requests.push(Request { session, ticket, arguments: Some(arguments), status });
                return Ok(Outcome::Refused { session, ticket: Ticket::new(ticket), contention });
            }
            Some(_) => {
                let end = if let Wait::Ms(ms) = wait { Some(self.now + ms) } else { None };
                Some(Status::Queued { since: self.now, end })
            }
        };
        self.check_room(session, &arguments.0, status.is_some())?;
        Ok(self.add(session, ticket, arguments, status))
    }

    pub(super) fn check_permits(&self, arguments: &Arguments) -> Result<(), Rejection> {
        let Mode::Permits { permits, capacity } = arguments.1 else {
            return Ok(());
        };
        if permits == 0 || permits > capacity {
            let problem = format!("are {permits}, must be 1 to the capacity, which is {capacity}");
            return Err(Rejection::InvalidArgument { field: "permits", problem });
        }
        for name in &arguments.0 {
            for other in self.requests.iter().filter(|other| other.is_live() && other.names().contains(name))
            {
                match other.mode() {
                    Mode::Permits { capacity: have, .. } if have != capacity => {
                        return Err(Rejection::CapacityMismatch { have });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_room(
        &self,
        session: SessionId,
        names: &[Name],
        queues: bool,
    ) -> Result<(), Rejection> {
        let limits = self.limits();
        let max = limits.waiters_per_lock_max;
        if queues && names.iter().any(|name| self.queue(name).len() as u64 >= max) {
            return Err(Rejection::QueueFull { max });
        }
        let own = self.requests.iter().filter(|request| request.session == session && request.is_live());
        let own: usize = own.map(|request| request.names().len()).sum();
        let max = limits.locks_per_session_max;
        if (own + names.len()) as u64 > max {
            return Err(Rejection::LimitReached { what: "locks per session", max });
        }
        let known = self.lock_names();
        let new = names.iter().filter(|name| !known.contains(name)).count();
        if new > 0 && (known.len() + new) as u64 > limits.locks_max {
            return Err(Rejection::LimitReached { what: "locks", max: limits.locks_max });
        }
        Ok(())
    }

    /// Adds a request, granted if no other status is given.
    pub(super) fn add(
        &mut self,
        session: SessionId,
        ticket: u64,
        arguments: Arguments,
        status: Option<Status>,
    ) -> Outcome {
        let status = status.unwrap_or_else(|| {
            self.token += 1;
            Status::Held(Token::new(self.token))
        });
        self.requests.push(Request { session, ticket, arguments: Some(arguments), status });
        self.standing(self.requests.len() - 1)
    }

    pub(super) fn standing(&self, at: usize) -> Outcome {
        let request = &self.requests[at];
        let (session, ticket) = (request.session, Ticket::new(request.ticket));
        match request.token() {
            None => Outcome::Queued { session, ticket, place: self.place(at) },
            Some(token) => {
                let remaining_ms = self.session(session).deadline - self.now;
                Outcome::Granted { session, ticket, token, remaining_ms }
            }
        }
    }
}
