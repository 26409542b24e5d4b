"""L19: replicas whose clocks differ, by libfaketime."""

import itertools
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from glob import glob

from blatam.auth.v1 import auth_pb2
from tests.load.faults.experiment import Skipped, at_most, experiment
from tests.load.faults.ledger import Ledger
from tests.load.faults.policies import NONE, open_channel
from tests.load.faults.replicas import Process, Testbed, testbed
from tests.load.faults.traffic import Client, read_self, sign_up_members
from tests.load.row import ResultRow

LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"
CLEAN = {"OK", "UNAUTHENTICATED"}


@experiment("L19", max_seconds=180)
async def clocks_differ() -> list[ResultRow]:
    """Use the tokens of each replica at all others."""
    if not (libraries := glob(LIBRARIES)):
        raise Skipped("libfaketime is not installed (Debian: apt-get install faketime)")

    def by(offset: str) -> Mapping[str, str]:
        return {
            "LD_PRELOAD": libraries[0],
            "FAKETIME": offset,
            "DONT_FAKE_MONOTONIC": "1",
        }

    async with testbed() as bed:
        near = await _codes(bed, [{}, by("+45s")]) + await _codes(bed, [{}, by("-45s")])
        far = await _codes(bed, [by("-45s"), by("+45s")])
        far += await _codes(bed, [{}, by("+10m")])
    failed = near.total() - near["OK"]
    unclean = sum(count for code, count in far.items() if code not in CLEAN)
    return [
        at_most("a clock +-45 s: calls failed", failed, 0, "calls", str(dict(near))),
        at_most(
            "90 s and 10 min apart: neither OK nor UNAUTHENTICATED",
            unclean,
            0,
            "calls",
            str(dict(far)),
        ),
    ]


async def _codes(bed: Testbed, clocks: Sequence[Mapping[str, str]]) -> Counter[str]:
    """Return the statuses of calls at each replica with the tokens of each."""
    replicas = [await bed.started(clock) for clock in clocks]
    codes: Counter[str] = Counter()
    for issuer, verifier in itertools.product(replicas, repeat=2):
        prefix = f"m{uuid.uuid4().hex[:12]}"
        codes.update(await _statuses(issuer, verifier, prefix))
    for replica in replicas:
        await replica.kill()
    return codes


async def _statuses(issuer: Process, verifier: Process, prefix: str) -> list[str]:
    async with (
        open_channel([issuer.grpc], NONE) as to_issuer,
        open_channel([verifier.grpc], NONE) as to_verifier,
    ):
        (member,) = await sign_up_members(Client(to_issuer), Ledger(), prefix, 1)
        client = Client(to_verifier)
        await read_self(client, Ledger(), member)
        request = auth_pb2.RefreshTokenRequest(
            refresh_token=member.tokens.refresh_token
        )
        response = await client.call(client.auth.RefreshToken, request)
        if response is not None:
            member.tokens = response.tokens
            await read_self(client, Ledger(), member)
        return [result.code.name for result in client.results]
