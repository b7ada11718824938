//! The commands of a client, against a real server: what they answer, and with which exit code.

#![allow(clippy::disallowed_methods, reason = "tests measure how long things take")]

mod cli_support;

use std::time::Instant;

use cli_support::{Server, dead_endpoint, finish, raftlock};

#[test]
fn a_lock_is_taken_refused_renewed_and_released() {
    let server = Server::start();
    let taken = server.run(["lock", "job-123"]).exits(0);
    assert!(taken.stdout.starts_with("Lock acquired: job-123 by cli-client, token "), "{taken:?}");

    let again = server.run(["lock", "job-123"]).exits(75);
    again.complains(&["held by cli-client for 29.", "raftlock renew job-123"]);
    let other =
        server.run(["--id", "b", "lock", "job-123"]).exits(75).complains(&["held by cli-client for 29."]);
    assert!(!other.stderr.contains("renew"), "only a holder can renew: {other:?}");

    server.run(["renew", "job-123", "--ttl", "1m"]).exits(0);
    server.run(["renew", "job-123", "--id", "b"]).exits(75).complains(&["held by cli-client"]);
    let held = server.run(["get", "job-123", "--json"]).exits(0).json();
    assert_eq!(held["holders"][0]["owner"], "cli-client");
    assert!(held["holders"][0]["remaining_ms"].as_i64() > Some(50_000), "{held}");

    assert!(server.run(["unlock", "job-123"]).exits(0).stdout.contains("Lock released"));
    server.run(["unlock", "job-123"]).exits(75).complains(&["Lock not held by you"]);
    assert_eq!(server.run(["get", "job-123"]).exits(0).stdout, "job-123 is free\n");
}

#[test]
fn flags_stand_before_or_after_the_command_and_the_lock() {
    let server = Server::start();
    let (host, port) = server.address.rsplit_once(':').expect("host and port");
    finish(raftlock(["--host", host, "--port", port, "lock", "a"])).exits(0);
    finish(raftlock(["lock", "--ttl", "60", "b", "--port", port])).exits(0);
    finish(raftlock(["lock", "c", "--ttl", "60", "--endpoints", &format!("http://{}", server.address)]))
        .exits(0);
    // What is said wins over the environment.
    let mut said = server.command(["--port", port, "get", "a", "--json"]);
    said.env("RAFTLOCK_ENDPOINTS", dead_endpoint());
    assert_eq!(finish(said).exits(0).json()["holder_count"], 1);
}

#[test]
fn a_token_names_one_of_several_grants() {
    let server = Server::start();
    let take = || server.run(["lock", "pool", "--permits", "1/2", "--json"]).exits(0).json();
    let (first, second) = (take()["fencing_token"].to_string(), take()["fencing_token"].to_string());
    server.run(["lock", "pool", "--permits", "1/2"]).exits(75);
    server.run(["unlock", "pool"]).exits(2).complains(&["--token"]);
    server.run(["unlock", "pool", "--token", &first]).exits(0);
    server.run(["renew", "pool", "--token", &first]).exits(75);
    server.run(["renew", "pool", "--token", &second]).exits(0);
}

#[test]
fn shared_holders_and_metadata_are_shown() {
    let server = Server::start();
    server.run(["lock", "r", "--shared", "--metadata", "host=a1", "--metadata", "why=x=y"]).exits(0);
    server.run(["lock", "r", "--shared", "--id", "b"]).exits(0);
    server.run(["lock", "r", "--id", "c"]).exits(75).complains(&["and 1 more"]);
    let shown = server.run(["get", "r"]).exits(0).stdout;
    for text in ["held by 2", "cli-client", "shared", "host=a1 why=x=y"] {
        assert!(shown.contains(text), "{shown}");
    }
}

#[test]
fn a_wait_ends_in_time_and_is_granted_in_time() {
    let server = Server::start();
    server.run(["lock", "k", "--id", "a", "--ttl", "1s"]).exits(0);
    let start = Instant::now();
    server.run(["lock", "k", "--wait", "300ms"]).exits(75);
    assert!(start.elapsed().as_millis() >= 300);
    server.run(["lock", "k", "--wait", "8s"]).exits(0);
}

#[test]
fn lists_are_complete_and_filtered() {
    let server = Server::start();
    assert_eq!(server.run(["list", "--json"]).exits(0).stdout, "[]\n");
    for name in ["a:1", "a:2", "b:1"] {
        server.run(["lock", name]).exits(0);
    }
    let names = |prefix: &str| -> Vec<String> {
        let list = server.run(["list", prefix, "--json"]).exits(0).json();
        let locks = list.as_array().expect("an array").iter();
        locks.map(|lock| lock["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(""), ["a:1", "a:2", "b:1"]);
    assert_eq!(names("a:"), ["a:1", "a:2"]);
    assert!(server.run(["list"]).exits(0).stdout.starts_with("NAME"));
}

#[test]
fn status_members_and_health_tell_of_the_node() {
    let server = Server::with(|serve| {
        serve.args(["--node-name", "n1"]);
    });
    let status = server.run(["status", "--json"]).exits(0).json();
    assert_eq!(status[0]["node"]["name"], "n1");
    assert_eq!(status[0]["node"]["role"], "leader");
    assert!(server.run(["status"]).exits(0).stdout.contains("n1"));
    let members = server.run(["members", "--json"]).exits(0).json();
    assert_eq!((&members[0]["name"], &members[0]["leader"]), (&"n1".into(), &true.into()));
    assert!(server.run(["health"]).exits(0).stdout.contains("the leader is n1"));

    let both = format!("{},{}", server.address, dead_endpoint());
    finish(raftlock(["health", "--endpoints", &both])).exits(69).complains(&["does not answer"]);
    finish(raftlock(["status", "--endpoints", &both])).exits(0);
    finish(raftlock(["members", "--endpoints", &dead_endpoint()])).exits(69);
}

#[test]
fn every_flag_can_be_set_by_the_environment() {
    let server = Server::start();
    let with = |arguments: &[&str], name: &str, value: &str| {
        let mut command = server.command(arguments);
        command.env(name, value);
        finish(command)
    };
    with(&["lock", "a"], "RAFTLOCK_ID", "me").exits(0);
    assert_eq!(with(&["get", "a"], "RAFTLOCK_JSON", "1").exits(0).json()["holders"][0]["owner"], "me");
    with(&["unlock", "a", "--id", "me"], "RAFTLOCK_TOKEN", "1").exits(75);
    // In a Kubernetes namespace with a service named raftlock, every container has this one.
    with(&["get", "a"], "RAFTLOCK_PORT", "tcp://10.0.0.1:50051").exits(0);
}

#[test]
fn a_dead_endpoint_is_passed_over() {
    let server = Server::start();
    let endpoints = format!("{},{}", dead_endpoint(), server.address);
    finish(raftlock(["--endpoints", &endpoints, "lock", "a"])).exits(0);
    finish(raftlock(["--endpoints", &endpoints, "unlock", "a"])).exits(0);
}

#[test]
fn without_any_server_it_is_69_and_nothing_was_done() {
    let dead = dead_endpoint();
    let lock = finish(raftlock(["lock", "a", "--endpoints", &dead])).exits(69);
    lock.complains(&[&dead, "Connection refused", "nothing was done"]);
}

#[test]
fn an_unlock_without_an_answer_is_unknown() {
    let mut server = Server::start();
    server.run(["lock", "a"]).exits(0);
    server.node.signal(libc::SIGSTOP);
    server.run(["unlock", "a"]).exits(1).complains(&["unknown", "may have been released"]);
    server.node.signal(libc::SIGCONT);
    server.node.signal(libc::SIGTERM);
    assert!(server.node.wait().success());
}

#[test]
fn a_wrong_command_line_is_2() {
    let wrong: [&[&str]; 12] = [
        &[],
        &["lock"],
        &["lock", "a", "--ttl", "soon"],
        &["lock", "a", "--ttl", "-1"],
        &["lock", "a", "--permits", "3/2"],
        &["lock", "a", "--permits", "1/2", "--shared"],
        &["lock", "a", "--metadata", "x"],
        &["lock", "a", "--port", "0"],
        &["lock", "a", "--endpoints", "nowhere"],
        &["lock", "a", "--endpoints", "a:1", "--host", "b"],
        &["run", "a"],
        &["dance"],
    ];
    for arguments in wrong {
        finish(raftlock(arguments)).exits(2);
    }
    let server = Server::start();
    server.run(["lock", ""]).exits(2).complains(&["must not be empty"]);
    server.run(["lock", "a\nb"]).exits(2);
    server.run(["lock", "a", "--ttl", "500ms"]).exits(2).complains(&["at least 1 second"]);
    server.run(["lock", "a", "--wait", "11m"]).exits(2);
}

#[test]
fn help_and_completions_are_printed() {
    assert!(finish(raftlock(["help"])).exits(0).stdout.contains("unlock"));
    assert!(finish(raftlock(["help", "lock"])).exits(0).stdout.contains("--ttl"));
    assert!(finish(raftlock(["--version"])).exits(0).stdout.starts_with("raftlock "));
    assert!(finish(raftlock(["completions", "bash"])).exits(0).stdout.contains("raftlock"));
}
