//! The commands of a client on every node of a cluster of processes: each gives the same answers, whoever leads.

mod cli_support;
mod support;

use std::time::Duration;

use cli_support::{Done, finish, raftlock};
use serde_json::Value;
use support::Processes;

/// One node, and a way to name it.
struct At<'a> {
    flags: &'a [&'a str],
}

impl At<'_> {
    /// The command with the node's flags before it, which is where the seed has them.
    fn run(&self, arguments: &[&str]) -> Done {
        finish(raftlock(self.flags.iter().chain(arguments)))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["--json"]].concat()).exits(0).json()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_has_the_same_answers_on_every_node() {
    let processes = Processes::start(3, &[]).await;
    let leader = processes.nodes[processes.leader().await].name.clone();
    let mut tokens = Vec::new();
    for node in &processes.nodes {
        let (host, port) = node.listen.rsplit_once(':').expect("host and port");
        for flags in [&["--host", host, "--port", port][..], &["--endpoints", &node.listen]] {
            let at = At { flags };
            tokens.push(the_life_of_a_lock(&at));
            what_the_node_says(&at, &node.name, &leader);
        }
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "tokens rise over all nodes: {tokens:?}");
}

/// Taken, refused to all others and to whoever types it twice, seen, renewed, released. Answers with its token.
fn the_life_of_a_lock(at: &At<'_>) -> u64 {
    let taken = at.run(&["lock", "job", "--ttl", "60"]).exits(0).stdout;
    let token = taken.strip_prefix("Lock acquired: job by cli-client, token ").expect("the seed's answer");
    let token = token.strip_suffix(", for 1m\n").expect("the lease that was asked for").to_owned();

    let twice = at.run(&["lock", "job"]).exits(75).complains(&["raftlock renew job"]);
    says_who_has_it(&twice, &token);
    says_who_has_it(&at.run(&["lock", "job", "--id", "b"]).exits(75), &token);
    at.run(&["unlock", "job", "--id", "b"]).exits(75).complains(&["not held by you"]);
    at.run(&["renew", "job", "--id", "b"]).exits(75).complains(&["held by cli-client"]);

    at.run(&["renew", "job", "--ttl", "1h"]).exits(0);
    let seen = at.json(&["get", "job"]);
    let holder = &seen["holders"][0];
    assert_eq!((&seen["holder_count"], &holder["owner"]), (&1.into(), &"cli-client".into()), "{seen}");
    assert_eq!(holder["fencing_token"].to_string(), token);
    assert!(holder["remaining_ms"].as_u64() > Some(3_500_000), "{seen}");
    let listed = at.json(&["list"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!((&listed[0]["name"], &listed[0]["owner"]), (&"job".into(), &"cli-client".into()));

    let released = at.run(&["unlock", "job", "--token", &token]).exits(0);
    assert_eq!(released.stdout, "Lock released: job\n");
    at.run(&["unlock", "job"]).exits(75);
    assert_eq!(at.run(&["get", "job"]).exits(0).stdout, "job is free\n");
    token.parse().expect("a number")
}

/// A refusal names the holder, its token, and what is left of its lease.
fn says_who_has_it(refused: &Done, token: &str) {
    let said = refused.stderr.lines().next().unwrap_or_default();
    let left = said.strip_prefix("error: Lock not acquired: job is held by cli-client for ");
    let left = left.and_then(|left| left.strip_suffix(&format!(" more (token {token})")));
    let left = humantime::parse_duration(left.expect(said)).expect(said);
    assert!(Duration::ZERO < left && left <= Duration::from_secs(60), "{said}");
}

fn what_the_node_says(at: &At<'_>, name: &str, leader: &str) {
    let status = at.json(&["status"]);
    let role = if name == leader { "leader" } else { "follower" };
    assert_eq!((&status[0]["node"]["name"], &status[0]["node"]["role"]), (&name.into(), &role.into()));
    assert_eq!((&status[0]["ready"], &status[0]["leader_name"]), (&true.into(), &leader.into()));
    let members = at.json(&["members"]);
    let of = |field: &str| -> Vec<&Value> {
        members.as_array().expect("an array").iter().map(|member| &member[field]).collect()
    };
    assert_eq!(of("name"), ["n1", "n2", "n3"]);
    assert_eq!(of("role"), ["voter"; 3]);
    assert_eq!(of("leader"), ["n1", "n2", "n3"].map(|name| name == leader));
    let health = at.run(&["health"]).exits(0).stdout;
    assert!(health.ends_with(&format!(" serves; the leader is {leader}\n")), "{health}");
}

/// `raftlock` for `go run cmd/client/main.go`, and two dashes for one. That these flags are `localhost` and 50051 when
/// they are left out, a test of `cli/target.rs` shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seeds_examples_work_on_every_node() {
    let processes = Processes::start(3, &[]).await;
    for node in &processes.nodes {
        let (host, port) = node.listen.rsplit_once(':').expect("host and port");
        let seeds = |line: &str| {
            let mut command = raftlock(line.split(' ').skip(1));
            command.env("RAFTLOCK_HOST", host).env("RAFTLOCK_PORT", port);
            finish(command).exits(0).stdout
        };
        assert!(seeds("raftlock lock my-resource").starts_with("Lock acquired: my-resource by cli-client"));
        assert_eq!(seeds("raftlock unlock my-resource"), "Lock released: my-resource\n");
        assert!(seeds("raftlock lock my-resource --ttl 60").ends_with(", for 1m\n"));
        seeds("raftlock unlock my-resource");
        let elsewhere = [
            format!("raftlock --host {host} --port {port} lock my-resource"),
            format!("raftlock lock --host {host} my-resource --port {port}"),
        ];
        for line in elsewhere {
            let mut command = raftlock(line.split(' ').skip(1));
            // What is said wins over the environment.
            command.env("RAFTLOCK_ENDPOINTS", cli_support::dead_endpoint());
            assert!(finish(command).exits(0).stdout.starts_with("Lock acquired"), "{line}");
            seeds("raftlock unlock my-resource");
        }
    }
    let nowhere = ["--host", "example.invalid", "--port", "8080", "lock", "my-resource"];
    finish(raftlock(nowhere)).exits(69).complains(&["example.invalid:8080", "nothing was done"]);
}
