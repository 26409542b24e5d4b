"""Compare the service with its peers: `python -m tests.load.peers [NAME ...]`.

A peer is skipped unless it is built: `sh tests/load/peers/NAME/build.sh`. README.md in
this folder says what each one needs.
"""

import argparse
import importlib
import sys
import traceback
from collections.abc import Iterable, Sequence

from tests.load import results
from tests.load.peers import academy, built
from tests.load.peers.compare import Row

# Each is a folder with a module `peer`.
PEERS = ("fastapi_users", "grpc_gateway", "pocketbase", "supabase_auth", "authorizer")
LINE = "{:<14} {:<32} {:>12} {:>12} {:>7} {:>6}  {:<6} {}"
HEADING = ("peer", "row", "theirs", "ours", "ratio", "bar", "", "notes")


def main(arguments: Sequence[str]) -> int:
    """Print the table, and write it to bench-results/; return 1 if a peer failed."""
    names = _names(arguments)
    _print(LINE.format(*HEADING))
    for name in names:
        if not built.version(name):
            reason = f"skipped, not built: sh tests/load/peers/{name}/build.sh"
            _print(LINE.format(name, *[""] * 6, reason))
    chosen = [name for name in names if built.version(name)]
    return _compare(chosen) if chosen else 0


def _compare(names: Sequence[str]) -> int:
    """Compare with the peers in turn; go on with the next one if one fails."""
    rows: list[Row] = []
    failed = 0
    with academy.running() as (server, ours):
        for name in names:
            peer = importlib.import_module(f"tests.load.peers.{name}.peer")
            try:
                rows += _printed(peer.rows(server, ours))
            except Exception:
                traceback.print_exc()
                failed = 1
    path = results.save([row.result for row in rows])
    _print(str(path.relative_to(results.ROOT)))
    return failed


def _names(arguments: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*PEERS, []])
    return list(parser.parse_args(arguments).names) or list(PEERS)


def _printed(rows: Iterable[Row]) -> Iterable[Row]:
    for row in rows:
        figures = (f"{row.ratio:.2f}", f"{row.bar:.2f}")
        verdict = "ok" if row.result.ok else "BELOW"
        columns = (row.peer, row.name, row.theirs, row.ours, *figures, verdict)
        _print(LINE.format(*columns, row.notes))
        yield row


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
