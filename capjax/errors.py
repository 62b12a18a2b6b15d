"""The one exception that a user may see, and its special case."""


class CapjaxError(Exception):
    """Something the user can put right.

    The message is one line that says what was expected, what arrived and what to change. The command line prints it
    after `capjax: error:` and exits with `exit_status`.
    """

    exit_status = 1


class Interrupted(CapjaxError):
    """A run was asked to stop and has saved what it did: whoever launched it may start the same command again.

    The status is EX_TEMPFAIL of sysexits.h, by which launchers know (`experiments/launch`).
    """

    exit_status = 75
