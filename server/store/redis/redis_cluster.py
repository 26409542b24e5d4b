"""A client of a Redis or Valkey Cluster that waits for no node longer than for one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisError,
)

from server.store.connections.answers import answer_time
from server.store.connections.circuit_breaker import CircuitBreaker
from server.store.redis.cluster_slots import (
    primaries_by_slot,
    probe_keys,
    slot_of,
)
from server.store.redis.guarded_redis import (
    TIMEOUT_SECONDS,
    GuardedRedis,
    RedisUnavailable,
    is_caused_by_command,
    outcomes_of,
)
from server.store.redis.redis_url import Node

_ON_EACH_PRIMARY = frozenset({"SCRIPT LOAD"})


class GuardedCluster(Redis):
    """Sends each command to the primary that has the slot of its key.

    Each node has a GuardedRedis of its own: commands for one node are pipelined, and a
    node that does not answer delays or fails only commands about its own keys. No
    command waits for the reading of the slots, except the first ones of a process. They
    are read again after a MOVED reply or a failure, until every primary answers.
    """

    def __init__(
        self, nodes: Sequence[Node], client: Callable[[Node], GuardedRedis]
    ) -> None:
        self._client_of = client
        self._seeds = {node: client(node) for node in nodes}
        super().__init__(connection_pool=self._seeds[nodes[0]].connection_pool)
        self._clients = dict(self._seeds)  # of every known primary, too
        self._slots: list[GuardedRedis | None] = []
        self._primaries: list[GuardedRedis] = []
        self._are_slots_known = asyncio.Event()
        self._breaker = CircuitBreaker("redis cluster", self._probe)
        self._encode = self.get_encoder().encode  # type: ignore[no-untyped-call]

    @property
    def is_degraded(self) -> bool:
        """Whether some commands are refused, because a primary does not answer."""
        return self._breaker.is_open or any(
            primary.is_degraded for primary in self._primaries
        )

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command. Raises RedisError, OSError."""
        if not self._slots:
            await self._await_slots()
        if args[0] in _ON_EACH_PRIMARY:
            return await self._execute_on_each(args, options)
        slot = slot_of(args, self._encode)
        node = self._any_primary() if slot is None else self._slots[slot]
        try:
            if node is None:
                raise ClusterDownError(f"no node has slot {slot}")
            return await node.execute_command(*args, **options)
        except AskError as error:  # or MovedError, its subclass
            return await self._redirected(error, node, args, options)
        except (RedisError, OSError) as error:
            self._suspect_after(error)
            raise

    async def _execute_on_each(
        self, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        """Execute a command on each primary; return a reply if one succeeded."""
        replies = await asyncio.gather(
            *(primary.execute_command(*args, **options) for primary in self._primaries),
            return_exceptions=True,
        )
        for reply in replies:
            if not isinstance(reply, BaseException):
                return reply
        raise replies[0]

    async def _redirected(
        self,
        error: AskError,
        asked: GuardedRedis | None,
        args: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Execute a command once more, on the node that the reply names."""
        assert asked  # noqa: S101 - it replied
        target = self._client((error.host or _node(asked)[0], error.port))
        if isinstance(error, MovedError):
            self._slots[error.slot_id] = target
            if target not in self._primaries:
                self._primaries.append(target)
            self._breaker.suspect()  # other slots may have moved, too
            executing = target.execute_command(*args, **options)
        else:
            executing = target.execute_asking(*args, **options)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await executing
        except (RedisError, OSError) as failure:
            self._suspect_after(failure)
            raise

    def _suspect_after(self, error: Exception) -> None:
        if not is_caused_by_command(error):
            self._breaker.suspect()

    async def _await_slots(self) -> None:
        """Wait until the slots are known, but not longer than for any reply."""
        if cause := self._breaker.cause:
            raise RedisUnavailable(type(cause).__name__)
        self._breaker.suspect()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self._are_slots_known.wait()

    def _any_primary(self) -> GuardedRedis:
        return _random_first(self._primaries)[0]

    def _client(self, node: Node) -> GuardedRedis:
        if node not in self._clients:
            self._clients[node] = self._client_of(node)
        return self._clients[node]

    async def _probe(self) -> None:
        """Read the slots; each must have a primary that answers."""
        await self._read_slots()
        results = await asyncio.gather(
            *(primary.probe() for primary in self._primaries), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if None in self._slots:
            raise ClusterDownError("no node has some of the slots")

    async def ping_nodes(self) -> Mapping[str, Exception | None]:
        """Return what each node of the URL, and each primary, fails with."""
        asking = {node: client.cluster_slots() for node, client in self._seeds.items()}
        outcomes = await outcomes_of(asking)
        if None in outcomes.values():
            await self._read_slots()
            trying = {_node(node): node.try_commands() for node in self._primaries}
            outcomes |= await outcomes_of(trying)
        return {f"{host}:{port}": error for (host, port), error in outcomes.items()}

    async def _read_slots(self) -> None:
        """Read which primary has which slots, from the first node that answers."""
        cause: Exception | None = None
        for node in [*_random_first(self._primaries), *self._seeds.values()]:
            asking = asyncio.ensure_future(node.cluster_slots())
            try:
                await answer_time(asking, TIMEOUT_SECONDS)
            except (RedisError, OSError) as error:
                cause = error
            else:
                await self._replace(primaries_by_slot(asking.result(), _node(node)[0]))
                return
        raise cause or RedisUnavailable

    async def _replace(self, primaries: Sequence[Node | None]) -> None:
        """Use these primaries from now on; close the clients of other nodes."""
        clients = {node: self._client(node) for node in primaries if node}
        if not clients:
            raise ClusterDownError("no node has a slot")
        for node, key in probe_keys(primaries).items():
            clients[node].probe_key = key
        self._slots = [clients[node] if node else None for node in primaries]
        self._primaries = [*clients.values()]
        self._are_slots_known.set()
        unused = self._clients.keys() - clients.keys() - self._seeds.keys()
        await _close(self._clients.pop(node) for node in unused)

    def pubsub(self, **options: Any) -> PubSub:
        """Return a subscription at one node: each node gets every message."""
        nodes = self._primaries or [*self._seeds.values()]
        return _random_first(nodes)[0].pubsub(**options)

    async def scan_iter(  # type: ignore[override]  # Redis declares it synchronous
        self, *args: Any, **options: Any
    ) -> AsyncIterator[Any]:
        """Yield the keys of every primary. Raises RedisError, OSError."""
        if not self._slots:
            await self._await_slots()
        for primary in self._primaries:
            async for key in primary.scan_iter(*args, **options):
                yield key

    def pipeline(self, *_: object, **__: object) -> NoReturn:
        """Refuse: commands that are sent at the same time are pipelined anyway."""
        raise NotImplementedError("send the commands with asyncio.gather")

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection and stop probing."""
        await self._breaker.close()
        await _close(self._clients.values())


def _random_first(nodes: Sequence[GuardedRedis]) -> list[GuardedRedis]:
    """Return the nodes in random order, those that do not answer last."""
    return sorted(random.sample(nodes, len(nodes)), key=lambda node: node.is_degraded)


def _node(client: GuardedRedis) -> Node:
    options = client.connection_pool.connection_kwargs
    return options["host"], options["port"]


async def _close(clients: Iterable[GuardedRedis]) -> None:
    await asyncio.gather(*(client.aclose() for client in clients))
