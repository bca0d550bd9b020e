"""What a user can put right: the command line shows the message alone and ends with a non-zero code."""

from __future__ import annotations


class UserError(Exception):
    """A wrong setting, a missing file, a full disk. The message says what to do."""


class DataError(UserError):
    """A data set that is missing, incomplete or damaged."""


class CheckpointError(UserError):
    """A checkpoint that is truncated, foreign, or of another recipe."""


class TrainingError(UserError):
    """Training that cannot go on, such as a loss that is not finite."""
