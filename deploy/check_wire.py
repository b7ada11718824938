"""The public calls through a generic gRPC client: JSON in, JSON out, on every node of a three-node cluster.

Nothing is generated: the messages come from the descriptor that the server's reflection serves. Starts three
`raftlock serve` processes on free ports of the loopback address, and ends them by their ids.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.environ.get("RAFTLOCK") or os.path.join(
    os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "debug", "raftlock"
)


class Wire:
    """Calls by name, with JSON."""

    def __init__(self, address):
        files = descriptor_pb2.FileDescriptorSet()
        with open(os.path.join(ROOT, "proto/src/gen/descriptor.bin"), "rb") as descriptor:
            files.ParseFromString(descriptor.read())
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        self.service = pool.FindServiceByName("raftlock.v1.RaftLock")
        self.channel = grpc.insecure_channel(address)

    def call(self, method, request):
        method = self.service.methods_by_name[method]
        asked = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        stub = self.channel.unary_unary(
            f"/raftlock.v1.RaftLock/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        got = stub(json_format.Parse(json.dumps(request), asked()), timeout=5)
        return json_format.MessageToDict(got, preserving_proto_field_name=True)


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for port in held:
        port.bind(("127.0.0.1", 0))
    ports = [port.getsockname()[1] for port in held]
    for port in held:
        port.close()
    return ports


def start(folder):
    ports = free_ports(6)
    peers = [f"127.0.0.1:{port}" for port in ports[3:]]
    processes = []
    for at in range(3):
        log = open(os.path.join(folder, f"n{at + 1}.log"), "w")
        command = [
            BINARY, "serve", "--node-name", f"n{at + 1}", "--listen", f"127.0.0.1:{ports[at]}",
            "--peer-listen", peers[at], "--seeds", ",".join(peers), "--bootstrap-expect", "3",
            "--data-dir", os.path.join(folder, f"n{at + 1}"), "--ballast", "0", "--allow-volatile-data",
        ]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    return processes, [f"127.0.0.1:{port}" for port in ports[:3]]


def until_served(wire):
    deadline = time.monotonic() + 30
    while True:
        try:
            return wire.call("ListLocks", {})
        except grpc.RpcError as error:
            if time.monotonic() > deadline:
                raise
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), error
            time.sleep(0.05)


def expect(what, got, wanted):
    for key, value in wanted.items():
        if got.get(key) != value:
            sys.exit(f"{what}: {key} is {got.get(key)!r}, not {value!r}, in {got}")
    print(f"{what}: {json.dumps(got)}")


def check(address):
    wire = Wire(address)
    until_served(wire)
    asked = {"resource_id": "job-123", "client_id": "worker-42", "ttl_seconds": 30}
    locked = wire.call("Lock", asked)
    expect(f"{address} Lock", locked, {"success": True, "message": "Lock acquired"})
    again = wire.call("Lock", asked)
    expect(f"{address} Lock again", again, {"success": True, "fencing_token": locked["fencing_token"]})
    other = wire.call("Lock", {**asked, "client_id": "worker-7"})
    expect(f"{address} Lock by another", other, {"holder": "worker-42", "holder_count": 1})
    assert "success" not in other, other
    renewed = wire.call("Renew", {**asked, "ttl_seconds": 60})
    expect(f"{address} Renew", renewed, {"success": True})
    seen = wire.call("GetLock", {"resource_id": "job-123"})
    expect(f"{address} GetLock", seen["holders"][0], {"owner": "worker-42", "fencing_token": locked["fencing_token"]})
    listed = wire.call("ListLocks", {"prefix": "job-"})
    expect(f"{address} ListLocks", listed["locks"][0], {"resource_id": "job-123", "owner": "worker-42"})
    unlocked = wire.call("Unlock", {"resource_id": "job-123", "client_id": "worker-42"})
    expect(f"{address} Unlock", unlocked, {"success": True, "message": "Lock released"})
    return int(locked["fencing_token"])


def main():
    with tempfile.TemporaryDirectory() as folder:
        processes, addresses = start(folder)
        try:
            tokens = [check(address) for address in addresses]
            assert tokens == sorted(set(tokens)), f"tokens must rise: {tokens}"
            print("every node gives the same answers")
        except BaseException:
            for at in range(3):
                with open(os.path.join(folder, f"n{at + 1}.log")) as log:
                    sys.stderr.write(f"--- n{at + 1}\n{log.read()[-2000:]}")
            raise
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()


main()
