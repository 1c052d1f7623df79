"""The two ways a command can end badly, and the exit code of each."""


class UserError(ValueError):
    """The request is wrong: bad file, missing column, unknown law. The message is one to five lines. Exit code 2."""

    exit_code = 2


class WorkFailed(RuntimeError):
    """The request was right, the work failed: no start of a fit came to an end. Exit code 1."""

    exit_code = 1
