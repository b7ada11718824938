//! Are the checks worth anything? Histories of a lock that behaves pass all of them, thousands of them; and each of them
//! fails once it is changed in a way in which bugs would change it.

use super::*;

/// What clients of a good lock see: takes and gives, leases that end, reads, writes, clients that die. One lock.
fn good(seed: u64) -> State {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut state = State::default();
    let ms = Duration::from_millis;
    let mut now = ms(1_000);
    // The last token, and since when it is surely over.
    let mut token = 0;
    for _ in 0..rng.u64(6..20) {
        let asked = now - ms(rng.u64(1..500));
        token += rng.u64(1..3);
        let client = format!("c{}", rng.u8(1..4));
        let granted = now + ms(rng.u64(1..20));
        let mut hold = Hold {
            client: client.clone(),
            lock: "k".to_owned(),
            token,
            asked,
            granted,
            ended: None,
            gave_back: false,
            released: None,
            surely_over: true,
            promised: granted + ms(rng.u64(100..300)),
        };
        let write = Write { resource: "k".to_owned(), client: client.clone(), token, accepted: true };
        state.writes.push(write);
        let read_at = granted + ms(rng.u64(1..20));
        let read = |token, asked: Duration, answered| Read {
            client: "r".to_owned(),
            lock: "k".to_owned(),
            token,
            asked,
            answered,
        };
        state.reads.push(read(Some(token), read_at, read_at + ms(5)));
        let over = if rng.bool() {
            let sent = granted + ms(rng.u64(50..90));
            (hold.ended, hold.gave_back) = (Some(sent), true);
            hold.released = rng.bool().then_some(sent + ms(10));
            sent + ms(10)
        } else {
            // It was killed, and its lease ends later.
            hold.ended = Some(granted + ms(rng.u64(50..90)));
            hold.promised + ms(rng.u64(1..50))
        };
        state.reads.push(read(None, over + ms(1), over + ms(3)));
        state.holds.push(hold);
        now = over + ms(rng.u64(5..100));
        // A write of its own that came late, once there was a later one.
        if let Some(late) = state.holds.iter().rev().nth(1).filter(|_| rng.bool()) {
            let (resource, client, token) = ("k".to_owned(), late.client.clone(), late.token);
            state.writes.push(Write { resource, client, token, accepted: false });
        }
    }
    state
}

fn check(state: State) -> Option<&'static str> {
    let history = History { state: Arc::new(Mutex::new(state)), ..History::new() };
    history.check().err().map(|violation| violation.check)
}

/// What a bug would do to what clients see, at some place. `None`: not at this one.
type Mutation = fn(&mut State, usize) -> Option<()>;

const MUTATIONS: [(&str, Mutation); 8] = [
    ("a second holder", |state, at| {
        let mut second = state.holds.get(at)?.clone();
        (second.client, second.token) = ("x".to_owned(), second.token + 1_000);
        (second.granted, second.asked) = (second.granted + Duration::from_millis(1), second.granted);
        second.ended = None;
        state.holds.push(second);
        Some(())
    }),
    ("tokens swapped", |state, at| {
        let other = state.holds.get(at + 1)?.token;
        let one = std::mem::replace(&mut state.holds[at].token, other);
        state.holds[at + 1].token = one;
        Some(())
    }),
    ("a token twice", |state, at| {
        let token = state.holds.get(at + 1)?.token;
        state.holds[at].token = token;
        Some(())
    }),
    ("a belief that goes on", |state, at| {
        let next = state.holds.get(at + 1)?.granted;
        state.holds[at].ended = Some(next + Duration::from_millis(5));
        Some(())
    }),
    ("a lease that ends early", |state, at| {
        let next = state.holds.get(at + 1)?.granted;
        let hold = &mut state.holds[at];
        if hold.gave_back {
            return None;
        }
        hold.promised = next + Duration::from_millis(1);
        Some(())
    }),
    ("a stale read", |state, at| {
        let token = state.holds.get(at)?.token;
        let read = state.reads.iter_mut().rfind(|read| read.token.is_some_and(|other| other > token))?;
        read.token = Some(token);
        Some(())
    }),
    ("a holder that is not seen", |state, at| {
        let read = state.reads.iter_mut().filter(|read| read.token.is_some()).nth(at)?;
        read.token = None;
        Some(())
    }),
    ("a stale write accepted", |state, _| {
        let write = state.writes.iter_mut().find(|write| !write.accepted)?;
        write.accepted = true;
        Some(())
    }),
];

#[test]
fn good_histories_pass() {
    for seed in 0..2_000 {
        assert_eq!(check(good(seed)), None, "seed {seed}");
    }
}

#[test]
fn every_mutation_is_seen_wherever_it_is() {
    for (what, mutate) in MUTATIONS {
        let mut made = 0;
        for seed in 0..200 {
            let mut state = good(seed);
            let at = seed as usize % state.holds.len();
            if mutate(&mut state, at).is_some() {
                made += 1;
                assert!(check(state).is_some(), "{what}, seed {seed}");
            }
        }
        assert!(made > 20, "{what}: only {made} of them");
    }
}

/// The search is a check of its own: it sees by itself what others see too.
#[test]
fn the_search_alone_sees_what_touches_the_lock() {
    let alone = [
        "a second holder",
        "tokens swapped",
        "a stale read",
        "a holder that is not seen",
        "a lease that ends early",
    ];
    for (what, mutate) in MUTATIONS.into_iter().filter(|(what, _)| alone.contains(what)) {
        for seed in 0..200 {
            let mut state = good(seed);
            let at = seed as usize % state.holds.len();
            if mutate(&mut state, at).is_some() {
                assert!(search::every_lock(&state).is_err(), "{what}, seed {seed}");
            }
        }
    }
}
