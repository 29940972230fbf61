"""The exception for input that cannot be used, and the warning about iterations that did not converge."""

from __future__ import annotations

from typing import final

__all__ = ["THREE_WAYS", "ConvergenceWarning", "InputError"]

THREE_WAYS = (
    "There are three ways to proceed: declare noise and vary its level (mikit.noise_sweep, or measure with noise=0.1), "
    "measure the information of both sides about the labels (labels=...), or record them under real noise, such as "
    "independent augmentations."
)
"""What to do where one side is a function of the other, so that the information between them is infinite."""


@final
class InputError(ValueError):
    """An argument or a file cannot be used.

    The message is written for the caller: it states what was wrong, where (which array, file or layer, and the first
    sample where that helps) and what to do. The command line prints it and exits with code 2; any other exception is a
    defect of mikit.
    """


@final
class ConvergenceWarning(UserWarning):
    """An iteration reached its limit before the requested accuracy.

    The result is still returned. The message states the accuracy that was reached and what to change.
    """
