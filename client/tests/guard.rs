//! What a holder can rely on: how long a lock is held, when it is lost, and that it is given back.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use raftlock::{Client, Error, ErrorKind, GuardState, LostReason};
use raftlock_proto::v1;
use raftlock_proto::v1::session_lost::Reason;
use support::*;
use tokio::time::{Instant, timeout};

#[tokio::test(start_paused = true)]
async fn a_lock_is_granted_renewed_and_released() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").ttl(s(9.0)).metadata("job", "7").into_future());
    let mut stream = node.stream().await;
    let open = stream.open(1).await;
    assert_eq!((open.owner.as_str(), open.ttl_ms, open.secret.len()), ("me", 9_000, 16));
    let acquire = stream.acquire().await;
    assert_eq!((acquire.session, acquire.ticket, acquire.acked), (1, 1, 1));
    assert_eq!((acquire.names[0].as_str(), acquire.metadata["job"].as_str()), ("k", "7"));
    stream.granted(1, 1, 5).await;
    let guard = waiting.await.unwrap().unwrap();
    assert_eq!((guard.name(), guard.token().get(), guard.state()), ("k", 5, GuardState::Held));

    let opened = Instant::now();
    stream.renews = false;
    let mut last = opened;
    for turn in 1..=3 {
        let renew = stream.renew().await;
        let gap = last.elapsed();
        assert!(gap > s(2.6) && gap < s(3.4), "renewal {turn} after {gap:?}, not TTL/3 ± 10 %");
        assert!(renew.number > open.number && renew.sessions == [1]);
        stream.renewed(renew.number, &[1]).await;
        last = Instant::now();
    }
    assert!(opened.elapsed() > s(8.0) && guard.is_held());
    settle().await;
    assert!(guard.remaining() > s(8.8));

    let releasing = tokio::spawn(guard.release());
    let release = stream.release().await;
    assert_eq!((release.session, release.ticket, release.token), (1, 1, 5));
    stream.finished(1, 1).await;
    releasing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_gives_no_more_time_than_a_quick_one() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.renews = false;
    let renew = stream.renew().await;
    let queued = Instant::now();
    // TTL/9 is a second: just before the client would go elsewhere.
    tokio::time::sleep(s(0.9)).await;
    stream.renewed(renew.number, &[1]).await;
    settle().await;
    let allowed = s(9.0) - s(0.09);
    let left = guard.remaining();
    let want = allowed - queued.elapsed();
    assert!(left <= want && left > want - s(0.01), "{left:?} left, {want:?} allowed");
}

#[tokio::test(start_paused = true)]
async fn lost_fires_in_time_when_the_server_falls_silent() {
    let (net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.renews = false;
    // One answered renewal, then silence, also for every new connection.
    let renew = stream.renew().await;
    let queued = Instant::now();
    stream.renewed(renew.number, &[1]).await;
    let (lost, also_lost, token) = (guard.lost(), guard.lost(), guard.cancellation_token());
    net.set("a:1", State::Dark);
    let waiting = tokio::spawn(also_lost);
    assert_eq!(lost.await, LostReason::Expired);
    let after = queued.elapsed();
    assert!(after < s(9.0) && after > s(8.9), "lost after {after:?}");
    assert_eq!(waiting.await.unwrap(), LostReason::Expired);
    assert!(token.is_cancelled() && !guard.is_held());
    assert_eq!(guard.state(), GuardState::Lost(LostReason::Expired));
    assert_eq!(guard.lost().await, LostReason::Expired);
    // An answer to a renewal that was sent in time changes nothing after the deadline.
    stream.renewed(renew.number + 1, &[1]).await;
    stream.renewed(renew.number + 2, &[1]).await;
    settle().await;
    assert!(!guard.is_held());
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_lock_at_risk_is_held_and_recovers() {
    let (net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.renews = false;
    let unanswered = stream.renew().await;
    net.set("a:1", State::Down);
    tokio::time::sleep(s(1.1)).await;
    assert_eq!(guard.state(), GuardState::AtRisk);
    assert!(guard.is_held());
    net.set("a:1", State::Up);
    let mut next = node.stream().await;
    next.renews = false;
    // Applied, but its answer was lost: the resume tells it.
    next.resumed(unanswered.number, &[(1, 5)], &[]).await;
    settle().await;
    assert_eq!(guard.state(), GuardState::Held);
    assert!(guard.remaining() > s(6.0));
}

#[tokio::test(start_paused = true)]
async fn the_work_of_run_is_dropped_when_the_lock_is_lost() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = Arc::new(stream.grant(&client, "k", s(9.0), 5).await);
    assert_eq!(guard.run(async { 7 }).await.unwrap(), 7);
    let dropped = Arc::new(());
    let witness = dropped.clone();
    let running = {
        let guard = guard.clone();
        tokio::spawn(async move {
            guard
                .run(async move {
                    let _witness = witness;
                    std::future::pending::<()>().await
                })
                .await
        })
    };
    settle().await;
    stream.lost(1, Reason::Expired).await;
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost(LostReason::SessionEnded)), "{error}");
    assert_eq!(Arc::strong_count(&dropped), 1);
}

#[tokio::test(start_paused = true)]
async fn with_lock_can_be_spawned_and_releases() {
    let (_net, mut node, client) = pair().await;
    let running = tokio::spawn(async move {
        client
            .with_lock("k", async |guard| {
                tokio::task::yield_now().await;
                guard.token().get()
            })
            .await
    });
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    stream.granted(1, 1, 5).await;
    stream.release().await;
    stream.finished(1, 1).await;
    assert_eq!(running.await.unwrap().unwrap(), 5);
}

/// An application's own function.
async fn work_under(guard: &raftlock::LockGuard, what: &str) -> String {
    tokio::task::yield_now().await;
    format!("{what} under {}", guard.token())
}

#[tokio::test(start_paused = true)]
async fn with_lock_can_be_spawned_whatever_its_work_holds() {
    let (_net, mut node, client) = pair().await;
    let done = Arc::new(Mutex::new(Vec::new()));
    let working = {
        let (done, client, name) = (done.clone(), client.clone(), "k".to_owned());
        async move {
            let local = "work".to_owned();
            let work = async |guard: &raftlock::LockGuard| {
                let text = work_under(guard, &local).await;
                guard.run(tokio::task::yield_now()).await?;
                done.lock().unwrap().push(text);
                Ok::<_, Error>(())
            };
            client.with_lock(&name, work).await?
        }
    };
    let boxed: futures_util::future::BoxFuture<'static, Result<(), Error>> = Box::pin(working);
    let running = tokio::spawn(boxed);
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    stream.granted(1, 1, 5).await;
    stream.release().await;
    stream.finished(1, 1).await;
    running.await.unwrap().unwrap();
    assert_eq!(*done.lock().unwrap(), ["work under 5"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_loses_its_guards_and_is_never_used_again() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let waiting = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    assert_eq!(stream.acquire().await.ticket, 2);
    stream.queued(1, 2, 1).await;
    stream.lost(1, Reason::Expired).await;
    assert_eq!(guard.lost().await, LostReason::SessionEnded);
    // What waited goes on in a new session, under a new secret.
    stream.open(2).await;
    let again = stream.acquire().await;
    assert_eq!((again.session, again.ticket, again.names[0].as_str()), (2, 1, "l"));
    stream.granted(2, 1, 6).await;
    let second = waiting.await.unwrap().unwrap();
    // The cluster may still know the old one; the client does not.
    stream.renewed(1, &[1]).await;
    settle().await;
    assert!(!guard.is_held() && second.is_held());
    drop(guard);
    drop(second);
    let release = stream.release().await;
    assert_eq!((release.session, release.token), (2, 6));
}

#[tokio::test(start_paused = true)]
async fn a_lock_without_renewal_is_renewed_until_it_is_granted_and_once_more() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").ttl(s(9.0)).auto_renew(false).into_future());
    let mut stream = node.stream().await;
    stream.renews = false;
    stream.open(1).await;
    stream.acquire().await;
    stream.queued(1, 1, 1).await;
    for _ in 0..3 {
        let renew = stream.renew().await;
        stream.renewed(renew.number, &[1]).await;
    }
    tokio::time::sleep(s(2.0)).await;
    stream.granted(1, 1, 5).await;
    let guard = waiting.await.unwrap().unwrap();
    let renew = stream.renew().await;
    stream.renewed(renew.number, &[1]).await;
    settle().await;
    assert!(guard.remaining() > s(8.9), "the whole TTL from the grant on: {:?}", guard.remaining());

    // Its caller extends it, here to less; nobody else does.
    let extending = { guard.extend(s(5.0)) };
    let answering = async {
        let renew = stream.renew().await;
        assert_eq!(renew.ttl_ms, 5_000);
        stream.renewed(renew.number, &[1]).await;
    };
    let (extended, ()) = tokio::join!(extending, answering);
    extended.unwrap();
    assert!(guard.remaining() < s(5.0) && guard.remaining() > s(4.9));
    assert!(stream.is_quiet_for(s(4.9)).await);
    assert_eq!(guard.lost().await, LostReason::Expired);
}

#[tokio::test(start_paused = true)]
async fn an_own_session_ends_with_its_lock() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").auto_renew(false).into_future());
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    stream.granted(1, 1, 5).await;
    drop(waiting.await.unwrap().unwrap());
    stream.release().await;
    stream.finished(1, 1).await;
    assert_eq!(stream.close().await.session, 1);
}

#[tokio::test(start_paused = true)]
async fn extending_a_shared_lease_only_raises_it() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.renews = false;
    for (ttl, renewed_for) in [(s(5.0), 0), (s(30.0), 30_000), (s(10.0), 30_000)] {
        let answering = async {
            let renew = stream.renew().await;
            assert_eq!(renew.ttl_ms, renewed_for, "{ttl:?}");
            stream.renewed(renew.number, &[1]).await;
        };
        let (extended, ()) = tokio::join!(guard.extend(ttl), answering);
        extended.unwrap();
    }
    assert!(guard.remaining() > s(29.0));
    assert_eq!(guard.extend(s(0.5)).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_shared_by_ttl_and_closed_after_a_rest() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let first = stream.grant(&client, "k", s(9.0), 5).await;
    let second = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    let acquire = stream.acquire().await;
    assert_eq!((acquire.session, acquire.ticket, acquire.acked), (1, 2, 2));
    stream.granted(1, 2, 6).await;
    let third = tokio::spawn(client.lock("m").ttl(s(6.0)).into_future());
    stream.open(2).await;
    assert_eq!(stream.acquire().await.session, 2);
    stream.granted(2, 1, 7).await;
    drop((first, second.await.unwrap().unwrap()));
    for _ in 0..2 {
        let release = stream.release().await;
        stream.finished(1, release.ticket).await;
    }
    let rested = Instant::now();
    assert_eq!(stream.close().await.session, 1);
    assert!(rested.elapsed() >= s(9.0) && rested.elapsed() < s(10.0));
    stream.lost(1, Reason::Closed).await;
    assert!(third.await.unwrap().unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn watchers_of_a_released_guard_are_woken() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let (lost, token) = (guard.lost(), guard.cancellation_token());
    assert!(timeout(Duration::from_millis(10), guard.lost()).await.is_err());
    drop(guard);
    assert_eq!(lost.await, LostReason::Released);
    assert!(token.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_release_that_the_cluster_does_not_know_says_so() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let releasing = tokio::spawn(guard.release());
    stream.release().await;
    stream.outcome(1, 1, raftlock_proto::v1::ticket_outcome::Outcome::NotHolder(Default::default())).await;
    let error = releasing.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost(LostReason::NotHolder)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_guard_can_be_dropped_on_a_plain_thread_and_in_a_panic() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let first = stream.grant(&client, "k", s(9.0), 5).await;
    let second = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    stream.acquire().await;
    stream.granted(1, 2, 6).await;
    let second = second.await.unwrap().unwrap();
    std::thread::spawn(move || drop(first)).join().unwrap();
    assert_eq!(stream.release().await.token, 5);
    let panicked = std::thread::spawn(move || {
        let _second = second;
        std::panic::resume_unwind(Box::new("work failed"));
    });
    panicked.join().unwrap_err();
    assert_eq!(stream.release().await.token, 6);
}

/// One node, and a client on a machine that can be suspended: seconds that its boot-time clock counts and its timers
/// do not.
fn suspendable() -> (Node, Client, Arc<AtomicU64>) {
    let net = Net::default();
    let node = net.node("a:1");
    let slept = Arc::new(AtomicU64::new(0));
    let mut seams = net.seams().0;
    let (running, asleep) = (seams.clock.clone(), slept.clone());
    seams.clock = Arc::new(move || running() + Duration::from_secs(asleep.load(Ordering::Relaxed)));
    let client = Client::builder().endpoints("a:1").seams(seams).lazy().unwrap();
    (node, client, slept)
}

#[tokio::test(start_paused = true)]
async fn no_guard_is_handed_out_after_its_lease() {
    let (mut node, client, slept) = suspendable();
    let mut stream = node_stream(&mut node, &client).await;
    let mut waiting = client.lock("k").ttl(s(9.0)).into_future();
    assert!((&mut waiting).now_or_never().is_none());
    stream.open(1).await;
    stream.acquire().await;
    stream.granted(1, 1, 5).await;
    // The grant has come in time, but the caller fetches it only after the machine slept.
    settle().await;
    slept.store(10, Ordering::Relaxed);
    let error = waiting.await.unwrap_err();
    assert!(matches!(error, Error::Lost(LostReason::Expired)), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn a_ttl_that_the_cluster_refuses_fails_the_extend_alone() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.renews = false;
    let answering = async {
        let renew = stream.renew().await;
        assert_eq!(renew.ttl_ms, 3_600_000);
        let error = v1::OpError { reason: "INVALID_ARGUMENT".into(), ..Default::default() };
        let refused = v1::SessionError { key: 0, session: 1, error: Some(error) };
        stream.send(v1::session_event::Event::Error(refused)).await;
        let renew = stream.renew().await;
        assert_eq!(renew.ttl_ms, 9_000, "on with the one before");
        stream.renewed(renew.number, &[1]).await;
    };
    let (extended, ()) = tokio::join!(guard.extend(s(3_600.0)), answering);
    assert_eq!(extended.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert!(guard.is_held() && guard.remaining() > s(8.8));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_outlasts_a_suspension_is_renewed_right_after_it() {
    let (mut node, client, slept) = suspendable();
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(30.0), 5).await;
    stream.renews = false;
    slept.store(25, Ordering::Relaxed);
    let woken = Instant::now();
    let renew = stream.renew().await;
    assert!(woken.elapsed() <= s(1.0), "{:?}", woken.elapsed());
    stream.renewed(renew.number, &[1]).await;
    settle().await;
    assert!(guard.remaining() > s(29.0));
    assert!(stream.is_quiet_for(s(8.0)).await, "once is enough");
}

#[tokio::test(start_paused = true)]
async fn watchers_are_woken_after_a_suspension_without_asking_again() {
    let (mut node, client, slept) = suspendable();
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(600.0), 5).await;
    let lost = tokio::spawn(guard.lost());
    settle().await;
    slept.store(700, Ordering::Relaxed);
    let woken = Instant::now();
    assert_eq!(lost.await.unwrap(), LostReason::Expired);
    assert!(woken.elapsed() <= s(1.0), "{:?}", woken.elapsed());
}
