"""The exception for errors that a user can cause, and errors as one line."""


class UserError(Exception):
    """An error in a config, a path or a file that the user can fix.

    The message is one line that names the field or path and says what would be right. The command line prints it
    without a stack trace and exits with code 2.
    """


class DataError(UserError):
    """Training data that are damaged or cannot be read. Nothing was computed from them; the run can save its state."""


def one_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, at most 300 characters; its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
