"""The one error that is meant for the user's eyes. This module imports nothing, so every room may use it."""


class UserError(Exception):
    """A mistake the user can mend: shown as one line, exit code 2.

    The message says what was wrong and what to do next.
    """
