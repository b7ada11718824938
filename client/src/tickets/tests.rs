//! Tables of what each answer does to a request, and of what a resume makes of all of them.

use super::*;

const SESSION: SessionId = SessionId(1);

struct Rig {
    tickets: Tickets,
    now: Instant,
}

impl Rig {
    fn new() -> Rig {
        Rig { tickets: Tickets::new(), now: Instant::now() }
    }

    /// Acquires so many, under requests 101, 102, … and tickets 1, 2, …
    fn asking(requests: u64) -> Rig {
        let mut rig = Rig::new();
        for i in 1..=requests {
            rig.acquire(100 + i);
        }
        rig
    }

    fn acquire(&mut self, request: u64) {
        self.tickets.acquire(RequestId(request), Arc::new(Ask::default()), Wait::Forever);
    }

    fn abandon(&mut self, request: u64) {
        self.tickets.abandon(RequestId(request));
    }

    /// What is sent now, in short: `A3/1` is an acquire of ticket 3 with `acked` 1.
    fn sent(&mut self) -> String {
        let mut ops = Vec::new();
        self.tickets.take_ops(SESSION, self.now, &mut ops);
        let short = |op: &Op| match op {
            Op::Acquire { ticket, acked, .. } => format!("A{}/{}", ticket.0, acked.0),
            Op::Cancel { ticket, acked, .. } => format!("C{}/{}", ticket.0, acked.0),
            Op::Release { ticket, token, acked, .. } => format!("R{}={token}/{}", ticket.0, acked.0),
            other => panic!("{other:?}"),
        };
        ops.iter().map(short).collect::<Vec<_>>().join(" ")
    }

    fn told(&mut self, ticket: u64, outcome: Outcome) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.tickets.outcome(Ticket(ticket), outcome, self.now, &mut effects);
        effects
    }

    fn grant(&mut self, ticket: u64, token: u64) {
        assert_eq!(self.told(ticket, granted(token)).len(), 1);
    }

    fn resumed(
        &mut self,
        held: &[(u64, u64)],
        queued: &[(u64, u32)],
        finished: &[u64],
        acked: u64,
    ) -> Vec<Effect> {
        let answer = Resumed {
            held: held.iter().map(|&(ticket, token)| (Ticket(ticket), FencingToken::from(token))).collect(),
            queued: queued.iter().map(|&(ticket, place)| (Ticket(ticket), place)).collect(),
            finished: finished.iter().copied().map(Ticket).collect(),
            acked: Some(Ticket(acked)),
            number: None,
        };
        let mut effects = Vec::new();
        self.tickets.resumed(&answer, &mut effects);
        effects
    }
}

fn granted(token: u64) -> Outcome {
    Outcome::Granted(FencingToken::from(token))
}

fn error(reason: &str) -> Outcome {
    Outcome::Error(OpError { reason: reason.into(), message: String::new(), retry_after: None })
}

fn request(id: u64) -> RequestId {
    RequestId(id)
}

#[test]
fn acked_is_the_lowest_unanswered_ticket_and_passes_the_queued() {
    let mut rig = Rig::asking(3);
    assert_eq!(rig.sent(), "A1/1 A2/1 A3/1");
    assert_eq!(
        rig.told(1, Outcome::Queued { place: 4 }),
        [Effect::Queued { request: request(101), place: 4 }]
    );
    rig.grant(3, 9);
    rig.acquire(104);
    assert_eq!(rig.sent(), "A4/2");
    rig.told(2, Outcome::Refused(Contention::default()));
    rig.told(4, Outcome::Queued { place: 1 });
    rig.acquire(105);
    assert_eq!(rig.sent(), "A5/5");
}

#[test]
fn each_answer_ends_a_request_in_its_own_way() {
    let contention = Contention { owner: "b".into(), ..Contention::default() };
    let request = request(101);
    let failure = OpError { reason: "CAPACITY_MISMATCH".into(), message: String::new(), retry_after: None };
    let token = FencingToken::from(5);
    let cases = [
        (granted(5), Effect::Granted { request, token, attempts: 1 }),
        (Outcome::Refused(contention.clone()), Effect::Refused { request, contention: contention.clone() }),
        (Outcome::WaitEnded(contention.clone()), Effect::WaitEnded { request, contention }),
        (Outcome::Finished, Effect::Over { request }),
        (error("CAPACITY_MISMATCH"), Effect::Failed { request, error: failure }),
    ];
    for queued_first in [false, true] {
        for (outcome, effect) in &cases {
            let mut rig = Rig::asking(1);
            rig.sent();
            if queued_first {
                rig.told(1, Outcome::Queued { place: 1 });
            }
            assert_eq!(rig.told(1, outcome.clone()), [effect_of(effect)], "{outcome:?}");
            assert_eq!(rig.told(1, outcome.clone()), [], "told twice: {outcome:?}");
            assert_eq!(rig.sent(), "");
        }
    }
}

/// Effects are not `Clone`: each is told once.
fn effect_of(effect: &Effect) -> Effect {
    match effect {
        Effect::Granted { request, token, attempts } => {
            Effect::Granted { request: *request, token: *token, attempts: *attempts }
        }
        Effect::Refused { request, contention } => {
            Effect::Refused { request: *request, contention: contention.clone() }
        }
        Effect::WaitEnded { request, contention } => {
            Effect::WaitEnded { request: *request, contention: contention.clone() }
        }
        Effect::Over { request } => Effect::Over { request: *request },
        Effect::Failed { request, error } => Effect::Failed { request: *request, error: error.clone() },
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_abandoned_request_is_cancelled_released_or_forgotten() {
    // Never sent: forgotten.
    let mut rig = Rig::asking(1);
    rig.abandon(101);
    assert!(rig.tickets.is_empty());
    assert_eq!(rig.sent(), "");
    // Unanswered: cancelled, and a grant that crosses the cancel is left to it.
    let mut rig = Rig::asking(1);
    rig.sent();
    rig.abandon(101);
    assert_eq!(rig.sent(), "C1/1");
    assert_eq!(rig.told(1, granted(5)), []);
    assert!(!rig.tickets.is_empty(), "the cancel is not answered yet");
    assert_eq!(rig.told(1, Outcome::Finished), []);
    assert!(rig.tickets.is_empty());
    // Granted: released, once.
    let mut rig = Rig::asking(1);
    rig.sent();
    rig.grant(1, 5);
    rig.abandon(101);
    rig.abandon(101);
    assert_eq!((rig.sent().as_str(), rig.tickets.held()), ("R1=5/2", 0));
    assert_eq!(rig.told(1, Outcome::Finished), [Effect::Released { request: request(101), held: true }]);
    assert!(rig.tickets.is_empty());
}

#[test]
fn what_could_not_be_taken_is_sent_again_after_a_pause() {
    for reason in ["QUEUE_BUSY", "OUTCOME_UNKNOWN"] {
        let mut rig = Rig::asking(1);
        assert_eq!(rig.sent(), "A1/1");
        assert_eq!(rig.told(1, error(reason)), []);
        assert_eq!(rig.sent(), "");
        rig.now += RETRY_PAUSE;
        assert_eq!(rig.sent(), "A1/1", "{reason}");
        rig.grant(1, 5);
        rig.abandon(101);
        assert_eq!(rig.sent(), "R1=5/2");
        rig.told(1, error(reason));
        rig.now += RETRY_PAUSE;
        assert_eq!(rig.sent(), "R1=5/2", "{reason}");
    }
}

#[test]
fn no_ticket_runs_ahead_of_the_window() {
    let mut rig = Rig::asking(WINDOW + 10);
    assert_eq!(rig.sent().split(' ').count() as u64, WINDOW);
    assert_eq!(rig.sent(), "");
    // The lowest answered: the next may go.
    rig.told(1, Outcome::Queued { place: 1 });
    assert_eq!(rig.sent(), format!("A{}/2", WINDOW + 1));
    // One in the middle: nothing may go.
    rig.told(500, Outcome::Queued { place: 2 });
    assert_eq!(rig.sent(), "");
}

#[test]
fn a_resume_decides_about_every_request() {
    // What a request was before, what the answer says about it, what is told and what is sent. Ticket 1, token 5;
    // `acked` is 1 unless the case says otherwise.
    type Case<'a> = (&'a str, &'a [(u64, u64)], &'a [(u64, u32)], &'a [u64], u64, &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        ("asking", &[(1, 5)], &[], &[], 1, "granted", ""),
        ("asking", &[], &[(1, 2)], &[], 1, "queued", ""),
        ("asking", &[], &[], &[1], 1, "over", ""),
        ("asking", &[], &[], &[], 1, "", "A1/1"),
        ("queued", &[(1, 5)], &[], &[], 1, "granted", ""),
        ("queued", &[], &[(1, 2)], &[], 1, "queued", ""),
        ("queued", &[], &[], &[1], 1, "over", ""),
        ("queued", &[], &[], &[], 2, "over", ""),
        ("held", &[(1, 5)], &[], &[], 1, "", ""),
        ("held", &[], &[], &[], 1, "not held", ""),
        ("held", &[], &[], &[1], 1, "not held", ""),
        ("releasing", &[(1, 5)], &[], &[], 1, "", "R1=5/2"),
        ("releasing", &[], &[], &[1], 1, "released", ""),
        ("cancelling", &[], &[(1, 2)], &[], 1, "", "C1/1"),
        ("cancelling", &[(1, 5)], &[], &[], 1, "", "C1/1"),
        ("cancelling", &[], &[], &[1], 1, "", ""),
        // It may still be under way to the cluster: the cancel must be there first.
        ("cancelling", &[], &[], &[], 1, "", "C1/1"),
        ("unsent", &[], &[], &[], 1, "", "A1/1"),
    ];
    for case in cases {
        let &(before, held, queued, finished, acked, told, sent) = case;
        let mut rig = Rig::asking(1);
        if before != "unsent" {
            rig.sent();
        }
        match before {
            "queued" => drop(rig.told(1, Outcome::Queued { place: 3 })),
            "held" => rig.grant(1, 5),
            "releasing" => {
                rig.grant(1, 5);
                rig.abandon(101);
                rig.sent();
            }
            "cancelling" => {
                rig.abandon(101);
                rig.sent();
            }
            _ => {}
        }
        rig.tickets.resuming();
        let effects = rig.resumed(held, queued, finished, acked);
        let short = effects.iter().map(|effect| match effect {
            Effect::Granted { .. } => "granted",
            Effect::Queued { .. } => "queued",
            Effect::Over { .. } => "over",
            Effect::NotHeld { .. } => "not held",
            Effect::Released { held: true, .. } => "released",
            other => panic!("{other:?}"),
        });
        assert_eq!(short.collect::<Vec<_>>().join(" "), told, "{case:?}");
        assert_eq!(rig.sent(), sent, "{case:?}");
    }
}

#[test]
fn what_nobody_claims_is_given_back() {
    let mut rig = Rig::asking(1);
    rig.sent();
    rig.grant(1, 5);
    rig.tickets.resuming();
    assert_eq!(rig.resumed(&[(1, 5), (7, 77)], &[(8, 1)], &[], 1), []);
    assert_eq!(rig.sent(), "R7=77/2 C8/2");
    assert_eq!((rig.told(7, Outcome::Finished), rig.told(8, Outcome::Finished)), (vec![], vec![]));
    assert_eq!(rig.tickets.held(), 1);
}

#[test]
fn a_grant_during_the_resume_need_not_be_in_its_answer() {
    let mut rig = Rig::asking(2);
    rig.sent();
    rig.tickets.resuming();
    rig.grant(1, 5);
    rig.grant(2, 6);
    rig.abandon(102);
    assert_eq!(rig.resumed(&[], &[(1, 1)], &[], 1), []);
    // Held stays held. The dropped one is released, though the answer does not know it.
    assert_eq!((rig.tickets.held(), rig.sent().as_str()), (1, "R2=6/3"));
}

#[test]
fn an_operation_without_an_answer_is_missed_and_ever_more_patiently() {
    let s = Duration::from_secs;
    let mut rig = Rig::asking(1);
    assert_eq!(rig.tickets.answer_by(), None, "not sent yet");
    for limit in [2, 4, 6, 8, 8] {
        assert_eq!(rig.sent(), "A1/1");
        assert_eq!(rig.tickets.answer_by(), Some(rig.now + s(limit)));
        assert_eq!(rig.tickets.wakes_at(), rig.tickets.answer_by());
        rig.now += s(limit);
        rig.tickets.resuming();
        assert_eq!(rig.tickets.answer_by(), None, "the resume has a limit of its own");
        assert_eq!(rig.resumed(&[], &[], &[], 1), []);
    }
    // The first answer that is overdue counts.
    let mut rig = Rig::asking(2);
    rig.sent();
    rig.now += s(1);
    rig.acquire(103);
    rig.sent();
    rig.told(1, Outcome::Queued { place: 1 });
    rig.grant(2, 5);
    assert_eq!(rig.tickets.answer_by(), Some(rig.now + s(2)));
    rig.told(3, Outcome::Refused(Contention::default()));
    assert_eq!(rig.tickets.answer_by(), None);
    // The answer to the acquire is none to the cancel, and a release is awaited as well.
    rig.abandon(101);
    rig.abandon(102);
    assert_eq!(rig.sent(), "C1/4 R2=5/4");
    rig.told(1, Outcome::Queued { place: 1 });
    rig.told(2, Outcome::Finished);
    assert_eq!(rig.tickets.answer_by(), Some(rig.now + s(2)));
    rig.told(1, Outcome::Finished);
    assert_eq!(rig.tickets.answer_by(), None);
}

#[test]
fn an_operation_that_is_refused_for_too_long_is_missed_too() {
    let mut rig = Rig::asking(1);
    rig.sent();
    let refused = rig.now;
    for _ in 0..40 {
        rig.told(1, error("QUEUE_BUSY"));
        assert_eq!(rig.tickets.answer_by(), Some(refused + BUSY_LIMIT));
        rig.now += RETRY_PAUSE;
        assert_eq!(rig.sent(), "A1/1");
    }
    rig.tickets.resuming();
    rig.resumed(&[], &[], &[], 1);
    assert_eq!(rig.sent(), "A1/1");
    assert!(rig.tickets.answer_by().unwrap() > refused + BUSY_LIMIT);
}

#[test]
fn a_grant_or_a_place_that_nobody_awaits_is_given_back() {
    let mut rig = Rig::asking(2);
    rig.sent();
    rig.abandon(101);
    rig.abandon(102);
    rig.sent();
    // The cancels could not be executed, and nobody knows of the requests any more.
    rig.told(1, error("SOMETHING_NEW"));
    rig.told(2, error("SOMETHING_NEW"));
    assert!(rig.tickets.is_empty());
    assert_eq!(rig.told(1, granted(5)), []);
    assert_eq!(rig.told(2, Outcome::Queued { place: 1 }), []);
    assert_eq!(rig.sent(), "R1=5/3 C2/3");
    // Of a ticket that was never given out, nothing can be known.
    assert_eq!(rig.told(9, granted(6)), []);
    assert_eq!(rig.sent(), "");
}
