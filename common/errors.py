"""The two ways a command can fail, and the exit code of each."""


class UserError(ValueError):
    """The request is invalid: bad key, bad file, missing column, impossible layout. Exit code 2.

    The message is for the user: one to five lines that say what is wrong, where, and what to type instead.
    """

    exit_code = 2


class WorkFailed(RuntimeError):
    """The request was valid, but the work failed: full disk, a loss that is not finite, no fit converged. Exit code 1."""

    exit_code = 1
