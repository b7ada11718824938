"""The image alone, then the three nodes of docker-compose.yml: locks on each port, a leader killed, a leader cut off, a
rolling restart, and everything stopped and started again. Called by deploy/check-docker.

Each step prints one line with the time that it took. Waiting is always for a thing, at most PATIENCE seconds.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROJECT = "raftlock-check"
SINGLE = "raftlock-check-single"
NODES = ["raftlock_node1", "raftlock_node2", "raftlock_node3"]
PORTS = {"raftlock_node1": 5001, "raftlock_node2": 5002, "raftlock_node3": 5003}
ALL = ",".join(f"http://localhost:{port}" for port in PORTS.values())

# For anything that should take far less, on a machine that may be busy.
PATIENCE = 60
# A release build takes some minutes, and many more on a machine that also does other things.
BUILD_PATIENCE = 2400
# Of the image above its base: a binary and one user.
OWN_MB_MAX = 60
# Docker's own limit, after which it kills.
STOP_LIMIT = 10


class Wrong(Exception):
    """What did not hold, in words."""


def run(*command, codes=(0,), limit=PATIENCE):
    """The command's stdout. Raises unless it ends with one of `codes`."""
    done = outcome(*command, limit=limit)
    if done.returncode not in codes:
        raise Wrong(f"{' '.join(command)} exited with {done.returncode}: {(done.stderr or done.stdout)[-4000:].strip()}")
    return done.stdout


def outcome(*command, limit=PATIENCE):
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, env=environment()
        )
    except subprocess.TimeoutExpired:
        raise Wrong(f"{' '.join(command)} did not end within {limit} s") from None


def environment():
    # What the machine's owner set for a cluster of theirs is not meant for this one.
    return {name: value for name, value in os.environ.items() if not name.startswith("RAFTLOCK_")}


def compose(*arguments, limit=PATIENCE):
    return run("docker-compose", "-p", PROJECT, *arguments, limit=limit)


def until(what, look):
    """Looks until it finds something true, and returns it."""
    end = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise Wrong(f"not within {PATIENCE} s: {what}")
        time.sleep(0.1)


def check(holds, what):
    if not holds:
        raise Wrong(what)


def health_of(container):
    """healthy, unhealthy or starting. Raises if the container has ended."""
    state = json.loads(run("docker", "inspect", "--format", "{{json .State}}", container))
    check(state["Running"], f"{container} has ended with {state['ExitCode']}: {logs_of(container)[-2000:].strip()}")
    return state["Health"]["Status"]


def until_healthy(container):
    until(f"{container} is healthy", lambda: health_of(container) == "healthy")


def logs_of(container):
    done = outcome("docker", "logs", container)
    return done.stdout + done.stderr


class Cli:
    """The binary out of the image, run on the host as a user would."""

    def __init__(self, path):
        self.path = path

    def __call__(self, *arguments, endpoints, codes=(0,)):
        return run(self.path, "--endpoints", endpoints, *arguments, codes=codes)

    def json(self, *arguments, endpoints, codes=(0,)):
        return json.loads(self(*arguments, "--json", endpoints=endpoints, codes=codes))

    def lock(self, name, endpoints, owner="check", ttl="1h"):
        answer = self.json("lock", name, "--ttl", ttl, "--id", owner, endpoints=endpoints)
        check(answer["success"], f"lock {name}: {answer}")
        return answer["fencing_token"]

    def holder(self, name, endpoints):
        """(owner, token), or None for a free lock."""
        holders = self.json("get", name, endpoints=endpoints)["holders"]
        check(len(holders) <= 1, f"{name} has {len(holders)} holders")
        return (holders[0]["owner"], holders[0]["fencing_token"]) if holders else None

    def seen_by(self, containers, name, expected):
        """Each of these nodes names the same holder."""
        for container in containers:
            found = self.holder(name, endpoint(container))
            check(found == expected, f"{container} says that {found} has {name}, not {expected}")

    def leader(self, containers):
        """The container among these that all of them agree on as the leader, once they do."""

        def agreed():
            said = self.json("status", endpoints=",".join(map(endpoint, containers)), codes=(0, 69))
            leaders = {status.get("leader_name") for status in said if status.get("ready")}
            ready = all(status.get("ready") for status in said)
            leader = f"raftlock_{leaders.pop()}" if ready and len(leaders) == 1 else None
            return leader in containers and leader

        return until(f"{', '.join(containers)} agree on a leader among them", agreed)


class Loop(threading.Thread):
    """A client that takes, looks at and gives back one lock after the other, told all three nodes."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.stopping = threading.Event()
        self.commands = 0
        self.failures = []
        self.unknown = []

    def run(self):
        turn = 0
        while not self.stopping.is_set():
            turn += 1
            try:
                self.turn(f"loop-{turn}")
            except (Wrong, ValueError, KeyError, IndexError) as error:
                self.failures.append(str(error))

    def turn(self, name):
        token = json.loads(self.done("lock", name, "--ttl", "30s", "--json"))["fencing_token"]
        seen = json.loads(self.done("get", name, "--json"))["holders"][0]["fencing_token"]
        check(seen == token, f"{name} has token {seen}, not {token}")
        self.unlock(name, token)
        self.done("run", name, "--", "true")

    def unlock(self, name, token):
        """No unlock is repeated by itself when its answer was lost; repeated with its token it is harmless."""
        command = [self.path, "--endpoints", ALL, "unlock", name, "--token", str(token)]
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            ended = outcome(*command)
            self.commands += 1
            # 75 after a lost answer: it had happened.
            if ended.returncode == 0 or (ended.returncode == 75 and name in self.unknown):
                return
            if "outcome is unknown" not in ended.stderr:
                raise Wrong(f"unlock {name} ({ended.returncode}): {ended.stderr.strip()}")
            self.unknown.append(name)
        raise Wrong(f"unlock {name}: no answer within {PATIENCE} s")

    def done(self, *command):
        self.commands += 1
        return run(self.path, "--endpoints", ALL, *command)


def endpoint(container):
    return f"http://localhost:{PORTS[container]}"


class Check:
    def __init__(self, folder):
        self.cli = Cli(os.path.join(folder, "raftlock"))
        # Every token that was given out, in order.
        self.tokens = []
        # What is held to the end: name -> (owner, token).
        self.kept = {}
        self.steps = 0

    def step(self, name, does):
        began = time.monotonic()
        said = does()
        self.steps += 1
        print(f"check-docker: {time.monotonic() - began:6.1f} s  {name}: {said}", flush=True)

    def take(self, name, endpoints, owner="check"):
        """A lock of an hour, which must still be held at the end."""
        token = self.cli.lock(name, endpoints, owner)
        check(not self.tokens or token > self.tokens[-1], f"token {token} after {self.tokens[-1:]}")
        self.tokens.append(token)
        self.kept[name] = (owner, token)
        return token

    def all_healthy(self, containers=NODES):
        for container in containers:
            until_healthy(container)

    def nothing_lost(self, containers=NODES):
        for name, held in self.kept.items():
            self.cli.seen_by(containers, name, held)
        return f"{len(self.kept)} locks seen with owner and token on {len(containers)} nodes"

    # The image alone.

    def build(self):
        run("docker", "build", "-t", "raftlock", ".", limit=BUILD_PATIENCE)
        made = json.loads(run("docker", "image", "inspect", "raftlock"))[0]
        base = re.findall(r"^FROM (debian:\S+)", open("Dockerfile").read(), re.M)[0]
        under = json.loads(run("docker", "image", "inspect", base))[0]
        own = (made["Size"] - under["Size"]) / 1e6
        check(own < OWN_MB_MAX, f"the image has {own:.0f} MB above its base")
        config = made["Config"]
        check(config["User"] not in ("", "0", "root"), f"it runs as {config['User']!r}")
        check(config["Volumes"] == {"/var/lib/raftlock": {}}, f"volumes: {config['Volumes']}")
        check(config["Healthcheck"]["Test"][:3] == ["CMD", "raftlock", "health"], "no health check")
        kept = run("docker", "create", "raftlock").strip()
        try:
            run("docker", "cp", f"{kept}:/usr/local/bin/raftlock", self.cli.path)
        finally:
            run("docker", "rm", "-v", kept)
        return f"{own:.1f} MB above its base, user {config['User']}"

    def single(self):
        run("docker", "run", "-d", "--name", SINGLE, "-p", "50051:50051", "raftlock")
        until_healthy(SINGLE)
        here = "http://localhost:50051"
        token = self.cli.lock("job", here)
        again = run("docker", "run", "--rm", "--network", "host", "raftlock", "lock", "job", codes=(75,))
        check(again == "", f"a second lock says {again!r}")
        shown = run(self.cli.path, "run", "other", "--", "printenv", "RAFTLOCK_FENCING_TOKEN").strip()
        check(int(shown) > token, f"token {shown} after {token}")
        check("Usage: raftlock" in run("docker", "run", "--rm", "raftlock", "--help"), "--help")
        user = run("docker", "exec", SINGLE, "id", "-u").strip()
        check(user == "10001", f"it runs as user {user}")
        check("overlay" not in logs_of(SINGLE), "the data is in the container's own layer")
        began = time.monotonic()
        run("docker", "stop", SINGLE)
        took = time.monotonic() - began
        code = run("docker", "inspect", "--format", "{{.State.ExitCode}}", SINGLE).strip()
        check(code == "0" and took < STOP_LIMIT, f"stopped within {took:.1f} s with code {code}")
        check("node stopped" in logs_of(SINGLE), "it did not stop in order")
        run("docker", "start", SINGLE)
        until_healthy(SINGLE)
        check(self.cli.holder("job", here) == ("check", token), "the lock is gone after a restart")
        run("docker", "rm", "-f", "-v", SINGLE)
        return f"lock, run, refused lock; stopped in {took:.1f} s; the lock is there after a start"

    # The cluster.

    def up(self):
        compose("up", "--build", "-d", limit=BUILD_PATIENCE)
        self.all_healthy()
        status = self.cli.json("status", endpoints=ALL)
        clusters = {node["cluster_id"] for node in status}
        check(len(clusters) == 1 and "" not in clusters, f"clusters: {clusters}")
        names = [node["node"]["name"] for node in status]
        check(names == ["node1", "node2", "node3"], f"names: {names}")
        voters = [member["role"] for member in status[0]["members"]].count("voter")
        check(voters == 3, f"{voters} of 3 vote")
        return f"one cluster of three voters; {self.cli.leader(NODES)} leads"

    def each_port(self):
        for container in NODES:
            self.take(f"at-{container}", endpoint(container))
        self.cli("lock", "at-raftlock_node1", endpoints=endpoint("raftlock_node3"), codes=(75,))
        said = self.nothing_lost()
        shown = self.cli("run", "all", "--", "printenv", "RAFTLOCK_FENCING_TOKEN", endpoints=ALL)
        check(int(shown) > self.tokens[-1], f"token {shown} after {self.tokens[-1]}")
        return f"tokens rise; {said}; a held one is refused elsewhere; `run` over all three"

    def logs(self):
        leader = self.cli.leader(NODES).removeprefix("raftlock_")
        for container in NODES:
            name = container.removeprefix("raftlock_")
            text = logs_of(container)
            role = "leader" if name == leader else "follower"
            known = [line for line in text.splitlines() if "leader known" in line]
            check(re.search(rf'node starts node="?{name}"?', text), f"{container} does not say that it starts: {text}")
            check(
                known and f'leader="{leader}"' in known[-1] and f'role="{role}"' in known[-1],
                f"{container} does not say that it is a {role} and {leader} leads: {text}",
            )
        return "each says that it starts, its role, and who leads"

    def kill_leader(self):
        leader = self.cli.leader(NODES)
        rest = [container for container in NODES if container != leader]
        run("docker", "kill", leader)
        began = time.monotonic()
        token = self.take("after-kill", ALL)
        took = time.monotonic() - began
        self.nothing_lost(rest)
        run("docker", "start", leader)
        self.all_healthy()
        return f"{leader} killed, next lock after {took:.1f} s with token {token}; back again: {self.nothing_lost()}"

    def cut_off_leader(self):
        leader = self.cli.leader(NODES)
        rest = [container for container in NODES if container != leader]
        network = f"{PROJECT}_default"
        run("docker", "network", "disconnect", network, leader)
        try:
            self.cli.leader(rest)
            self.take("while-cut-off", ",".join(map(endpoint, rest)))
            until(f"{leader} is unhealthy", lambda: health_of(leader) == "unhealthy")
            run("docker", "exec", leader, "raftlock", "health", codes=(69,))
            run("docker", "exec", leader, "raftlock", "lock", "alone", codes=(69,))
            check(self.cli.holder("alone", endpoint(rest[0])) is None, "a node that is cut off gave a lock")
        finally:
            alias = leader.removeprefix("raftlock_")
            run("docker", "network", "connect", "--alias", alias, network, leader)
        self.all_healthy()
        until(f"{leader} answers on its port", lambda: outcome(
            self.cli.path, "health", "--endpoints", endpoint(leader)).returncode == 0)
        return f"{leader} gave nothing out; reconnected: {self.nothing_lost()}"

    def rolling_restart(self):
        loop = Loop(self.cli.path)
        loop.start()
        try:
            for container in NODES:
                before = loop.commands
                run("docker", "restart", "-t", "15", container)
                until_healthy(container)
                until("the client goes on", lambda: loop.commands >= before + 12)
        finally:
            loop.stopping.set()
            loop.join()
        check(not loop.failures, f"{len(loop.failures)} of {loop.commands} commands failed: {loop.failures[:5]}")
        return (
            f"0 of {loop.commands} commands failed, {len(loop.unknown)} unlocks did not know at first whether they had"
            f" happened; {self.nothing_lost()}"
        )

    def down_and_up(self):
        compose("down", limit=PATIENCE)
        gone = outcome("docker", "inspect", *NODES)
        check(gone.returncode != 0, "`down` left containers")
        compose("up", "-d")
        self.all_healthy()
        said = self.nothing_lost()
        self.take("after-down", ALL)
        return said

    def steady(self):
        """A lock that `run` holds while everything else happens."""
        command = [self.cli.path, "run", "steady", "--ttl", "10s", "--id", "steady", "--endpoints", ALL, "--", "sleep", "3600"]
        self.running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
        )
        self.steady_token = until("`run` has its lock", lambda: self.cli.holder("steady", ALL))
        return f"{self.steady_token}"

    def still_steady(self):
        ended = self.running.poll()
        check(ended is None, f"`run` ended with {ended}: {self.running.stderr.read() if ended is not None else ''}")
        held = self.cli.holder("steady", ALL)
        check(held == self.steady_token, f"`run` held {self.steady_token}, now {held}")
        self.running.terminate()
        code = self.running.wait(timeout=PATIENCE)
        check(code == 128 + 15, f"`run` ended with {code}")
        until("the lock is free", lambda: self.cli.holder("steady", ALL) is None)
        return "the lock that `run` held from before the kill has the same token, and was released"

    running = None


def prepare():
    """What others have is left alone; what an earlier run of this check left is removed."""
    clean_up()
    taken = run("docker", "ps", "-a", "--format", "{{.Names}}").split()
    check(not set(taken) & set(NODES), f"containers named {', '.join(set(taken) & set(NODES))} exist: remove them first")
    for port in [50051, *PORTS.values()]:
        with socket.socket() as listening:
            # As the engine will: what a finished connection left in TIME_WAIT is no obstacle.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind(("0.0.0.0", port))
            except OSError as error:
                raise Wrong(f"port {port} of this machine is needed: {error}") from None


def clean_up():
    outcome("docker", "rm", "-f", "-v", SINGLE)
    outcome("docker-compose", "-p", PROJECT, "down", "-v", "-t", "2")


def keep_for_next_time():
    """The layers of this build speed the next one up; those of the build before are deleted."""
    for stage, name in [(["--target", "build"], "built"), ([], "image")]:
        tag = f"raftlock-check/{name}"
        before = outcome("docker", "images", "-q", tag).stdout.split()
        run("docker", "build", *stage, "-t", tag, ".", limit=BUILD_PATIENCE)
        now = run("docker", "images", "-q", tag).split()
        for image in set(before) - set(now):
            outcome("docker", "rmi", image)


def main():
    began = time.monotonic()
    check_ = None
    # So that what was started is removed when this is told to end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        prepare()
        with tempfile.TemporaryDirectory() as folder:
            check_ = Check(folder)
            try:
                check_.step("docker build", check_.build)
                check_.step("keep the layers", lambda: keep_for_next_time() or "for the next run")
                check_.step("docker run", check_.single)
                check_.step("docker-compose up --build", check_.up)
                check_.step("lock on each port", check_.each_port)
                check_.step("docker logs", check_.logs)
                check_.step("hold one by `run`", check_.steady)
                check_.step("kill the leader's container", check_.kill_leader)
                check_.step("cut the leader off", check_.cut_off_leader)
                check_.step("rolling restart", check_.rolling_restart)
                check_.step("`run` through all that", check_.still_steady)
                check_.step("down and up", check_.down_and_up)
            finally:
                if check_.running is not None:
                    check_.running.kill()
    except Wrong as wrong:
        for container in [SINGLE, *NODES]:
            if outcome("docker", "inspect", container).returncode == 0:
                print(f"--- {container}\n" + "\n".join(logs_of(container).splitlines()[-40:]), file=sys.stderr)
        print(f"check-docker: failed: {wrong}", file=sys.stderr)
        return 1
    finally:
        clean_up()
    print(f"check-docker: all {check_.steps} steps held, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
