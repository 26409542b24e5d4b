"""Feature: what one feature adds to the application, and how features run."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import Protocol

import structlog

from server.composition.startup import Startup
from server.workers.poller import Poller
from server.workers.supervisor import Task, supervise

log = structlog.get_logger()


class DrainStage(IntEnum):
    """When something is drained; lower stages first."""

    HEALTH = 0  # callers are sent to other processes
    STREAMS = 1  # calls that do not end by themselves are ended
    OUTBOX = 2  # after the last call: the delivery in progress is finished
    CONNECTIONS = 3  # connections that deliveries used are closed


@dataclass(frozen=True, slots=True)
class Drain:
    """Something to finish or close when the process stops."""

    stage: DrainStage
    run: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Feature:
    """The servicers of a feature by service name, its tasks and its drains."""

    servicers: Mapping[str, Sequence[object]] = field(default_factory=dict)
    tasks: Sequence[Task] = ()
    drains: Sequence[Drain] = ()


class DrainCalls(Protocol):
    """Drains the calls of a process that stops, before its listeners close."""

    async def __call__(
        self, lame_duck: timedelta = ..., *, replaced: bool = ...
    ) -> None:
        """Publish NOT_SERVING, answer calls for `lame_duck`, then end the streams.

        A process that is `replaced` behind the same address publishes nothing: a
        client that checks health would find no other address to go to.
        """


def fold_servicers(features: Iterable[Feature]) -> dict[str, list[object]]:
    """Return the servicers of all features, by service name."""
    servicers: defaultdict[str, list[object]] = defaultdict(list)
    for feature in features:
        for service, implementations in feature.servicers.items():
            servicers[service].extend(implementations)
    return dict(servicers)


@asynccontextmanager
async def run_features(
    features: Sequence[Feature], startup: Startup
) -> AsyncIterator[DrainCalls]:
    """Run the tasks of features until the block ends; return what drains their calls.

    First every poller that serving depends on refreshes once, in the features' order;
    while Postgres does not respond, in the background. When the block ends, the outbox
    is drained before the tasks are cancelled.
    """
    tasks = [task for feature in features for task in feature.tasks]
    startup.add(
        steps=[t.refresh for t in tasks if isinstance(t, Poller) and t.before_serving],
        tasks=tasks,
    )
    await startup.attempt()

    async def drain_calls(
        lame_duck: timedelta = timedelta(0), *, replaced: bool = False
    ) -> None:
        if not replaced:
            await _drain(features, DrainStage.HEALTH)
        await asyncio.sleep(lame_duck.total_seconds())
        await _drain(features, DrainStage.STREAMS)

    async with supervise(startup, restarts=startup.restarts):
        try:
            yield drain_calls
        finally:
            await _drain(features, DrainStage.OUTBOX, DrainStage.CONNECTIONS)


async def _drain(features: Iterable[Feature], *stages: DrainStage) -> None:
    """Run the drains of these stages in their order; a failed one is logged."""
    drains = [drain for feature in features for drain in feature.drains]
    for stage in sorted(stages):
        for step in (drain for drain in drains if drain.stage is stage):
            try:
                await step.run()
            except Exception:
                log.exception("drain failed", stage=stage.name)
