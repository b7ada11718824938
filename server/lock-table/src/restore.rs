//! A table from the chunks of a snapshot.
//!
//! The bytes may be anything: what is not a snapshot of a sound table is refused with a reason.
//! Records go into the table one by one, and all that is derived with them; memory is taken for
//! what came, not for what was announced.

use prost::Message;

use crate::envelope::{DecodeError, SNAPSHOT_FORMAT, open};
use crate::records;
use crate::requests::Entered;
use crate::session::{Kind, Request, Session, UNARY_TICKET};
use crate::table::LockTable;
use crate::types::{Mode, Sequence, SessionId};

/// A table that is being read from a snapshot, chunk by chunk.
#[derive(Debug, Default)]
pub struct Restore {
    table: LockTable,
    chunks: u32,
    /// From the header: how many sessions, requests and finished tickets there are to be.
    counts: Option<[u64; 3]>,
    is_complete: bool,
}

impl Restore {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk. After an error the restore is of no use any more.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), DecodeError> {
        let chunk = records::Chunk::decode(open(SNAPSHOT_FORMAT, chunk)?)?;
        if self.is_complete {
            return Err(DecodeError::ChunkOrder("there is one after the last"));
        }
        if chunk.index != self.chunks {
            return Err(DecodeError::ChunkOrder("one is missing or comes twice"));
        }
        self.chunks = self.chunks.checked_add(1).ok_or(DecodeError::ChunkOrder("there are too many"))?;
        match (self.counts, chunk.header) {
            (None, Some(header)) => {
                self.counts = Some(header.counts());
                self.table.header = header.into();
            }
            (Some(_), None) => {}
            (_, _) => {
                return Err(DecodeError::ChunkOrder("the header is in the first chunk and in no other"));
            }
        }
        for record in chunk.sessions {
            let (id, session) = record.read()?;
            self.add_session(id, session).map_err(|problem| inconsistent("session", id.get(), problem))?;
        }
        for record in chunk.requests {
            let (sequence, request) = record.read()?;
            let added = self.add_request(sequence, request);
            added.map_err(|problem| inconsistent("request", sequence.get(), problem))?;
        }
        for record in chunk.finished {
            let (key, finished) = record.read()?;
            if self.table.sessions.get(key.0).is_none() {
                return Err(inconsistent("finished ticket", key.1.get(), "belongs to no session"));
            }
            self.table.insert_finished(key, finished);
        }
        self.is_complete = chunk.is_last;
        Ok(())
    }

    /// The table, if all chunks came and every invariant holds.
    pub fn finish(self) -> Result<LockTable, DecodeError> {
        let table = self.table;
        if !self.is_complete {
            return Err(DecodeError::ChunkOrder("the last one is missing"));
        }
        let counts = [table.sessions.len(), table.requests.len(), table.finished.len()];
        if self.counts != Some(counts.map(|count| count as u64)) {
            return Err(DecodeError::Inconsistent("the header announces other counts".to_owned()));
        }
        table.check_records().map_err(DecodeError::Inconsistent)?;
        Ok(table)
    }

    fn add_session(&mut self, id: SessionId, session: Session) -> Result<(), &'static str> {
        let table = &mut self.table;
        if table.sessions.last_key() >= Some(id) {
            return Err("does not come after those before it");
        }
        if let Kind::Stream(stream) = &session.kind
            && table.secrets.contains_key(&stream.secret)
        {
            return Err("has the secret of another one");
        }
        table.insert_session(id, session);
        Ok(())
    }

    /// Adds a request, after checking what the code that adds takes for granted. The rest is
    /// checked at the end.
    fn add_request(&mut self, sequence: Sequence, request: Request) -> Result<(), &'static str> {
        let table = &mut self.table;
        if table.requests.last_key() >= Some(sequence) {
            return Err("does not come after those before it");
        }
        if table.live.get(request.session, request.ticket).is_some() {
            return Err("has the ticket of another one");
        }
        if let Mode::Permits { permits, capacity } = request.mode
            && !(1..=capacity).contains(&permits)
        {
            return Err("asks for no permit, or more than there are");
        }
        let is_held = !request.is_queued();
        let entered = match is_held {
            true => table.take_free(sequence, &request.names),
            false => Entered::NotYet,
        };
        if entered == Entered::NotYet {
            let locks = || request.names.as_slice().iter().filter_map(|name| table.locks.get(name));
            if let Mode::Permits { capacity, .. } = request.mode
                && locks().any(|lock| table.capacity(lock).is_some_and(|have| have != capacity))
            {
                return Err("names another capacity than others do");
            }
            if is_held && locks().any(|lock| !table.is_compatible(lock, request.mode)) {
                return Err("holds a lock against others");
            }
        }
        let session = table.sessions.get(request.session).ok_or("belongs to no session")?;
        if let Kind::Unary { .. } = session.kind {
            let key = table.unary_key(request.session);
            if request.ticket != UNARY_TICKET || table.unary.get(&key).is_some() {
                return Err("is not the only one of its unary call");
            }
            table.unary.insert(key, request.session, request.state);
        }
        table.insert_request(sequence, request, entered);
        Ok(())
    }
}

fn inconsistent(what: &str, id: u64, problem: &str) -> DecodeError {
    DecodeError::Inconsistent(format!("{what} {id} {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::seal;
    use crate::{Batch, Command, Limits, Metadata, Name, Owner, Secret, Settings, Ticket, Token};
    use crate::{RenewalNumber, Ttl, Wait};
    use proptest::prelude::*;

    /// A small table with something of everything.
    fn table() -> LockTable {
        let settings = Settings { limits: Limits::standard(), voters: 3 };
        let mut commands = vec![Command::Configure { settings, token_start: Token::new(0) }];
        let name = |text| Name::new(text).expect("a good name");
        let owner = |text| Owner::new(text).expect("a good owner");
        for (secret, text) in [(1, "ann"), (2, "bob")] {
            commands.push(Command::Open {
                secret: Secret::new([secret; 16]),
                owner: owner(text),
                ttl: Ttl::new(5000),
                number: RenewalNumber::new(1),
            });
        }
        let permits = Mode::Permits { permits: 1, capacity: 2 };
        let asks = [
            (1, 1, vec!["k"], Mode::Exclusive),
            (2, 1, vec!["k", "l"], Mode::Exclusive),
            (1, 2, vec!["p"], permits),
            (2, 2, vec!["p"], permits),
            (1, 3, vec!["p"], permits),
            (1, 4, vec!["s"], Mode::Shared),
            (2, 4, vec!["s"], Mode::Shared),
        ];
        for (session, ticket, names, mode) in asks {
            commands.push(Command::Acquire {
                session: SessionId::new(session),
                ticket: Ticket::new(ticket),
                names: names.into_iter().map(name).collect(),
                mode,
                wait: Wait::Ms(3000),
                metadata: Metadata::default(),
                acked: Ticket::new(1),
            });
        }
        commands.push(Command::Cancel {
            session: SessionId::new(1),
            ticket: Ticket::new(9),
            acked: Ticket::new(1),
        });
        for (text, wait_ms) in [("u", 0), ("k", 2000)] {
            commands.push(Command::UnaryLock {
                owner: owner("eve"),
                name: name(text),
                request_id: None,
                ttl: Ttl::new(4000),
                wait_ms,
                mode: Mode::Exclusive,
                metadata: Metadata::default(),
            });
        }
        let mut table = LockTable::new();
        table.begin(Batch { commands, ..Batch::new(0) }).expect("known rules");
        while !table.step(100, &mut Vec::new()) {}
        table
    }

    fn body() -> Vec<u8> {
        let mut table = table();
        table.snapshot_begin().expect("between batches");
        let chunk = table.snapshot_step(1000).expect("a first chunk");
        open(SNAPSHOT_FORMAT, &chunk).expect("just written").to_vec()
    }

    /// A message whose encoding is these bytes.
    fn sealed(body: &[u8]) -> Option<Vec<u8>> {
        Some(seal(SNAPSHOT_FORMAT, &records::Chunk::decode(body).ok()?))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// With a checksum that fits, a forged snapshot is refused, or is a sound table that goes
        /// on working.
        #[test]
        fn a_forged_snapshot_does_no_harm(
            forgeries in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut body = body();
            for (at, byte) in &forgeries {
                let at = at.index(body.len());
                body[at] = byte % 16;
            }
            let Some(chunk) = sealed(&body) else { return Ok(()) };
            let mut restore = Restore::new();
            if restore.push(&chunk).is_err() {
                return Ok(());
            }
            let Ok(mut table) = restore.finish() else { return Ok(()) };
            prop_assert_eq!(table.check(), Ok(()), "what is derived is right too");
            prop_assert!(!forgeries.is_empty() || table == self::table());
            for dt_ms in [0, 2500, 2500, u64::MAX] {
                table.begin(Batch::new(dt_ms)).expect("known rules");
                while !table.step(1, &mut Vec::new()) {}
                prop_assert_eq!(table.check(), Ok(()));
            }
        }
    }

    #[test]
    fn a_finished_ticket_comes_after_its_session() {
        let whole = records::Chunk::decode(&*body()).expect("just written");
        assert!(!whole.finished.is_empty());
        let early = records::Chunk { header: whole.header, finished: whole.finished, ..Default::default() };
        let refused = Restore::new().push(&seal(SNAPSHOT_FORMAT, &early)).expect_err("refused");
        assert!(refused.to_string().contains("belongs to no session"), "{refused}");
    }

    #[test]
    fn chunks_must_be_whole_and_in_order() {
        let mut table = table();
        table.snapshot_begin().expect("between batches");
        let chunks: Vec<_> = std::iter::from_fn(|| table.snapshot_step(1)).collect();
        let read = |chunks: &[&Vec<u8>]| {
            let mut restore = Restore::new();
            chunks.iter().try_for_each(|chunk| restore.push(chunk))?;
            restore.finish()
        };
        let all: Vec<_> = chunks.iter().collect();
        assert!(read(&all).expect("all of it") == table);
        for missing in 0..all.len() {
            let mut some = all.clone();
            some.remove(missing);
            assert!(read(&some).is_err(), "without chunk {missing}");
        }
        let twice: Vec<_> = all.iter().chain(all.last()).copied().collect();
        assert!(read(&twice).is_err());
    }
}
