"""The errors a run can end with, and the exit code of each.

A message is one line: the value, the limit, and the remedy.
"""


class UserError(ValueError):
    """Something the user gave is wrong: a value, a name, a file."""

    exit_code = 2


class NoValidCheckpointError(RuntimeError):
    """Every checkpoint of a run directory failed verification; starting from scratch beside it would hide that."""

    exit_code = 3


class NonFiniteError(RuntimeError):
    """The loss or a gradient stayed NaN or infinite for several steps in a row."""

    exit_code = 4


class StorageError(RuntimeError):
    """There is no room for a checkpoint, or the file system refused it. Older steps are untouched."""

    exit_code = 6


class DoesNotFitError(RuntimeError):
    """A step needs more memory than a device has: the compiler says so beforehand, or the device when it runs."""

    exit_code = 8


class PreemptedError(RuntimeError):
    """A signal ended the run after its state was saved; the same command continues it."""

    exit_code = 75
