"""The folder of a run: one for all its processes, and of one run at a time."""

import contextlib
import os
import pathlib
import secrets
import time
from collections.abc import Iterator

from capjax.distributed import on_first_process
from capjax.errors import CapjaxError
from capjax.host import waiting
from capjax.host.disk import exclusive
from capjax.sharding import gather_json


@contextlib.contextmanager
def sole_run(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the workdir's lock, on all processes of the run or on none.

    Raises:
        CapjaxError: on every process, if another run holds it, the folder cannot be written, or it is not one folder.
    """
    refusal = (
        f"another process trains in {workdir}; wait for it or choose another workdir (processes of one run find each "
        "other with --distributed or --coordinator)"
    )
    token = gather_json(secrets.token_hex(8))[0]
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(exclusive(workdir / "lock", refusal))
            try:
                (workdir / "lock").write_text(token)
            except OSError as error:
                raise CapjaxError(
                    f"cannot write to {workdir}: {error.strerror}; make room, or choose another"
                ) from error

        on_first_process(lock)
        blind = [i for i, sees in enumerate(gather_json(_appears(token, workdir / "lock"))) if not sees]
        if blind:
            raise CapjaxError(
                f"expected {workdir} to be one folder that all processes of the run mount, process {blind[0]} does not "
                "find what process 0 wrote there; name it by its whole path, on a file system that all share"
            )
        yield


def _appears(text: str, path: pathlib.Path) -> bool:
    """Tell whether a file of another process gets to hold a text; a network file system may take its time."""
    for _ in range(waiting.SECONDS_TO_APPEAR):
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # or what was not there before may be remembered as absent
            if path.read_text() == text:
                return True
        time.sleep(1)
    return False
