"""The one exception that a user may see."""


class CapjaxError(Exception):
    """Something the user can put right.

    The message is one line that says what was expected, what arrived and what to change. The command line prints it
    after `capjax: error:` and exits with status 1.
    """
