"""The one exception type that the command line turns into a single line and an exit code."""


class PolydraftError(Exception):
    """Something the user can mend; the message says how. `exit_code` is 2 for bad input, 1 otherwise."""

    exit_code = 1


class InputError(PolydraftError, ValueError):
    """A bad argument, file or combination of the two."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
