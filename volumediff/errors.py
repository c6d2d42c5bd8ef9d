"""The two errors that a user is meant to read: one line, and the exit code that it stands for."""

__all__ = ["DataError", "UsageError"]


class UsageError(Exception):
    """A command or a configuration is wrong; the command line ends with exit code 2."""


class DataError(Exception):
    """A file or a data set is wrong; the command line ends with exit code 1."""
