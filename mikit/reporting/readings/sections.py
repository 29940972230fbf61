"""The readings of a flow in a report: change points, D_F, two students compared, matching layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from mikit.flow.matching.result import NOT_A_FINDING
from mikit.reporting.readings.curves import changes_read, paths_read
from mikit.reporting.readings.divergence import divergences_read
from mikit.reporting.readings.matches import matches_read

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = ["READINGS", "ReadingOfReport", "readings"]


@final
@dataclass(frozen=True)
class ReadingOfReport:
    """One reading on the page: a figure with its own menus, and a table below.

    ``kind`` is ``"phases"`` if the axis shows the phases, else ``"map"``; ``reading`` explains the figure and
    ``caveat`` its limits.
    """

    name: str
    heading: str
    kind: str
    reading: str
    caveat: str


READINGS = (
    ReadingOfReport(
        "changes",
        "Where the curves change",
        "phases",
        "Each curve is divided into as few straight pieces as its errors allow. A dashed line is the most likely place "
        "of a change, and the shaded region contains 95 % of its probability. Compare seeds: only a change that "
        "several seeds share is a property of the method.",
        "A change point is not the moment at which something was learned. It lies between two recordings, and a smooth "
        "curve is divided where straight pieces happen to fit it best.",
    ),
    ReadingOfReport(
        "divergence",
        "Divergence from the teacher",
        "phases",
        "D_F is the sum over the layers of the squared differences in label information between the student and the "
        "final teacher. The dotted line is the term of the last layer alone. Start with “same depth”. A thick segment "
        "is the step with the largest fall of D_F, if that is clear in every seed.",
        "D_F compares amounts of information, not contents: two networks can have equal information about the labels "
        "and share no feature. With the nearest value, the other layers find a teacher layer with a similar value, and "
        "the last term, whose partner is a convention, has more weight.",
    ),
    ReadingOfReport(
        "paths",
        "Two students compared",
        "phases",
        "The line is the first student minus the second, averaged over the seeds that both have. A difference is "
        "significant (5 %, corrected for all layers and phases) outside the shaded band; those points are filled.",
        "A line inside the band does not show that two students are equal: with two or three seeds the band is wide, "
        "and with one seed it does not cover the randomness of training.",
    ),
    ReadingOfReport(
        "match",
        "Matching layers",
        "map",
        "Each row is a student layer: the outline is the teacher layer that a rule selects, and ≈ marks layers less "
        "than two standard errors behind it. If a row has such a mark, the selection is a tie.",
        NOT_A_FINDING,
    ),
)


def readings(flow: Flow, networks: list[str], phases: list[int]) -> dict[str, dict[str, Any]]:
    """Return every reading, ready for JSON: ``drawn``, ``absent`` and ``findings`` by its name.

    ``drawn`` is None if there is nothing to draw, ``absent`` are the reasons, and ``findings`` are sentences.

    Example:
        >>> found = readings(run, ["student alone", "student + VID"], [0, 1, 2, 4, 8, 16, 30])
        >>> found["match"]["absent"][0].startswith("This flow does not contain the values that the rule")
        True
    """
    return {
        "changes": changes_read(flow, networks, phases),
        "divergence": divergences_read(flow, networks, phases),
        "paths": paths_read(flow, networks, phases),
        "match": matches_read(flow, networks),
    }
