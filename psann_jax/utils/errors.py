"""The exception for errors that a user can cause."""


class UserError(Exception):
    """An error in a config, a path or a file that the user can fix.

    The message is one line that names the field or path and says what would be right. The command line prints it
    without a stack trace and exits with code 2.
    """
