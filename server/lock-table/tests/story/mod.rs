//! The commands of a script.
//!
//! A line is a batch of its own: a word, whom or what it is about, then `key=value` and flags.
//! Times are in seconds. Lines indented below `batch` are one batch. Sessions are called by a word
//! and opened by their first `acquire`; their tickets count up by themselves.
//!
//! ```text
//! acquire S name=K,.. [shared | permits=1/3] [wait | wait=T] [ttl=T] [ticket=N] [acked=N] [meta=M]
//! retry S [ticket=N] [acked=N]                 the same acquire again
//! release S [ticket=N] [token=N] [acked=N]     cancel S [ticket=N] [acked=N]
//! open S [ttl=T] [owner=O] [number=N]          renew S [ttl=T] [number=N]          close S
//! lock O name=K [id=I] [ttl=T] [wait=T] [shared | permits=1/3] [meta=M]     keep O name=K [id=I]
//! unlock O name=K [id=I] [token=N]             extend O name=K [token=N] [ttl=T]
//! advance T [times=N]                          batch [dt=T] [incomplete]
//! crowd PREFIX count=N name=K [..as acquire]   N sessions, each with one acquire
//! get K        list [PREFIX] [after=K] [max=N]        resume S [stranger]        counts
//! fresh        configure [token=N] [voters=N]         settings FIELD=N..         snapshot
//! ```
//!
//! `name=x*600` is a name of 600 x.

mod lines;
mod render;
mod words;

use std::collections::BTreeMap;

use crate::support::{apply, through_snapshot};
use lock_table::*;
use words::{Words, ms, repeated};

/// The world of a script: a table, and what its clients remember.
pub struct Story {
    table: LockTable,
    sessions: BTreeMap<String, Client>,
    /// Sessions by id, and unary ones as they came up, for the outputs.
    labels: BTreeMap<SessionId, String>,
    /// For the replay at the end.
    batches: Vec<Batch>,
    outputs: Vec<Vec<Output>>,
}

#[derive(Clone)]
struct Client {
    id: SessionId,
    ttl: Ttl,
    secret: Secret,
    number: u64,
    ticket: u64,
    acquires: BTreeMap<u64, Command>,
    tokens: BTreeMap<u64, Token>,
}

/// What one line adds to a batch.
enum Part {
    Command { command: Command, label: String },
    Renewal(Renewal),
}

impl Story {
    /// A configured table without sessions; tokens begin at 1.
    pub fn new() -> Self {
        let mut story = Self {
            table: LockTable::new(),
            sessions: BTreeMap::new(),
            labels: BTreeMap::new(),
            batches: Vec::new(),
            outputs: Vec::new(),
        };
        let settings = Settings { limits: Limits::standard(), voters: 3 };
        let configure = Command::Configure { settings, token_start: Token::new(0) };
        story.apply(Batch { commands: vec![configure], ..Batch::new(0) });
        story
    }

    /// Runs the lines of a block.
    pub fn tell(&mut self, lines: &[&str]) -> Vec<String> {
        let mut told = Vec::new();
        let mut lines = lines.iter().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
        while let Some(line) = lines.next() {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let verb = words.remove(0);
            if verb == "batch" {
                let words = Words(words);
                let mut inner = Vec::new();
                while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
                    inner.push(*line);
                }
                told.extend(self.batch(&words, &inner));
                continue;
            }
            told.extend(
                self.line(verb, words).unwrap_or_else(|rejection| vec![format!("not built: {rejection}")]),
            );
        }
        told
    }

    /// All batches, through bytes and in the smallest steps, into a second table.
    pub fn replay(&self) {
        let mut table = LockTable::new();
        for (batch, outputs) in self.batches.iter().zip(&self.outputs) {
            let bytes = batch.encode();
            let decoded = Batch::decode(&bytes).expect("bytes just written");
            assert_eq!(&decoded, batch);
            assert_eq!(&apply(&mut table, decoded, 1), outputs, "smaller steps, other outputs");
        }
        assert!(table == self.table, "the replay ended up with another table");
    }

    fn line(&mut self, verb: &str, mut words: Vec<&str>) -> Result<Vec<String>, Rejection> {
        let has_subject = words.first().is_some_and(|word| verb == "settings" || !word.contains('='));
        let subject = if has_subject { words.remove(0) } else { "" };
        let words = Words(words);
        Ok(match verb {
            "advance" => {
                let times = words.number("times").unwrap_or(1);
                (0..times).flat_map(|_| self.run(Batch::new(ms(subject)), &[])).collect()
            }
            "crowd" => self.crowd(subject, &words)?,
            "get" => render::lock(&self.table.get(&repeated(subject), 5)),
            "list" => {
                let max = words.number("max").unwrap_or(100) as usize;
                render::list(&self.table.list(subject, words.text("after"), max))
            }
            "resume" => {
                let client = &self.sessions[subject];
                let secret = if words.flag("stranger") { Secret::new([9; 16]) } else { client.secret };
                vec![render::resumed(subject, self.table.resume(client.id, &secret))]
            }
            "counts" => vec![render::counts(&self.table)],
            "fresh" => {
                *self = Self {
                    table: LockTable::new(),
                    sessions: BTreeMap::new(),
                    labels: BTreeMap::new(),
                    batches: Vec::new(),
                    outputs: Vec::new(),
                };
                vec![]
            }
            "snapshot" => {
                let restored = through_snapshot(&mut self.table, 1);
                assert!(restored == self.table, "the snapshot gives another table");
                self.table = restored;
                vec![]
            }
            _ => {
                let part = self.part(verb, subject, &words)?;
                self.run_parts(Batch::new(0), vec![part])
            }
        })
    }

    fn batch(&mut self, words: &Words<'_>, lines: &[&str]) -> Vec<String> {
        let mut parts = Vec::new();
        for line in lines {
            let mut inner: Vec<&str> = line.split_whitespace().collect();
            let (verb, subject) = (inner.remove(0), inner.remove(0));
            parts.push(self.part(verb, subject, &Words(inner)).expect("a command that can be built"));
        }
        let dt_ms = words.ms("dt").unwrap_or(0);
        let batch = Batch { renewals_complete: !words.flag("incomplete"), ..Batch::new(dt_ms) };
        self.run_parts(batch, parts)
    }

    fn crowd(&mut self, prefix: &str, words: &Words<'_>) -> Result<Vec<String>, Rejection> {
        let count = words.number("count").expect("a count");
        let labels: Vec<String> = (1..=count).map(|number| format!("{prefix}{number}")).collect();
        let ttl = Ttl::new(words.ms("ttl").expect("a lease"));
        let opens = labels.iter().map(|label| self.open(label, label, ttl, 1)).collect::<Result<_, _>>()?;
        self.run_parts(Batch::new(0), opens);
        let acquires =
            labels.iter().map(|label| self.part("acquire", label, words)).collect::<Result<_, _>>()?;
        Ok(self.run_parts(Batch::new(0), acquires))
    }

    fn run_parts(&mut self, mut batch: Batch, parts: Vec<Part>) -> Vec<String> {
        let mut labels = Vec::new();
        for part in parts {
            match part {
                Part::Renewal(renewal) => batch.renewals.push(renewal),
                Part::Command { command, label } => {
                    batch.commands.push(command);
                    labels.push(label);
                }
            }
        }
        self.run(batch, &labels)
    }

    fn run(&mut self, batch: Batch, labels: &[String]) -> Vec<String> {
        let outputs = self.apply(batch);
        for output in &outputs {
            self.remember(output, labels);
        }
        let told =
            outputs.iter().map(|output| render::output(output, labels, &self.labels, &|id| self.ttl(id)));
        render::shortened(told.collect())
    }

    fn apply(&mut self, batch: Batch) -> Vec<Output> {
        let outputs = apply(&mut self.table, batch.clone(), 7);
        self.batches.push(batch);
        self.outputs.push(outputs.clone());
        outputs
    }

    /// What a client would note down.
    fn remember(&mut self, output: &Output, labels: &[String]) {
        let label = |command: &usize| labels[*command].clone();
        match output {
            Output::Outcome { command, outcome: Outcome::Opened { session, .. } } => {
                self.labels.insert(*session, label(command));
                self.sessions.get_mut(&label(command)).expect("being opened").id = *session;
            }
            Output::Outcome {
                command,
                outcome: Outcome::Granted { session, .. } | Outcome::Queued { session, .. },
            } => {
                self.labels.entry(*session).or_insert_with(|| label(command));
            }
            _ => {}
        }
        if let Output::Outcome { outcome: Outcome::Granted { session, ticket, token, .. }, .. }
        | Output::Event(Event::Granted { session, ticket, token, .. }) = output
            && let Some(client) = self.sessions.get_mut(&self.labels[session])
        {
            client.tokens.insert(ticket.get(), *token);
        }
    }

    /// The lease that a session of a stream asked for; what it has of it is told only when it is
    /// less.
    fn ttl(&self, session: SessionId) -> Option<u64> {
        let client = self.sessions.get(self.labels.get(&session)?)?;
        Some(client.ttl.get())
    }
}
