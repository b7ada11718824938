//! What a session wants, moment by moment: tables without streams or timers.

use std::sync::Mutex;

use super::*;
use crate::info::FencingToken;

/// A session and a clock that the test moves. The lease clock and the timers go together.
struct Rig {
    session: Session,
    boot: Arc<Mutex<Duration>>,
    started: Instant,
    number: u64,
}

impl Rig {
    fn new(kind: Kind, ttl: u64) -> Rig {
        let boot = Arc::new(Mutex::new(Duration::from_secs(500)));
        let clock: Clock = {
            let boot = boot.clone();
            Arc::new(move || *boot.lock().unwrap())
        };
        let session = Session::new(kind, Duration::from_secs(ttl), [7; 16], "me".into(), clock, 2);
        Rig { session, boot, started: Instant::now(), number: 0 }
    }

    /// Opened at once, with one lock held.
    fn holding(kind: Kind, ttl: u64) -> Rig {
        let mut rig = Rig::new(kind, ttl);
        rig.session.acquire(RequestId(1), Arc::new(Ask::default()), Wait::Forever);
        rig.attach();
        rig.opened(1).unwrap();
        rig.ops();
        let mut effects = Vec::new();
        let granted = Outcome::Granted(FencingToken::from(5));
        rig.session.outcome(rig.now(), Ticket(1), granted, &mut effects);
        rig
    }

    fn now(&self) -> Now {
        let boot = self.session.clock.clone();
        let at = self.started + (boot() - Duration::from_secs(500));
        Now { boot: BootTime::read(&boot), at }
    }

    fn pass(&mut self, ms: u64) {
        *self.boot.lock().unwrap() += Duration::from_millis(ms);
    }

    fn attach(&mut self) -> Op {
        self.number += 1;
        self.session.attach(self.now(), Key(self.number), Number(self.number), Attachment(1))
    }

    fn opened(&mut self, number: u64) -> Result<(), Over> {
        self.session.opened(self.now(), SessionId(9), Number(number))
    }

    fn resumed(&mut self, number: u64) -> Result<(), Over> {
        let held = vec![(Ticket(1), FencingToken::from(5))];
        let part =
            Resumed { held, acked: Some(Ticket(1)), number: Some(Number(number)), ..Resumed::default() };
        self.session.resumed(self.now(), part, false, &mut Vec::new())
    }

    fn renew(&mut self) -> u64 {
        self.number += 1;
        self.session.renew(self.now(), Number(self.number), self.session.ttl() / 3);
        self.number
    }

    fn renewed(&mut self, number: u64) -> Result<(), Over> {
        self.session.renewed(self.now(), Number(number), &mut Vec::new())
    }

    fn ops(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        self.session.take_ops(self.now(), &mut ops);
        ops
    }

    fn wakes_in(&self) -> Option<Duration> {
        self.session.wakes_at(self.now()).map(|at| at - self.now().at)
    }
}

#[test]
fn nothing_but_the_attachment_is_sent_before_it_is_answered() {
    let mut rig = Rig::new(Kind::Shared, 9);
    rig.session.acquire(RequestId(1), Arc::new(Ask::default()), Wait::Forever);
    assert!(matches!(rig.attach(), Op::Open { .. }));
    assert!(rig.ops().is_empty());
    rig.opened(1).unwrap();
    assert_eq!(rig.ops().len(), 1);
    rig.session.detach();
    assert!(matches!(rig.attach(), Op::Resume { session: SessionId(9), .. }));
    assert!(rig.ops().is_empty());
    rig.pass(8_000);
    assert!(!rig.session.wants_renewal(rig.now()), "not before it is attached");
}

#[test]
fn an_open_that_is_answered_too_late_is_over() {
    let mut rig = Rig::new(Kind::Shared, 9);
    rig.attach();
    rig.pass(8_909);
    assert_eq!(rig.opened(1), Ok(()));
    let mut rig = Rig::new(Kind::Shared, 9);
    rig.attach();
    rig.pass(8_910);
    assert_eq!(rig.opened(1), Err(Over));
}

#[test]
fn renewals_are_due_each_third_and_late_answers_end_the_session() {
    let mut rig = Rig::holding(Kind::Shared, 9);
    assert_eq!(rig.wakes_in(), Some(Duration::from_secs(3)));
    rig.pass(3_000);
    assert!(rig.session.wants_renewal(rig.now()));
    let number = rig.renew();
    assert!(!rig.session.wants_renewal(rig.now()));
    // Unanswered for a ninth of the TTL: the stream is to be left.
    assert_eq!(rig.wakes_in(), Some(Duration::from_secs(1)));
    rig.pass(1_000);
    assert!(rig.session.is_unanswered(rig.now()));
    assert_eq!(rig.renewed(number), Ok(()));
    assert!(!rig.session.is_unanswered(rig.now()));
    let next = rig.renew();
    rig.pass(7_909);
    assert_eq!(rig.renewed(next), Ok(()), "a millisecond before the deadline");
    let last = rig.renew();
    rig.pass(8_910);
    assert_eq!(rig.renewed(last), Err(Over));
    assert!(rig.session.is_over());
}

#[test]
fn a_guard_that_saw_the_end_first_decides() {
    let mut rig = Rig::holding(Kind::Shared, 9);
    rig.pass(3_000);
    let number = rig.renew();
    let moment = rig.now();
    rig.pass(6_000);
    assert_eq!(rig.session.cell().unwrap().remaining(), None);
    // The keeper read the clock before the guard did.
    assert_eq!(rig.session.renewed(moment, Number(number), &mut Vec::new()), Err(Over));
}

#[test]
fn after_a_resume_an_open_number_is_followed_by_a_renewal() {
    // (the number that the resume names, whether a renewal is due at once); 2 was queued and not answered.
    for (named, is_due) in [(1, true), (2, false)] {
        let mut rig = Rig::holding(Kind::Shared, 9);
        rig.pass(3_000);
        rig.renew();
        rig.pass(1_000);
        rig.session.detach();
        assert!(rig.session.cell().unwrap().is_at_risk());
        rig.attach();
        assert_eq!(rig.resumed(named), Ok(()));
        assert_eq!(rig.session.wants_renewal(rig.now()), is_due, "resumed with number {named}");
        assert_eq!(rig.session.cell().unwrap().is_at_risk(), is_due);
    }
}

#[test]
fn an_attachment_has_more_time_while_no_lock_is_at_stake() {
    let silent_after = |mut rig: Rig, ms: u64| {
        rig.attach();
        rig.pass(ms);
        rig.session.is_unanswered(rig.now())
    };
    assert!(!silent_after(Rig::new(Kind::Shared, 1), 999));
    assert!(silent_after(Rig::new(Kind::Shared, 1), 1_000));
    assert!(!silent_after(Rig::holding(Kind::Shared, 1), 111));
    assert!(silent_after(Rig::holding(Kind::Shared, 1), 112));
}

#[test]
fn a_renewal_waits_for_no_more_than_a_share_of_what_is_left() {
    // A longer TTL is asked for, and the cluster has not granted it yet.
    let mut rig = Rig::holding(Kind::Shared, 9);
    rig.pass(3_000);
    rig.session.extend(rig.now(), RequestId(7), Duration::from_secs(3_600));
    rig.renew();
    assert_eq!(rig.wakes_in(), Some(Duration::from_millis(5_910) / 3));
    // Late in the lease.
    let mut rig = Rig::holding(Kind::Shared, 9);
    rig.pass(8_310);
    rig.renew();
    assert_eq!(rig.wakes_in(), Some(Duration::from_millis(200)));
    // And however long the TTL is, a silent stream is noticed.
    let mut rig = Rig::holding(Kind::Shared, 3_600);
    rig.renew();
    assert_eq!(rig.wakes_in(), Some(Duration::from_secs(5)));
}

#[test]
fn no_attachment_and_no_close_waits_for_minutes() {
    let two = Some(Duration::from_secs(2));
    let mut rig = Rig::new(Kind::Shared, 3_600);
    rig.attach();
    assert_eq!(rig.wakes_in(), two);
    let mut rig = Rig::holding(Kind::Shared, 3_600);
    rig.session.detach();
    rig.attach();
    assert_eq!(rig.wakes_in(), two);
    rig.resumed(1).unwrap();
    rig.session.close();
    rig.ops();
    assert_eq!(rig.wakes_in(), two);
}

fn refusal(reason: &str, after_ms: Option<u64>) -> OpError {
    let retry_after = after_ms.map(Duration::from_millis);
    OpError { reason: reason.into(), message: String::new(), retry_after }
}

#[test]
fn a_refused_close_is_said_again() {
    for reason in ["QUEUE_BUSY", "NOT_LEADER", "OUTCOME_UNKNOWN"] {
        let mut rig = Rig::holding(Kind::Shared, 9);
        rig.session.close();
        assert!(matches!(rig.ops()[..], [Op::Close { .. }]));
        let refused = Outcome::Error(refusal(reason, Some(300)));
        rig.session.outcome(rig.now(), Ticket::NONE, refused, &mut Vec::new());
        assert!(rig.ops().is_empty(), "{reason}: at once");
        assert_eq!(rig.wakes_in(), Some(Duration::from_millis(300)), "{reason}");
        rig.pass(300);
        assert!(matches!(rig.ops()[..], [Op::Close { .. }]), "{reason}");
        assert!(rig.ops().is_empty());
    }
}

#[test]
fn a_leader_that_stays_busy_is_left_after_a_while() {
    let mut rig = Rig::new(Kind::Shared, 60);
    let mut waited = 0;
    while !rig.session.is_unanswered(rig.now()) {
        rig.attach();
        rig.session.attach_later(rig.now(), &refusal("QUEUE_BUSY", Some(300)));
        rig.pass(300);
        waited += 300;
        assert!(waited < 6_000);
    }
    assert!(waited >= 5_000, "{waited} ms");
}

#[test]
fn no_server_puts_a_renewal_off_until_the_lease_is_over() {
    let mut rig = Rig::holding(Kind::Shared, 2);
    rig.pass(700);
    rig.renew();
    rig.session.renew_later(rig.now(), &refusal("QUEUE_BUSY", Some(5_000)));
    assert_eq!(rig.wakes_in(), Some(Duration::from_millis(1_250) / 4));
    rig.pass(313);
    assert!(rig.session.wants_renewal(rig.now()));
}

#[test]
fn a_new_ttl_that_the_cluster_refuses_fails_its_caller_and_not_the_lease() {
    let mut rig = Rig::holding(Kind::Shared, 9);
    rig.session.extend(rig.now(), RequestId(7), Duration::from_secs(3_600));
    rig.renew();
    let failed = rig.session.renew_later(rig.now(), &refusal("INVALID_ARGUMENT", None));
    assert_eq!(failed, [RequestId(7)]);
    assert!(rig.session.wants_renewal(rig.now()));
    rig.number += 1;
    let names = rig.session.renew(rig.now(), Number(rig.number), Duration::from_secs(3));
    assert_eq!(names, Some(Duration::from_secs(9)));
}

#[test]
fn an_open_whose_answer_was_lost_is_asked_for_again_to_be_closed() {
    let mut rig = Rig::new(Kind::Shared, 9);
    assert!(rig.session.is_unborn(rig.now()), "never sent");
    rig.attach();
    rig.session.detach();
    rig.session.close();
    assert!(!rig.session.is_unborn(rig.now()));
    assert!(matches!(rig.attach(), Op::Open { secret: [7, ..], .. }));
    rig.opened(2).unwrap();
    assert!(matches!(rig.ops()[..], [Op::Close { .. }]));
    // What nobody could be asked about for a TTL is over by itself.
    let mut rig = Rig::new(Kind::Shared, 9);
    rig.attach();
    rig.session.detach();
    rig.session.close();
    rig.pass(3_000);
    assert_eq!(rig.wakes_in(), Some(Duration::from_secs(6)));
    rig.pass(6_000);
    assert!(rig.session.is_unborn(rig.now()));
}

#[test]
fn an_unknown_attachment_is_made_again_at_once_but_not_in_a_spin() {
    let mut rig = Rig::holding(Kind::Shared, 9);
    rig.pass(500);
    rig.session.attach_again(rig.now());
    assert!(rig.session.wants_attachment(rig.now()));
    rig.attach();
    rig.resumed(1).unwrap();
    rig.session.attach_again(rig.now());
    assert!(!rig.session.wants_attachment(rig.now()));
    rig.pass(100);
    assert!(rig.session.wants_attachment(rig.now()));
}

#[test]
fn an_own_session_whose_grant_a_resume_tells_is_renewed_as_well() {
    let mut rig = Rig::new(Kind::Own, 9);
    rig.session.acquire(RequestId(1), Arc::new(Ask::default()), Wait::Forever);
    rig.attach();
    rig.opened(1).unwrap();
    rig.ops();
    rig.session.detach();
    rig.pass(2_000);
    rig.attach();
    rig.resumed(1).unwrap();
    assert!(rig.session.holds_locks() && rig.session.wants_renewal(rig.now()));
}

#[test]
fn an_own_session_is_renewed_once_after_the_grant() {
    let mut rig = Rig::holding(Kind::Own, 9);
    assert!(rig.session.wants_renewal(rig.now()));
    let number = rig.renew();
    rig.renewed(number).unwrap();
    rig.pass(5_000);
    assert!(!rig.session.wants_renewal(rig.now()));
    // Its deadline is all that is left to wake for.
    assert_eq!(rig.wakes_in(), Some(Duration::from_millis(9_000 - 90 - 5_000)));
}

#[test]
fn closing_is_said_after_what_was_released_and_again_on_the_next_stream() {
    let mut rig = Rig::holding(Kind::Shared, 9);
    rig.session.tickets.abandon(RequestId(1));
    rig.session.close();
    let ops = rig.ops();
    assert!(matches!(ops[..], [Op::Release { .. }, Op::Close { .. }]), "{ops:?}");
    assert!(rig.ops().is_empty());
    rig.session.detach();
    rig.attach();
    rig.resumed(1).unwrap();
    assert!(matches!(rig.ops()[..], [Op::Release { .. }, Op::Close { .. }]));
}

#[test]
fn a_session_is_spent_when_nobody_uses_it() {
    let mut rig = Rig::holding(Kind::Shared, 9);
    assert!(!rig.session.is_spent(rig.now()));
    rig.session.tickets.abandon(RequestId(1));
    assert!(!rig.session.is_spent(rig.now()), "its release is not answered");
    rig.session.outcome(rig.now(), Ticket(1), Outcome::Finished, &mut Vec::new());
    assert!(!rig.session.is_spent(rig.now()));
    rig.pass(9_000);
    assert!(rig.session.is_spent(rig.now()));

    let mut rig = Rig::holding(Kind::Own, 9);
    rig.session.tickets.abandon(RequestId(1));
    rig.session.outcome(rig.now(), Ticket(1), Outcome::Finished, &mut Vec::new());
    assert!(rig.session.is_spent(rig.now()));
}

#[test]
fn a_refused_attachment_and_a_refused_renewal_wait_as_long_as_they_are_told() {
    let after = |ms| OpError {
        reason: "QUEUE_BUSY".into(),
        message: String::new(),
        retry_after: Some(Duration::from_millis(ms)),
    };
    let mut rig = Rig::new(Kind::Shared, 9);
    rig.attach();
    rig.session.attach_later(rig.now(), &after(250));
    assert!(!rig.session.wants_attachment(rig.now()));
    rig.pass(250);
    assert!(rig.session.wants_attachment(rig.now()));

    let mut rig = Rig::holding(Kind::Shared, 9);
    rig.pass(3_000);
    rig.renew();
    rig.session.renew_later(rig.now(), &after(250));
    assert!(!rig.session.wants_renewal(rig.now()) && rig.session.cell().unwrap().is_at_risk());
    rig.pass(250);
    assert!(rig.session.wants_renewal(rig.now()));
}

#[test]
fn a_busy_leader_is_an_answer_and_a_node_without_one_is_none() {
    for (reason, is_silent) in [("QUEUE_BUSY", false), ("NOT_LEADER", true)] {
        let error = OpError { reason: reason.into(), message: String::new(), retry_after: None };
        let mut rig = Rig::holding(Kind::Shared, 9);
        rig.session.detach();
        for _ in 0..10 {
            rig.attach();
            rig.session.attach_later(rig.now(), &error);
            rig.pass(100);
        }
        assert_eq!(rig.session.is_unanswered(rig.now()), is_silent, "{reason}");
    }
}
