"""Readings of a flow as a report shows them: changes, D_F, data processing, students side by side, matching layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import pandas as pd

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
    """One reading on the page: a figure with choices of its own, and a table below.

    Attributes:
        name: Its name in the page's addresses.
        heading: Its heading.
        kind: ``"phases"`` if the phases lie along the axis, else ``"map"``.
        reading: How to read it.
        is_not: What it is not.
    """

    name: str
    heading: str
    kind: str
    reading: str
    is_not: str


READINGS = (
    ReadingOfReport(
        "changes",
        "Where the curves change",
        "phases",
        "Each curve is cut into as few straight pieces as its errors allow. A dashed line is the likeliest place of a "
        "change, and the shade around it holds 95 % of its probability. Choose another seed: a change that several "
        "seeds share belongs to the method.",
        "A change point is not the moment at which something was learned. It lies between two recordings, and a smooth "
        "curve is cut where straight pieces happen to follow it best.",
    ),
    ReadingOfReport(
        "divergence",
        "How far each student's flow is from the teacher's",
        "phases",
        "D_F adds up, over the layers, the squared differences of label information between the student and the final "
        "teacher. Dotted is the term of the last layer alone. Read “same depth” first. A thick piece is the step in "
        "which D_F falls most, where that is clear in every seed.",
        "D_F compares amounts and not contents: two networks can tell equally much about the labels and share no "
        "feature. By the nearest value the other layers find a teacher layer of a value like their own, and the last "
        "term, whose partner is a convention, weighs more.",
    ),
    ReadingOfReport(
        "paths",
        "Two students side by side",
        "phases",
        "The line is the first student less the second, mean over the seeds that both have. It counts where it leaves "
        "the shaded band, which holds for all layers and phases together (5 %); those points are filled.",
        "A line inside the band does not show that two students are equal: with two or three seeds the band is wide, "
        "and with one seed it knows nothing of training.",
    ),
    ReadingOfReport(
        "match",
        "Which teacher layer goes with which student layer",
        "map",
        "Read along a row: outlined is the teacher layer that a rule picks for this student layer, and ≈ marks layers "
        "less than two standard errors behind it. Where there is one, the pick is a tie and not a choice.",
        NOT_A_FINDING,
    ),
)


def readings(flow: Flow, networks: list[str], phases: list[int], flags: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What every reading shows, ready for JSON, and a sentence for what the flow does not carry.

    Args:
        flow: The flow.
        networks: The page's students, in order.
        phases: The page's phases, ascending.
        flags: What :func:`mikit.flow.data_processing_flags` returned.

    Returns:
        By name of the reading: ``drawn`` (None where there is nothing to draw), ``absent`` (sentences) and ``said``
        (findings in words).

    Unit: those of the flow.

    Raises:
        Nothing: what cannot be read becomes a sentence.

    Cost:
        About ten seconds for 75,000 rows.

    Source:
        :mod:`mikit.flow`.

    Example:
        >>> from mikit.flow import data_processing_flags
        >>> students, phases = ["student alone", "student + VID"], [0, 1, 2, 4, 8, 16, 30]
        >>> found = readings(run, students, phases, data_processing_flags(run))
        >>> found["match"]["absent"][0].startswith('This flow does not have what the rule "directional" compares.')
        True
    """
    return {
        "changes": changes_read(flow, networks, phases),
        "divergence": divergences_read(flow, networks, phases),
        "paths": paths_read(flow, networks, phases),
        "match": matches_read(flow, networks),
    }
