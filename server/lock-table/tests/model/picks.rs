//! What a history may aim at: ids that exist, so that most commands hit something.

use super::*;

impl Model {
    /// The token under which a ticket is held, for tests that want to release it.
    pub fn token_of(&self, session: SessionId, ticket: Ticket) -> Option<Token> {
        self.requests[self.find(session, ticket.get())?].token()
    }

    /// Any session; sometimes one that does not live.
    pub fn some_session(&self, number: u64) -> SessionId {
        let at = number as usize % (self.sessions.len() + 1);
        let unknown = SessionId::new(self.session_last / 2 + 1);
        self.sessions.get(at).map_or(unknown, |session| session.id)
    }

    /// Any ticket of a session that is live, or the one given.
    pub fn some_ticket(&self, session: SessionId, number: u64) -> Ticket {
        let of_session = self.requests.iter().filter(|request| request.session == session);
        let live: Vec<_> = of_session.filter(|request| request.is_live()).collect();
        let request = live.get(number as usize % (live.len() + 1));
        Ticket::new(request.map_or(number, |request| request.ticket))
    }

    /// An acquire of a stream as it was sent, mostly of one that lives; one of nobody's if there
    /// was none.
    pub fn again(&self, number: u64, acked: Ticket) -> Command {
        let streams = self.requests.iter().rev().filter(|request| {
            let is_stream = request.arguments.as_ref().is_some_and(|arguments| arguments.3.is_some());
            is_stream && (number.is_multiple_of(4) || self.is_alive(request.session))
        });
        let streams: Vec<_> = streams.collect();
        let Some(request) = streams.get(number as usize % streams.len().max(1)) else {
            return Command::Close { session: SessionId::default() };
        };
        let (names, mode, metadata, wait) = request.arguments.clone().expect("filtered above");
        let wait = wait.expect("filtered above");
        let (session, ticket) = (request.session, Ticket::new(request.ticket));
        Command::Acquire { session, ticket, names: names.into(), mode, wait, metadata, acked }
    }

    pub fn token_last(&self) -> u64 {
        self.token
    }
}
