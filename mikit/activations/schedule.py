"""At which phases of a training to record: dense where networks change fast, sparse where they settle."""

from __future__ import annotations

import math
from collections.abc import Collection

from mikit.activations.admission import phase_number
from mikit.errors import InputError

__all__ = ["checked_schedule", "phase_schedule"]

_LARGEST = 1 << 40


def phase_schedule(epochs: int, *, per_doubling: int = 1) -> tuple[int, ...]:
    r"""Return phases to record: 0, then as many for every doubling of the training's length, and the last.

    Formula: with :math:`T` epochs and :math:`m` phases per doubling,

    .. math:: \{0, T\} \cup \{\lfloor 2^{k/m} + 1/2 \rfloor \le T : k = 0, 1, \dots\}

    which is every epoch until about :math:`1.4\, m`, and logarithmic after that.

    Args:
        epochs: Epochs of the training, at least 1; or steps, if the recorder is called with steps.
        per_doubling: Phases per doubling, at least 1.

    Returns:
        Phases in ascending order, each once; 0 is the untrained network.

    Raises:
        InputError: If a number is out of range.

    Cost:
        ``per_doubling × log2(epochs)`` phases and a few more.

    Pitfalls:
        The last two phases may lie close together. On an axis with phases at equal spacing, which the figures here
        have, the schedule looks linear and is not.

    Source:
        Elementary.

    Example:
        >>> phase_schedule(40)
        (0, 1, 2, 4, 8, 16, 32, 40)
        >>> phase_schedule(20, per_doubling=4)
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 20)
    """
    for name, value in (("epochs", epochs), ("per_doubling", per_doubling)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST:
            raise InputError(f"{name} is {value!r}. Pass a whole number of at least 1.")
    phases, k = {0, epochs}, 0
    while (phase := math.floor(2.0 ** (k / per_doubling) + 0.5)) <= epochs:
        phases.add(phase)
        k += 1
    return tuple(sorted(phases))


def checked_schedule(schedule: Collection[int]) -> tuple[int, ...]:
    """Return a schedule in ascending order.

    Raises:
        InputError: If it is empty, or an entry is no phase.
    """
    if isinstance(schedule, (str, bytes)) or not isinstance(schedule, Collection):
        raise InputError(f"The schedule is {schedule!r}. Pass a list of phases, or mikit.phase_schedule(epochs).")
    phases = tuple(sorted({phase_number(phase) for phase in schedule}))
    if not phases:
        raise InputError("The schedule is empty, so nothing would be recorded. Pass mikit.phase_schedule(epochs).")
    return phases
