"""The error that a user can cause."""


class UserError(Exception):
    """A mistake in a config, a path or a file that the user can put right.

    The message is one line that names the field or the path and says what would be right. The command
    line prints it without a stack trace and exits with code 2.
    """
