//! `raftlock serve` as an operator meets it: settings, signals, refusals.

mod cli_support;

use std::fs;

use cli_support::{Running, Server, finish, raftlock, serve};

#[test]
fn a_wrong_setting_is_named_and_nothing_starts() {
    let data = tempfile::tempdir().expect("a folder");
    let path = data.path().join("data");
    for (flag, value) in [
        ("--voters", "2"),
        ("--listen", "nowhere"),
        ("--peer-advertise", "host:0"),
        ("--election-min", "100ms"),
        ("--election-max", "1ms"),
        ("--default-ttl", "10ms"),
        ("--bootstrap-expect", "0"),
        ("--token-floor", "9223372036854775808"),
    ] {
        let mut command = raftlock(["serve", flag, value, "--data-dir"]);
        command.arg(&path);
        finish(command).exits(2).complains(&[flag]);
    }
    for (flag, value) in [("--heartbeat", "soon"), ("--ballast", "64 stones"), ("--log-format", "verse")] {
        finish(raftlock(["serve", flag, value])).exits(2).complains(&[flag]);
    }
    assert!(!path.exists());
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("raftlock.toml");
    fs::write(&file, "node-name = 'file'\ncluster-name = 'file'\ndefault-ttl = '12s'\nseeds = []\n")
        .expect("written");
    let server = Server::with(|serve| {
        serve.arg("--config").arg(&file).args(["--node-name", "flag"]);
        serve
            .env("RAFTLOCK_NODE_NAME", "env")
            .env("RAFTLOCK_CLUSTER_NAME", "env")
            .env("RAFTLOCK_VOTERS", "1");
    });
    let status = server.run(["status", "--json"]).exits(0).json();
    assert_eq!((&status[0]["node"]["name"], &status[0]["cluster_name"]), (&"flag".into(), &"env".into()));
    let lock = server.run(["lock", "a", "--json"]).exits(0).json();
    assert_eq!(lock["remaining_ms"], 12_000);
}

#[test]
fn node_id_and_cluster_nodes_are_understood_below_ours() {
    let port = cli_support::dead_endpoint();
    let server = Server::with(|serve| {
        serve.env("NODE_ID", "7").env("CLUSTER_NODES", "").args(["--cluster-name", "compose"]);
    });
    let status = server.run(["status", "--json"]).exits(0).json();
    assert_eq!(status[0]["node"]["name"], "node7");

    let told = |name: &str, value: &str| {
        let data = tempfile::tempdir().expect("a folder");
        let mut command = serve(data.path());
        command.env(name, value);
        finish(command).exits(2).complains(&[name, value]);
    };
    told("NODE_ID", "first");
    told("CLUSTER_NODES", "node1");
    // A value that is not asked for is not held against anybody.
    let server = Server::with(|serve| {
        serve.env("NODE_ID", "first").env("CLUSTER_NODES", "node1").env("RAFTLOCK_NODE_NAME", "ours");
        serve.env("RAFTLOCK_SEEDS", &port).args(["--peer-listen", &port]);
    });
    let status = server.run(["status", "--json"]).exits(0).json();
    assert_eq!(status[0]["node"]["name"], "ours");
}

#[test]
fn a_wrong_file_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("raftlock.toml");
    let told = |text: &str| {
        fs::write(&file, text).expect("written");
        finish({
            let mut command = raftlock(["serve", "--config"]);
            command.arg(&file);
            command
        })
        .exits(2)
    };
    told("data_dir = 'x'").complains(&["raftlock.toml", "data_dir"]);
    told("heartbeat = 'soon'").complains(&["raftlock.toml", "heartbeat"]);
    told("voters = 4").complains(&["--voters"]);
    finish(raftlock(["serve", "--config", "/nonexistent.toml"])).exits(2).complains(&["/nonexistent.toml"]);
}

#[test]
fn a_signal_ends_it_in_order_and_its_data_outlives_it() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut server = Server::start();
        let token =
            server.run(["lock", "a", "--ttl", "1h", "--json"]).exits(0).json()["fencing_token"].clone();
        server.node.signal(signal);
        assert_eq!(server.node.wait().code(), Some(0));
        assert!(server.node.rest().contains("node stopped"));

        let again = Server::with(|serve| {
            serve.arg("--data-dir").arg(server.data.path());
        });
        let held = again.run(["get", "a", "--json"]).exits(0).json();
        assert_eq!(held["holders"][0]["fencing_token"], token);
    }
}

#[test]
fn a_data_folder_in_use_is_refused() {
    let server = Server::start();
    finish(serve(server.data.path())).exits(1).complains(&["error:", "in use by another process"]);
    server.run(["health"]).exits(0);
}

#[test]
fn a_disk_that_does_not_hold_what_it_was_given_is_74() {
    let mut server = Server::start();
    server.run(["lock", "a"]).exits(0);
    server.node.signal(libc::SIGTERM);
    assert!(server.node.wait().success());
    let file = rusqlite::Connection::open(server.data.path().join("raft.db")).expect("a SQLite file");
    let damage = "UPDATE log SET data = zeroblob(length(data)) WHERE idx = (SELECT max(idx) FROM log)";
    assert_eq!(file.execute(damage, ()).expect("written"), 1);
    drop(file);
    finish(serve(server.data.path())).exits(74).complains(&["raft.db", "replace"]);
}

#[test]
fn what_cannot_be_listened_on_or_written_to_is_named() {
    let server = Server::start();
    let data = tempfile::tempdir().expect("a folder");
    let mut taken = serve(data.path());
    taken.args(["--listen", &server.address]);
    finish(taken).exits(1).complains(&["cannot listen on", &server.address]);
    let file = data.path().join("file");
    fs::write(&file, "").expect("written");
    finish(serve(&file)).exits(1).complains(&[&*file.to_string_lossy()]);
}

#[test]
fn a_node_that_waits_for_others_is_ended_by_a_signal_too() {
    let data = tempfile::tempdir().expect("a folder");
    let mut command = serve(data.path());
    command.args(["--seeds", "127.0.0.1:1"]);
    let mut node = Running::start(command);
    let address = node.line(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line.get("listen")?.as_str()?.to_owned())
    });
    finish(raftlock(["health", "--endpoints", &address])).exits(69).complains(&["does not serve"]);
    finish(raftlock(["lock", "a", "--endpoints", &address])).exits(69).complains(&["nothing was done"]);
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait().code(), Some(0));
}
