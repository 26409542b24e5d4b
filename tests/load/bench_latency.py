"""Latency of GetUser at several loads, with calls that do not wait for earlier ones."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from blatam.user.v1 import user_pb2
from tests.load.loader import Target, offer, saturate
from tests.load.row import ResultRow
from tests.load.service import Service, call_once, rest_target, running

METHOD = "/blatam.user.v1.UserService/GetUser"
SHARES = (20, 40, 60, 80, 90)  # of the capacity, in %
PERCENTILES = (50, 99)
REPORTED_SHARE = 60
SECONDS = 4.0  # of each load


def rows() -> list[ResultRow]:
    """Return the 50th and 99th percentile over gRPC and over REST."""
    with running() as service:
        targets = _over_grpc(service), _over_rest(service)
        return [row for target in targets for row in _rows(target)]


def _over_grpc(service: Service) -> Target:
    message = user_pb2.GetUserRequest(id=service.user).SerializeToString()
    size = len(call_once(service.grpc, METHOD, message, service.bearer))
    url = f"http://{service.grpc}{METHOD}"
    return Target("gRPC", service.process, url, size, message, service.bearer)


def _over_rest(service: Service) -> Target:
    url = f"http://{service.rest}{service.path}"
    return rest_target("REST", service.process, url, service.bearer)


def _rows(target: Target) -> list[ResultRow]:
    capacity = saturate(target)
    with tempfile.TemporaryDirectory() as folder:
        latencies = {
            share: offer(target, capacity * share / 100, SECONDS, Path(folder))
            for share in SHARES
        }
    return [_row(target, capacity, percent, latencies) for percent in PERCENTILES]


def _row(
    target: Target,
    capacity: float,
    percent: int,
    latencies: Mapping[int, Sequence[float]],
) -> ResultRow:
    points = [(s, _percentile(latencies[s], percent) * 1e3) for s in SHARES]
    return ResultRow(
        f"{target.name} GetUser at {REPORTED_SHARE} % load, p{percent}",
        dict(points)[REPORTED_SHARE],
        None,
        "lower",
        unit="ms",
        notes=f"capacity {capacity:,.0f}/s with one core",
        points=points,
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]
