"""The one exception mikit raises on purpose, for input that cannot be used, and the warning about iterations."""

from __future__ import annotations

from typing import final

__all__ = ["THREE_WAYS", "ConvergenceWarning", "InputError"]

THREE_WAYS = (
    "There are three ways on: declare noise and sweep its size (mikit.noise_sweep, or measure with noise=0.1), "
    "measure what both sides say about the labels (labels=...), or record them under real noise, such as independent "
    "augmentations."
)
"""What to do where one side is a function of the other, so that the information between them is infinite."""


@final
class InputError(ValueError):
    """What was passed in cannot be used.

    The message is written for the person who made the call: it says what was wrong, where (which array, file or
    layer, and the first row where that helps) and what to do about it. The command line prints it and exits with
    code 2; any other exception is a defect of mikit.
    """


@final
class ConvergenceWarning(UserWarning):
    """An iteration stopped at its limit, short of the accuracy that was asked for.

    The result is returned all the same. The message says how far the iteration came and what to change.
    """
