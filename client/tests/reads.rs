//! Looking locks up.

mod support;

use raftlock::{ErrorKind, Mode};
use raftlock_proto::v1;
use support::*;
use tokio::time::Instant;
use tonic::Status;

#[tokio::test(start_paused = true)]
async fn a_lock_is_shown_with_holders_and_queue() {
    let (_net, node, client) = pair().await;
    let answer = v1::GetLockResponse {
        resource_id: "k".into(),
        holders: vec![v1::LockHolder {
            owner: "b".into(),
            fencing_token: 5,
            remaining_ms: 1_500,
            mode: v1::Mode::Permits.into(),
            permits: 2,
            capacity: 3,
            metadata: [("job".to_owned(), "7".to_owned())].into(),
        }],
        waiters: vec![v1::LockWaiter {
            owner: "c".into(),
            place: 1,
            waiting_ms: 250,
            mode: v1::Mode::Shared.into(),
        }],
        holder_count: 1,
        queue_length: 1,
    };
    node.answers.lock().unwrap().locks.push_back(Ok(answer));
    let info = client.get("k").await.unwrap();
    assert_eq!((info.name.as_str(), info.is_free()), ("k", false));
    let holder = &info.holders[0];
    assert_eq!((holder.owner.as_str(), holder.token.get(), holder.remaining), ("b", 5, s(1.5)));
    assert_eq!(
        (holder.mode, holder.metadata["job"].as_str()),
        (Mode::Permits { permits: 2, capacity: 3 }, "7")
    );
    let waiter = &info.waiters[0];
    assert_eq!((waiter.owner.as_str(), waiter.place, waiter.waiting), ("c", 1, s(0.25)));
    assert!(client.get("free").await.unwrap().is_free());
}

#[tokio::test(start_paused = true)]
async fn a_listing_gathers_all_pages() {
    let (_net, node, client) = pair().await;
    for (name, next) in [("a", "t1"), ("b", "t2"), ("c", "")] {
        let lock = v1::LockSummary {
            resource_id: name.into(),
            owner: "x".into(),
            fencing_token: 1,
            ..Default::default()
        };
        let page = v1::ListLocksResponse { locks: vec![lock], next_page_token: next.into() };
        node.answers.lock().unwrap().pages.push_back(Ok(page));
    }
    let names: Vec<String> = client.list("").await.unwrap().into_iter().map(|lock| lock.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let page = client.list_page("", None, 10).await.unwrap();
    assert!(page.locks.is_empty() && page.next.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_read_is_asked_again_elsewhere_and_a_refusal_is_told() {
    let net = Net::default();
    let (a, b) = (net.node("a:1"), net.node("b:1"));
    for node in [&a, &b] {
        node.answers.lock().unwrap().locks.push_back(Err(Status::unavailable("no leader")));
    }
    let client = net.client("a:1,b:1");
    let started = Instant::now();
    assert!(client.get("k").await.unwrap().is_free());
    assert!(started.elapsed() < s(2.0));
    assert!(a.has_stream() && b.has_stream(), "both were asked");
    for node in [&a, &b] {
        node.answers.lock().unwrap().locks.push_back(Err(Status::invalid_argument("name too odd")));
    }
    let error = client.get("k").await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidArgument, "name too odd"));
}
