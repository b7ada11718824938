//! What a line of a script asks of the table.

use std::collections::BTreeMap;

use super::words::{Words, repeated};
use super::{Client, Part, Story};
use lock_table::*;

impl Story {
    /// What a line asks of the table. May open a session first, in a batch of its own.
    pub(super) fn part(&mut self, verb: &str, subject: &str, words: &Words<'_>) -> Result<Part, Rejection> {
        let token = words.number("token").map(Token::new);
        let ttl = Ttl::new(words.ms("ttl").unwrap_or(10_000));
        let unary = |story: &Self| -> Result<_, Rejection> {
            let name = Name::new(&repeated(words.text("name").expect("a name")))?;
            let request_id = words.text("id").map(|id| RequestId::new(&repeated(id))).transpose()?;
            let _ = story;
            Ok((Owner::new(&repeated(subject))?, name, request_id))
        };
        let command = match verb {
            "open" => {
                let number = words.number("number").unwrap_or(1);
                return self.open(subject, words.text("owner").unwrap_or(subject), ttl, number);
            }
            "renew" => {
                let client = self.sessions.get_mut(subject).expect("a session that was opened");
                client.number = words.number("number").unwrap_or(client.number + 1);
                let ttl = words.ms("ttl").map(Ttl::new);
                client.ttl = ttl.unwrap_or(client.ttl);
                let number = RenewalNumber::new(client.number);
                return Ok(Part::Renewal(Renewal { session: client.id, number, ttl }));
            }
            "keep" => {
                let (owner, name, request_id) = unary(self)?;
                let label = unary_label(&owner, &name, &request_id);
                let session = self.labels.iter().find(|(_, known)| **known == label);
                let session = *session.expect("a unary call that was queued or granted").0;
                return Ok(Part::Renewal(Renewal { session, number: RenewalNumber::new(1), ttl: None }));
            }
            "acquire" => {
                let names = words.text("name").unwrap_or("").split(',').filter(|name| !name.is_empty());
                let names = names.map(|name| Name::new(&repeated(name))).collect::<Result<_, _>>()?;
                self.open_quietly(subject, ttl)?;
                let client = self.sessions.get_mut(subject).expect("opened in the line above");
                client.ticket = words.number("ticket").unwrap_or(client.ticket + 1);
                let command = Command::Acquire {
                    session: client.id,
                    ticket: Ticket::new(client.ticket),
                    names,
                    mode: words.mode(),
                    wait: match words.ms("wait") {
                        Some(ms) => Wait::Ms(ms),
                        None if words.flag("wait") => Wait::Forever,
                        None => Wait::None,
                    },
                    metadata: words.metadata(),
                    acked: Ticket::new(words.number("acked").unwrap_or(0)),
                };
                client.acquires.insert(client.ticket, command.clone());
                command
            }
            "retry" | "cancel" | "release" | "close" => self.ticket_command(verb, subject, words),
            "lock" => {
                let (owner, name, request_id) = unary(self)?;
                Command::UnaryLock {
                    owner,
                    name,
                    request_id,
                    ttl,
                    wait_ms: words.ms("wait").unwrap_or(0),
                    mode: words.mode(),
                    metadata: words.metadata(),
                }
            }
            "unlock" => {
                let (owner, name, request_id) = unary(self)?;
                Command::UnaryUnlock { owner, name, request_id, token }
            }
            "extend" => {
                let (owner, name, _) = unary(self)?;
                Command::UnaryRenew { owner, name, token, ttl }
            }
            "configure" => Command::Configure {
                settings: Settings {
                    limits: Limits::standard(),
                    voters: words.number("voters").unwrap_or(3) as u32,
                },
                token_start: token.unwrap_or_default(),
            },
            "settings" => self.settings_command(subject, words),
            _ => panic!("{verb} is not a command"),
        };
        let label = match &command {
            Command::UnaryLock { owner, name, request_id, .. }
            | Command::UnaryUnlock { owner, name, request_id, .. } => unary_label(owner, name, request_id),
            Command::UnaryRenew { owner, name, .. } => unary_label(owner, name, &None),
            Command::Configure { .. } | Command::SetSettings { .. } => "cluster".to_owned(),
            Command::Acquire { ticket, .. } if ticket.get() != 1 => format!("{subject}/{ticket}"),
            _ => subject.to_owned(),
        };
        Ok(Part::Command { command, label })
    }

    fn ticket_command(&mut self, verb: &str, subject: &str, words: &Words<'_>) -> Command {
        let client = &self.sessions[subject];
        let number = words.number("ticket").unwrap_or(client.ticket);
        let (session, ticket) = (client.id, Ticket::new(number));
        let acked = Ticket::new(words.number("acked").unwrap_or(0));
        match verb {
            "close" => Command::Close { session },
            "cancel" => Command::Cancel { session, ticket, acked },
            "release" => {
                let known = client.tokens.get(&number).copied().unwrap_or_default();
                let token = words.number("token").map_or(known, Token::new);
                Command::Release { session, ticket, token, acked }
            }
            _ => {
                let mut again = client.acquires[&number].clone();
                if let Command::Acquire { acked: before, .. } = &mut again {
                    *before = acked;
                }
                again
            }
        }
    }

    fn settings_command(&self, first: &str, words: &Words<'_>) -> Command {
        let mut settings = self.table.settings().expect("a configured table").clone();
        let limits = &mut settings.limits;
        for word in std::iter::once(&first).chain(&words.0) {
            let (field, value) = word.split_once('=').expect("a field and a number");
            let value = value.parse().expect("a number");
            *match field {
                "name_bytes_max" => &mut limits.name_bytes_max,
                "metadata_bytes_max" => &mut limits.metadata_bytes_max,
                "ttl_ms_min" => &mut limits.ttl_ms_min,
                "ttl_ms_max" => &mut limits.ttl_ms_max,
                "waiters_per_lock_max" => &mut limits.waiters_per_lock_max,
                "locks_per_session_max" => &mut limits.locks_per_session_max,
                "sessions_max" => &mut limits.sessions_max,
                "locks_max" => &mut limits.locks_max,
                "names_per_request_max" => &mut limits.names_per_request_max,
                "ticket_window" => &mut limits.ticket_window,
                _ => panic!("{field} is not a limit of the scripts"),
            } = value;
        }
        Command::SetSettings { settings }
    }

    pub(super) fn open(
        &mut self,
        label: &str,
        owner: &str,
        ttl: Ttl,
        number: u64,
    ) -> Result<Part, Rejection> {
        let mut secret = [0; 16];
        for (byte, letter) in secret.iter_mut().zip(label.bytes()) {
            *byte = letter;
        }
        let secret = Secret::new(secret);
        let client = self.sessions.entry(label.to_owned()).or_insert(Client {
            id: SessionId::default(),
            ttl,
            secret,
            number,
            ticket: 0,
            acquires: BTreeMap::new(),
            tokens: BTreeMap::new(),
        });
        client.ttl = ttl;
        let number = RenewalNumber::new(number);
        let command = Command::Open { secret, owner: Owner::new(&repeated(owner))?, ttl, number };
        Ok(Part::Command { command, label: label.to_owned() })
    }

    fn open_quietly(&mut self, label: &str, ttl: Ttl) -> Result<(), Rejection> {
        if !self.sessions.contains_key(label) {
            let part = self.open(label, label, ttl, 1)?;
            self.run_parts(Batch::new(0), vec![part]);
        }
        Ok(())
    }
}

fn unary_label(owner: &Owner, name: &Name, request_id: &Option<RequestId>) -> String {
    match request_id {
        Some(id) => format!("{owner}@{name}#{id}"),
        None => format!("{owner}@{name}"),
    }
}
