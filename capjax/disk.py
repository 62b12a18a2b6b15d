"""Room on the disk: asked for before long work, and a clear word when it runs out all the same."""

import contextlib
import errno
import pathlib
import shutil
from collections.abc import Iterator

from capjax.errors import CapjaxError

# Full, over quota, or more than the file system takes in one file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_room(folder: pathlib.Path, needed_bytes: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        CapjaxError: if there is less room than `needed_bytes` where `folder` is or will be.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise CapjaxError(
            f"expected {needed_bytes / 1e9:.2f} GB of room in {folder} for {what}, there are {free / 1e9:.2f} GB; "
            "free some or choose another folder"
        )


@contextlib.contextmanager
def clear_disk_errors(target: pathlib.Path) -> Iterator[None]:
    """Turn a full or read-only disk, however deep the error comes from, into one line.

    Raises:
        CapjaxError: in place of such an error while `target` is written.
    """
    try:
        yield
    except CapjaxError:
        raise
    except Exception as error:
        for cause in _causes(error):
            number = cause.errno if isinstance(cause, OSError) else None
            # The array_record library and TFDS raise errors of their own with the message of the system.
            if number in _NO_ROOM or "No space left on device" in str(cause) or "File too large" in str(cause):
                raise CapjaxError(
                    f"expected room to write {target}, the disk is full; free some and run the same command again"
                ) from error
            if number in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise CapjaxError(f"expected to write {target}, may not ({cause}); choose another folder") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
