"""A worker process without an application: it speaks the supervisor's protocol only.

`python -m tests.cli.fake_worker MODE FOLDER --control FD --http FD`. It writes a file
`NUMBER.PID` into the folder when it starts and `NUMBER.PID.EVENT` when it ends.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from server.cli.workers.control import FAILED, LISTENING, READY, SupervisorLink


async def serve(link: SupervisorLink, record: Path) -> None:
    """Serve until a signal, a replacement or the end of the supervisor."""
    link.watch()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, link.stopped.set)
    link.send(LISTENING)
    link.send(READY)
    await link.stopped.wait()
    record.with_name(
        f"{record.name}.{'replaced' if link.replaced else 'stopped'}"
    ).touch()


def main(mode: str, folder: Path, control: int) -> None:
    """Wait for the assignment, then behave as the mode says."""
    link = SupervisorLink(control)
    assignment = link.wait_for_assignment()
    if assignment is None:
        return
    record = folder / f"{assignment.number}.{os.getpid()}"
    record.touch()
    if (folder / "fail").exists():
        link.send(FAILED, "SETTING: must be set")
        sys.exit(1)
    if mode == "crash":
        sys.exit(3)
    if mode == "stuck":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        link.send(LISTENING)
        link.send(READY)
        signal.pause()
    asyncio.run(serve(link, record))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[sys.argv.index("--control") + 1]))
