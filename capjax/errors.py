"""The one exception that a user may see, and its special cases."""

from collections.abc import Iterator


def printable(text: str) -> str:
    """Write what a terminal would obey, and what no encoding takes, as escapes: names of files hold anything."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of what an error says, of at most `limit` characters, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Go through an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class CapjaxError(Exception):
    """Something the user can put right.

    The message is one line that says what was expected, what arrived and what to change. The command line prints it
    after `capjax: error:` and exits with `exit_status`.
    """

    exit_status = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class Interrupted(CapjaxError):
    """A run was asked to stop and has saved what it did: whoever launched it may start the same command again.

    The status is EX_TEMPFAIL of sysexits.h, by which launchers know (`experiments/launch`).
    """

    exit_status = 75


class LostProcess(CapjaxError):
    """Another process that the run needs is gone; the same command goes on from the last checkpoint.

    The status is EX_UNAVAILABLE of sysexits.h, which tells launchers that the error is not this process's own.
    """

    exit_status = 69
