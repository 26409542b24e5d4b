"""`academy serve` that writes its number of live objects to a file on SIGUSR1.

`python -m tests.load.faults.observed_serve FILE`
"""

import gc
import signal
import sys
from pathlib import Path
from types import FrameType

from server.cli.main import main


def write_count(signal_number: int, frame: FrameType | None) -> None:
    """Collect garbage, then write the number of objects that are left."""
    del signal_number, frame
    gc.collect()
    count = len(gc.get_objects()) + gc.get_freeze_count()
    PATH.with_suffix(".new").write_text(str(count))
    PATH.with_suffix(".new").rename(PATH)


PATH = Path(sys.argv[1])
sys.argv[1:] = ["serve"]
signal.signal(signal.SIGUSR1, write_count)
main()
