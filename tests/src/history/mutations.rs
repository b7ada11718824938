//! Are the checks worth anything? Histories of locks that behave pass all of them, thousands of them; and each of them
//! fails once it is changed in a way in which bugs would change it.

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A run of good locks: what its clients see, and what the log has.
#[derive(Clone, Default)]
struct Good {
    state: State,
    log: Timelines,
}

/// One or two locks, two to four clients.
fn good(seed: u64) -> Good {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut made = Made { clients: rng.u8(2..=4), rng, good: Good::default(), effects: Vec::new() };
    for lock in 0..made.rng.u8(1..=2) {
        made.one_lock(&format!("lock-{lock}"));
    }
    made.numbered()
}

/// A history while it is made. Its tokens are the times of their grants in microseconds until all of them are known.
struct Made {
    rng: fastrand::Rng,
    clients: u8,
    good: Good,
    /// Grants and ends: when, of which lock, under which token.
    effects: Vec<(Duration, String, u64, bool)>,
}

impl Made {
    /// Takes and gives, leases that end, reads, writes, refusals, clients that die, answers that never come.
    fn one_lock(&mut self, lock: &str) {
        let mut now = ms(1_000);
        for _ in 0..self.rng.u64(6..16) {
            now = self.one_life(lock, now);
        }
    }

    fn one_life(&mut self, lock: &str, now: Duration) -> Duration {
        let client = format!("c{}", self.rng.u8(0..self.clients));
        let asked = now - ms(self.rng.u64(1..500));
        let effect = now + Duration::from_micros(self.rng.u64(1..4_000));
        let token = effect.as_micros() as u64;
        let granted = effect + ms(self.rng.u64(1..20));
        self.effects.push((effect, lock.to_owned(), token, true));
        self.read(lock, Some(token), granted + ms(3));
        let is_known = self.rng.u8(0..5) > 0;
        let over = match is_known {
            true => self.known(&client, lock, token, asked, granted),
            // Its answer was lost, and its lease ends.
            false => granted + ms(self.rng.u64(100..300)),
        };
        let answer = is_known.then_some((granted, Answer::Granted(token)));
        self.good.state.acquires.push(Acquire { client, locks: vec![lock.to_owned()], asked, answer });
        self.effects.push((over, lock.to_owned(), token, false));
        self.read(lock, None, over + ms(1));
        over + ms(self.rng.u64(5..100))
    }

    /// A hold that its client knows of. Says when it is over.
    fn known(
        &mut self,
        client: &str,
        lock: &str,
        token: u64,
        asked: Duration,
        granted: Duration,
    ) -> Duration {
        let (client, lock) = (client.to_owned(), lock.to_owned());
        let mut hold = Hold {
            client: client.clone(),
            lock: lock.clone(),
            token,
            asked,
            granted,
            ended: None,
            gave_back: false,
            released: None,
            surely_over: true,
            promised: granted + ms(self.rng.u64(100..300)),
        };
        let refused = granted + ms(self.rng.u64(1..20));
        self.good.state.refusals.push(Refusal {
            client: "r".to_owned(),
            lock: lock.clone(),
            token: self.rng.bool().then_some(token),
            asked: refused,
            answered: refused + ms(2),
        });
        let state = &mut self.good.state;
        let late = state.holds.iter().rfind(|other| other.lock == lock).filter(|_| self.rng.bool()).cloned();
        state.writes.push(Write { resource: lock.clone(), client, token, accepted: true });
        if let Some(late) = late {
            // A write of the holder before, that came late.
            let Hold { client, token, .. } = late;
            state.writes.push(Write { resource: lock, client, token, accepted: false });
        }
        let stops = granted + ms(self.rng.u64(50..90));
        hold.ended = Some(stops);
        let over = if self.rng.bool() {
            (hold.gave_back, hold.released) = (true, self.rng.bool().then_some(stops + ms(10)));
            stops + ms(8)
        } else {
            // It was killed, and its lease ends later.
            let hold_id = state.holds.len();
            if self.rng.bool() {
                let (asked, ttl) = (granted + ms(22), ms(self.rng.u64(300..600)));
                let answered = Some(asked + ms(4));
                state.extensions.push(Extension { hold: hold_id, ttl, asked, answered });
                hold.promised = hold.promised.max(asked + ttl.div_f64(CLOCK_RATE_MAX));
            }
            hold.promised + ms(self.rng.u64(1..50))
        };
        state.holds.push(hold);
        over
    }

    fn read(&mut self, lock: &str, token: Option<u64>, asked: Duration) {
        let answered = asked + ms(self.rng.u64(1..3));
        let (client, lock) = ("r".to_owned(), lock.to_owned());
        self.good.state.reads.push(Read { client, lock, token, asked, answered });
    }

    /// The tokens become small numbers, in the order of their grants; the log is what happened.
    fn numbered(mut self) -> Good {
        self.effects.sort();
        let granted = self.effects.iter().filter(|(.., is_grant)| *is_grant).map(|(_, _, token, _)| *token);
        let granted: Vec<u64> = granted.collect();
        let number = |token: &mut u64| {
            *token = granted.iter().position(|other| other == token).expect("it was granted") as u64 + 1;
        };
        for (at, lock, token, is_grant) in &mut self.effects {
            number(token);
            self.good.log.holds(*at, lock, is_grant.then_some(*token));
            if !*is_grant {
                self.good.log.ends(*at, *token);
            }
        }
        let State { holds, writes, reads, refusals, acquires, .. } = &mut self.good.state;
        holds.iter_mut().for_each(|hold| number(&mut hold.token));
        writes.iter_mut().for_each(|write| number(&mut write.token));
        reads.iter_mut().filter_map(|read| read.token.as_mut()).for_each(number);
        refusals.iter_mut().filter_map(|refusal| refusal.token.as_mut()).for_each(number);
        for acquire in acquires {
            if let Some((_, Answer::Granted(token))) = &mut acquire.answer {
                number(token);
            }
        }
        self.good
    }
}

fn history(good: &Good) -> History {
    History { state: Arc::new(Mutex::new(good.state.clone())), ..History::new() }
}

/// What the checks say that need no log.
fn alone(good: &Good) -> Option<&'static str> {
    history(good).check().err().map(|violation| violation.check)
}

/// What those say that hold it against the log.
fn against_the_log(good: &Good) -> Option<&'static str> {
    history(good).check_against(&good.log).err().map(|violation| violation.check)
}

/// The next hold of the same lock.
fn next_of(state: &State, at: usize) -> Option<usize> {
    (at + 1..state.holds.len()).find(|next| state.holds[*next].lock == state.holds[at].lock)
}

/// What a bug would do to what clients see, at some hold. `None`: not at this one.
type Mutation = fn(&mut State, usize) -> Option<()>;

const MUTATIONS: [(&str, Mutation); 13] = [
    ("a second holder", |state, at| {
        let mut second = state.holds[at].clone();
        (second.client, second.token) = ("x".to_owned(), second.token + 1_000);
        (second.granted, second.asked) = (second.granted + ms(1), second.granted);
        second.ended = None;
        state.holds.push(second);
        Some(())
    }),
    ("tokens swapped", |state, at| {
        let next = next_of(state, at)?;
        let other = state.holds[next].token;
        state.holds[next].token = std::mem::replace(&mut state.holds[at].token, other);
        Some(())
    }),
    ("a token twice", |state, at| {
        state.holds[at].token = state.holds[next_of(state, at)?].token;
        Some(())
    }),
    ("a belief that goes on", |state, at| {
        state.holds[at].ended = Some(state.holds[next_of(state, at)?].granted + ms(5));
        Some(())
    }),
    ("a release that is dropped", |state, at| {
        // The cluster said that it is released, and it was not: the next one sees it held.
        let (lock, token) = (state.holds[at].lock.clone(), state.holds[at].token);
        let released = state.holds[at].released?;
        let mut reads = state.reads.iter_mut();
        let read = reads.find(|read| read.lock == lock && read.token.is_none() && read.asked > released)?;
        read.token = Some(token);
        Some(())
    }),
    ("a lease that ends early", |state, at| {
        let next = state.holds[next_of(state, at)?].granted;
        let hold = &mut state.holds[at];
        (!hold.gave_back).then(|| hold.promised = next + ms(1))
    }),
    ("a stale read", |state, at| {
        let (lock, token) = (state.holds[at].lock.clone(), state.holds[at].token);
        let newer = |read: &&mut Read| read.lock == lock && read.token.is_some_and(|other| other > token);
        state.reads.iter_mut().rfind(newer)?.token = Some(token);
        Some(())
    }),
    ("a holder that is not seen", |state, at| {
        let token = Some(state.holds[at].token);
        state.reads.iter_mut().find(|read| read.token == token)?.token = None;
        Some(())
    }),
    ("a refusal that names one of before", |state, at| {
        let (lock, token) = (state.holds[at].lock.clone(), state.holds[at].token);
        let newer = |one: &&mut Refusal| one.lock == lock && one.token.is_some_and(|other| other > token);
        state.refusals.iter_mut().rfind(newer)?.token = Some(token);
        Some(())
    }),
    ("a holder that never asked", |state, _| {
        let last = state.reads.iter_mut().max_by_key(|read| read.token)?;
        let is_known = state.holds.iter().any(|hold| Some(hold.token) == last.token);
        let (lock, asked) = (last.lock.clone(), last.asked);
        let of_it = |acquire: &Acquire| acquire.locks.contains(&lock) && acquire.answer.is_none();
        // All that is open was asked for later.
        let open = state.acquires.iter_mut().filter(|acquire| of_it(acquire));
        open.for_each(|acquire| acquire.asked = asked + ms(100));
        (!is_known).then_some(())
    }),
    ("an extension that is forgotten", |state, at| {
        let next = state.holds[next_of(state, at)?].granted;
        let extension = state.extensions.iter().find(|extension| extension.hold == at)?;
        state.holds[at].promised = extension.asked + (next - extension.asked) * 2;
        Some(())
    }),
    ("a stale write accepted", |state, _| {
        state.writes.iter_mut().find(|write| !write.accepted)?.accepted = true;
        Some(())
    }),
    ("a write under another's token", |state, at| {
        let hold = &state.holds[at];
        state.writes.iter_mut().find(|write| write.token == hold.token && write.accepted)?.client =
            "x".to_owned();
        Some(())
    }),
];

/// What a mutation makes of good histories: which of them it could change, and how.
fn mutated(mutate: Mutation) -> impl Iterator<Item = (u64, Good)> {
    (0..300).filter_map(move |seed| {
        let mut good = good(seed);
        let at = good.state.holds.len().checked_sub(1)?.min(seed as usize % good.state.holds.len().max(1));
        mutate(&mut good.state, at).map(|()| (seed, good))
    })
}

#[test]
fn good_histories_pass() {
    for seed in 0..3_000 {
        let good = good(seed);
        assert_eq!((history(&good).check().map(drop), against_the_log(&good)), (Ok(()), None), "seed {seed}");
    }
}

#[test]
fn every_mutation_is_seen_wherever_it_is() {
    for (what, mutate) in MUTATIONS {
        let mut made = 0;
        for (seed, good) in mutated(mutate) {
            made += 1;
            assert!(alone(&good).is_some(), "{what}, seed {seed}");
        }
        assert!(made > 20, "{what}: only {made} of them");
    }
}

/// The search is a check of its own: it sees by itself what others see too.
#[test]
fn the_search_alone_sees_what_touches_the_lock() {
    let others =
        ["a token twice", "a belief that goes on", "a stale write accepted", "a write under another's token"];
    for (what, mutate) in MUTATIONS.into_iter().filter(|(what, _)| !others.contains(what)) {
        for (seed, good) in mutated(mutate) {
            assert!(search::every_lock(&good.state).is_err(), "{what}, seed {seed}");
        }
    }
}

/// And so is the log.
#[test]
fn the_log_alone_contradicts_what_was_never_so() {
    let others = [
        "a belief that goes on",
        "a holder that never asked",
        "a stale write accepted",
        "a write under another's token",
    ];
    for (what, mutate) in MUTATIONS.into_iter().filter(|(what, _)| !others.contains(what)) {
        for (seed, good) in mutated(mutate) {
            assert!(against_the_log(&good).is_some(), "{what}, seed {seed}");
        }
    }
}

/// What happened later than it was answered, or before it was asked for, is no effect of it.
#[test]
fn the_log_contradicts_what_has_another_time() {
    for seed in 0..300 {
        let Good { state, log } = good(seed);
        let Some(at) = (0..state.holds.len()).find(|at| state.holds[*at].released.is_some()) else {
            continue;
        };
        let later = |change: fn(&mut Hold)| {
            let mut state = state.clone();
            change(&mut state.holds[at]);
            against_the_log(&Good { state, log: log.clone() })
        };
        assert_eq!(later(|hold| hold.granted = hold.asked), Some("H4"), "seed {seed}: granted too early");
        assert_eq!(later(|hold| hold.released = hold.ended), Some("H4"), "seed {seed}: released too early");
        let late = later(|hold| (hold.ended, hold.released) = (hold.released, hold.released));
        assert!(late.is_some(), "seed {seed}: released before it was asked for");
    }
}
