"""Waits that take long are told: a disk that no longer answers and a process that hangs raise no error."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

# Seconds; a tenth of that later at most, it is said.
PATIENCE = 60.0

# Seconds within which a network file system shows every host what another one has written.
SECONDS_TO_APPEAR = 70

DEVICES = "the devices (or another process of the run: what does it say?)"

_waits: dict[object, tuple[str, float]] = {}
_watch: threading.Thread | None = None


@contextlib.contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say so, once, when the block has lasted a minute, and when it is over after all.

    It is not ended: a server that is started again answers after minutes, and the job goes on as if nothing had been.

    Args:
        what: the job waits for, and where to look if it does not come.
    """
    global _watch
    if _watch is None:
        _watch = threading.Thread(target=_look_on, name="waits", daemon=True)
        _watch.start()
    wait, start = object(), time.monotonic()
    _waits[wait] = what, start
    try:
        yield
    finally:
        if _waits.pop(wait, None) is None:
            _say(f"it came after {time.monotonic() - start:.0f} s; going on")


def _look_on() -> None:
    while True:
        time.sleep(PATIENCE / 10)
        for wait, (what, start) in list(_waits.items()):
            if time.monotonic() - start > PATIENCE and _waits.pop(wait, None):
                _say(f"waiting for {what}, for {time.monotonic() - start:.0f} s already")


def _say(message: str) -> None:
    tqdm.write(f"capjax: {message}", file=sys.stderr)
