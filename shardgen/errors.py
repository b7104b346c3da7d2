"""The two ways in which a person can be at fault, so that the command line knows its exit code.

Both are `ValueError`s with one line of text: the value, the reason and the way out.
"""


class DataError(ValueError):
    """The data is at fault: truncated, contradictory, changed or unfinished (exit code 1)."""


class UsageError(ValueError):
    """The request is at fault: a wrong path, option or recipe (exit code 2)."""
