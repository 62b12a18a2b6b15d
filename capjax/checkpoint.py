"""Checkpoints of a run: what an exact resumption needs.

A checkpoint (Orbax, asynchronous, atomic) holds the training state, whose step is the position in the data as well, the
progress of validation, the configuration and the vocabulary. None of it belongs to one process: a run may go on with
another number of them.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from capjax.errors import CapjaxError, causes, first_line
from capjax.host.waiting import waiting_for


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them.

    Use as a context manager: leaving waits for the save in flight, unless an error ends one of several processes.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        """Open the folder, remove what a killed save left behind.

        Raises:
            CapjaxError: if Orbax could not read what it saves there.
        """
        directory = directory.absolute()
        _check_path(directory)
        if jax.process_index() == 0:
            for leftover in directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(barrier_sync_fn=_wait_for_others),
        )
        self.directory = directory
        handlers = {"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, host: dict[str, Any], wait: bool = False) -> None:
        """Save a step in the background; the previous checkpoint stays until this one is whole.

        Args:
            step: updates done.
            state: pytree of device arrays.
            host: JSON values, equal on all processes (progress, configuration, vocabulary).
            wait: return only when it is on disk.

        Raises:
            CapjaxError: if it cannot be written, as the disk is full, or that step or a later one is saved already.
        """
        if jax.process_count() == 1:
            state = jax.tree.map(_of_one_device, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        try:
            with waiting_for(f"the checkpoints in {self.directory} (does their disk answer?)"):
                is_new = self._manager.save(step, args=args)
                if wait:
                    self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            raise CapjaxError(_cannot_write(self.directory, error)) from None
        if not is_new:
            newest = self._manager.latest_step()
            raise CapjaxError(
                f"expected to save a step after {newest}, the newest in {self.directory}, got {step}; choose another "
                "workdir"
            )

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, None when there is none."""
        return self._manager.latest_step()

    def look_again(self) -> None:
        """Read anew which checkpoints there are."""
        self._manager.reload()

    def read_host(self) -> dict[str, Any] | None:
        """Read the JSON values of the newest checkpoint, None when there is none.

        Raises:
            CapjaxError: if they are damaged.
        """
        if self.newest_step is None:
            return None
        host = self._read(host=ocp.args.JsonRestore()).host
        with self.damage_told():
            # capjax 0.1 saved the same values once for each process.
            return host.get("processes", [host])[0]

    def read_state(self, like: Any) -> Any:
        """Read the state of the newest checkpoint.

        Args:
            like: a state of the shapes, dtypes and shardings to restore to, a dataclass. What a checkpoint of an older
                capjax lacks of it stays as it is.

        Raises:
            CapjaxError: if it is damaged or of another model.
        """
        with self.damage_told():
            saved = self._manager.item_metadata(self._manager.latest_step())["state"].keys()
        fields = {field.name: getattr(like, field.name) for field in dataclasses.fields(like) if field.name in saved}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, fields)
        return dataclasses.replace(like, **self._read(state=ocp.args.StandardRestore(abstract)).state)

    def _read(self, **items: Any) -> Any:
        with self.damage_told():
            return self._manager.restore(self._manager.latest_step(), args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def damage_told(self) -> Iterator[None]:
        """Take whatever goes wrong in the block, in which the newest checkpoint is read, for damage of it.

        Raises:
            CapjaxError: in place of other exceptions.
        """
        try:
            yield
        except CapjaxError:
            raise
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            path, refusals = self.directory / str(self._manager.latest_step()), list(map(_refusal, causes(error)))
            if any(refusals):
                raise CapjaxError(
                    f"expected to read the checkpoint {path}, could not ({next(filter(None, refusals))}); it may be "
                    "intact: run the same command again once that is mended"
                ) from None
            raise CapjaxError(
                f"expected an intact checkpoint of this model at {path}, could not restore it ({first_line(error)}); "
                "delete that folder to go on from the one before, or choose another workdir"
            ) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None and jax.process_count() > 1:
            return  # the save in flight may wait for the others, and they for what this process does no more
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as failure:
            if error[0] is None:
                raise CapjaxError(_cannot_write(self.directory, failure)) from None


def read_newest(directory: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """Read the newest checkpoint of a run onto the host, for looking at: whatever devices it lay on, as plain trees.

    Returns:
        The step of its name, and the state.
    """
    newest = max(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    path, checkpointer = (directory / str(newest) / "state").absolute(), ocp.StandardCheckpointer()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = checkpointer.metadata(path).item_metadata.tree
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
    return newest, jax.device_get(checkpointer.restore(path, like))


@functools.cache  # once in a process
def quiet_orbax() -> None:
    """Let Orbax speak only through what it raises.

    It tells its every thought through absl's logger, and each failed write once more through asyncio's and, when a
    failed save has closed its event loop, as an exception that cannot be raised.
    """

    told_before = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            told_before(unraisable)

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = report


def _of_one_device(array: jax.Array) -> jax.Array:
    """Return what all devices hold alike as an array of the first one.

    Orbax would have each device write a slice, and compile a program for every shape to be sliced: seconds of a run's
    first save, for some megabytes.
    """
    return array.addressable_data(0) if array.is_fully_replicated else array


def _wait_for_others(*, key: str, timeout_ms: int) -> None:
    """Wait until all processes have come as far, except where something has failed in this one.

    Orbax would wait for them even so, for 20 minutes, and they for this one; they hear of it when it ends.
    """
    if (error := sys.exception()) is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _check_path(directory: pathlib.Path) -> None:
    """Refuse a path that Orbax takes for a pattern of paths, or that TensorStore cannot be told.

    Raises:
        CapjaxError: before anything is lost.
    """
    path = str(directory)
    if set(path) & {"[", "\\"} or path != path.encode("utf-8", "replace").decode():
        raise CapjaxError(
            f"expected a folder for checkpoints whose path is UTF-8 and has no '[' and no backslash in it, got {path}; "
            "choose another workdir"
        )


def _refusal(error: BaseException) -> str | None:
    """Say why this machine cannot read what may well be there, as its disk does not answer or its memory is full."""
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR):
        return error.strerror
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory: {first_line(error)}"
    return None


def _cannot_write(directory: pathlib.Path, error: Exception) -> str:
    return f"expected to write a checkpoint to {directory}, could not ({first_line(error)}); earlier ones are intact"
