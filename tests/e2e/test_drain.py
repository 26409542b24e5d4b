"""SIGTERM: health is reported first, calls in flight finish, the exit code is 0."""

import json
from pathlib import Path

from tests.load.faults.drain import drain
from tests.load.faults.replicas import Process
from tests.running import NO_LIMITS, SECRET

LOG_INS = 20


async def test_process_drains_in_order(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """L12: NOT_SERVING and 503, later a closed listener; no log-in fails."""
    process = Process(
        {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SECRET_KEY": SECRET,
            "RATE_LIMITS": json.dumps(NO_LIMITS),
            "LAME_DUCK": "1s",
            "STATE_DIR": str(tmp_path),
        },
        tmp_path / "log",
    )
    try:
        await process.start()
        drained = await drain(process, LOG_INS)
    finally:
        await process.kill()
    unfinished = [r for r in drained.log_ins.results if r.ended > drained.stopped_at]
    assert unfinished, "no log-in was in flight"
    assert not drained.log_ins.failures, drained.log_ins.summary()
    assert drained.observer.is_reported_first
    assert drained.exit_code == 0
