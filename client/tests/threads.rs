//! With the keeper on its own thread and real time: what the application's runtime does, or fails to do, costs no
//! lock. The server runs on a thread of its own.

mod support;

use std::time::{Duration, Instant};

use raftlock::Client;
use support::table::Table;
use support::*;

fn cluster() -> (Net, Table, Client) {
    let (net, table) = (Net::default(), Table::default());
    table.serve(&net, "a:1");
    let client = Client::builder().endpoints("a:1").seams(net.threaded_seams()).lazy().unwrap();
    (net, table, client)
}

fn app() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Looks until it is so; the test's own limit of patience is far above what it takes.
#[allow(clippy::disallowed_methods, reason = "a test's patience, not the code's clock")]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_blocked_application_keeps_its_lock() {
    let (_net, table, client) = cluster();
    app().block_on(async {
        let guard = client.lock("k").ttl(s(1.0)).await.unwrap();
        let before = table.renewals();
        // The one thread of the application's runtime is blocked for three TTLs.
        std::thread::sleep(s(3.0));
        assert!(guard.is_held());
        assert!(table.renewals() >= before + 6, "{} renewals", table.renewals() - before);
        guard.release().await.unwrap();
        client.close().await;
    });
    assert!(table.is_free("k"));
}

#[test]
fn a_guard_outlives_its_runtime_and_releases_without_one() {
    let (_net, table, client) = cluster();
    let runtime = app();
    let guard = runtime.block_on(client.lock("k").into_future()).unwrap();
    drop(runtime);
    assert!(guard.is_held());
    drop(guard);
    wait_until("the lock is free", || table.is_free("k"));
}

#[test]
fn a_panic_releases_the_lock() {
    let (_net, table, client) = cluster();
    let working = {
        let client = client.clone();
        std::thread::spawn(move || {
            app()
                .block_on(client.with_lock("k", async |_| std::panic::resume_unwind(Box::new("work failed"))))
        })
    };
    assert!(working.join().is_err());
    wait_until("the lock is free", || table.is_free("k"));
}

#[test]
fn a_task_that_is_dropped_with_its_runtime_leaves_the_queue() {
    let (_net, table, client) = cluster();
    let first = app().block_on(client.lock("k").into_future()).unwrap();
    let runtime = app();
    let waiting = runtime.spawn(client.lock("k").into_future());
    runtime.block_on(async {
        assert!(tokio::time::timeout(s(0.05), client.lock("k").into_future()).await.is_err())
    });
    drop((waiting, runtime));
    drop(first);
    wait_until("nobody is granted the lock for good", || table.is_free("k"));
}

#[test]
fn dropping_everything_closes_the_session() {
    let (_net, table, client) = cluster();
    let guard = app().block_on(client.lock("k").into_future()).unwrap();
    drop((client, guard));
    wait_until("the session is closed", || table.closed() == 1);
    assert!(table.is_free("k"));
}

#[test]
fn no_runtime_is_needed_to_call() {
    let (_net, _table, client) = cluster();
    let guard = block_on(client.lock("k").into_future()).unwrap();
    block_on(guard.release()).unwrap();
    block_on(client.close());
}

/// An executor that has nothing to do with tokio: it parks the thread until it is woken.
fn block_on<F: std::future::Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

/// The child has copies of client and guard but no keeper: it must not believe that it holds anything.
#[test]
fn a_forked_child_holds_nothing_and_may_ask_nothing() {
    let (_net, table, client) = cluster();
    let guard = app().block_on(client.lock("k").into_future()).unwrap();
    // SAFETY: the child runs only what follows, and leaves by `_exit` without unwinding or destructors.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let asked = block_on(client.lock("l").into_future());
        let is_right =
            !guard.is_held() && asked.is_err_and(|error| error.kind() == raftlock::ErrorKind::Forked);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if is_right { 0 } else { 1 }) }
    }
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child held or asked");
    assert!(guard.is_held() && !table.is_free("k"));
}

#[test]
fn what_callers_hold_can_go_to_any_thread() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Client>();
    check::<raftlock::LockGuard>();
    check::<raftlock::LockBuilder>();
    check::<raftlock::Error>();
}
