"""Comparing the curves of two students: from which phase they differ, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from mikit.core.errors import InputError
from mikit.core.measurement import plain
from mikit.flow.readings.phases import flow_curves
from mikit.flow.result import Flow

__all__ = ["PathComparison", "compare_paths"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class PathComparison:
    """The result of :func:`compare_paths`.

    Attributes:
        first: The first network; differences are first minus second.
        second: The second network.
        differences: One row per layer and phase: ``difference``, ``standard_error``, ``threshold`` (the significance
            threshold, corrected for the number of layers and phases), ``apart`` (whether the difference exceeds it),
            and ``screened`` (whether it exceeds three standard deviations over the seeds).
        partings: One row per layer: ``phase``, the first phase from which the curves differ with the same sign up to
            the last phase (-1 if there is none), the same for the exploratory criterion as ``screened``, and the last
            ``difference``.
        distances: One row per phase: the root mean square of the differences over the layers.
        settings: Quantity, unit, seeds, and what the errors are estimated from.

    Unit: that of the quantity.

    Kind: a difference of curves.

    Raises:
        InputError: Only from :func:`compare_paths`.

    Cost: None.

    Pitfalls: See :func:`compare_paths`.

    Source: Specific to mikit.

    Example:
        >>> empty = pd.DataFrame(columns=["layer", "phase"])
        >>> print(PathComparison("a", "b", empty, empty, empty, {"quantity": "cka", "basis": "rows"}))
        a minus b, cka, errors from rows
    """

    first: str
    second: str
    differences: pd.DataFrame
    partings: pd.DataFrame
    distances: pd.DataFrame
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers."""
        names = ("differences", "partings", "distances")
        tables = {name: plain(getattr(self, name).to_dict("records")) for name in names}
        return {"first": self.first, "second": self.second, **tables, "settings": plain(self.settings)}

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [f"{self.first} minus {self.second}, {self.settings['quantity']}, errors from {self.settings['basis']}"]
        for row in self.partings.to_dict("records"):
            when = "no difference detected" if row["phase"] < 0 else f"different from phase {row['phase']}"
            if row["screened"] >= 0 and row["screened"] != row["phase"]:
                when += f" (more than 3 SD over seeds from phase {row['screened']})"
            lines.append(f"{row['layer']}: {when}, {row['difference']:+.3g} at the last phase")
        return "\n".join(lines)


def compare_paths(
    flow: Flow,
    first: str,
    second: str,
    *,
    quantity: str | None = None,
    noise: float | None = None,
    level: float = 0.05,
) -> PathComparison:
    """Compare the curves of two students, layer by layer and phase by phase.

    Formula: the difference of the curves, averaged over the seeds that both have. Its standard error is the paired one
    over seeds, or the one over samples if that is larger; with one seed, the one over samples. A difference is
    significant if it exceeds ``t_{1 - level / 2m}`` standard errors, where ``m`` is the number of layers and phases
    compared. A second, exploratory criterion is a difference above three standard deviations over the seeds.

    Args:
        flow: A flow from :func:`mikit.trace`.
        first: A student network.
        second: Another student network with the same layers.
        quantity: As for :func:`mikit.flow.read_phases`.
        noise: As for :func:`mikit.flow.read_phases`.
        level: Largest probability of a significant difference between two equal paths, if the errors are correct.

    Returns:
        A :class:`mikit.flow.PathComparison`.

    Unit: that of the quantity.

    Kind: a difference of curves.

    Raises:
        InputError: If a network is unknown, or the two share no seed, layer or phase.

    Cost:
        Milliseconds.

    Pitfalls:
        - With two or three seeds the threshold is high, and real differences are often not detected: three seeds, six
          layers and eight phases need 44 standard errors. The exploratory criterion needs less and is not a test. With
          one seed, the errors cover the sampling of the data and not of training: two runs of the same method differ by
          that measure too.
        - The distance between two paths is biased upwards: errors alone make it positive.

    Source:
        Bonferroni correction; specific to mikit.

    Example:
        >>> from mikit.flow.result import frame_of
        >>> rows = [{"network": name, "role": "student", "seed": 0, "phase": phase, "layer": "fc", "layer_index": 0,
        ...          "quantity": "label_information", "value": value, "unit": "nats", "standard_error": 0.01, "n": 5000,
        ...          "teacher_layer": "", "teacher_layer_index": -1, "teacher_phase": -1, "d_x": 4, "d_y": 10}
        ...         for name, values in (("a", (0.1, 0.5, 0.9)), ("b", (0.1, 0.2, 0.3)))
        ...         for phase, value in enumerate(values)]
        >>> print(compare_paths(Flow(frame_of(rows), {}), "a", "b"))
        a minus b, label_information, errors from rows of 1 seed
        fc: different from phase 1, +0.6 at the last phase
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must lie between 0 and 1.")
    curves = flow_curves(flow, quantity, noise=noise)
    known = list(dict.fromkeys(curves["network"]))
    for name in (first, second):
        if name not in known:
            raise InputError(f"The flow has no student network {name!r}; it contains {', '.join(known)}.")
    if first == second:
        raise InputError(f"Both networks are {first!r}. Name two different ones.")
    keys = ["seed", "layer", "phase"]
    own, other = (curves[curves["network"].eq(name)] for name in (first, second))
    both = own.merge(other, on=keys, how="inner", suffixes=("_first", "_second"))
    if both.empty:
        raise InputError(f"{first!r} and {second!r} share no seed, layer and phase, so their paths cannot be compared.")
    both["difference"] = both["value_first"] - both["value_second"]
    both["own_error"] = np.hypot(both["standard_error_first"], both["standard_error_second"])

    differences = _differences(both, level)
    partings = [_parting(str(layer), run) for layer, run in differences.groupby("layer", sort=False)]
    squares = differences.assign(square=differences["difference"] ** 2).groupby("phase")["square"].mean()
    distances = pd.DataFrame({"phase": squares.index, "distance": np.sqrt(squares.to_numpy())})
    shared = sorted(int(seed) for seed in both["seed"].unique())
    settings = {
        "quantity": str(curves["quantity"].iloc[0]),
        "unit": str(curves["unit"].iloc[0]),
        "noise": noise,
        "level": level,
        "seeds": shared,
        "basis": "rows of 1 seed" if len(shared) == 1 else f"{len(shared)} seeds, or rows where larger",
    }
    return PathComparison(first, second, differences, pd.DataFrame(partings), distances, settings)


def _differences(both: pd.DataFrame, level: float) -> pd.DataFrame:
    """Return the mean difference of every layer and phase, with its error and threshold."""
    rows: list[dict[str, Any]] = []
    count = both.groupby(["layer", "phase"]).ngroups
    for (index, layer, phase), cells in both.groupby(["layer_index_first", "layer", "phase"]):
        seeds = len(cells)
        error = float(np.sqrt((cells["own_error"] ** 2).sum()) / seeds)
        freedom, spread = np.inf, np.inf
        if seeds > 1:
            # A spread of few seeds can be small by chance, so the error is never below that of the samples.
            spread = float(cells["difference"].std(ddof=1))
            error, freedom = max(error, spread / np.sqrt(seeds)), seeds - 1
        threshold = float(student_t.ppf(1 - level / (2 * count), freedom)) * error
        mean = float(cells["difference"].mean())
        rows.append(
            {
                "layer": layer,
                "layer_index": index,
                "phase": phase,
                "seeds": seeds,
                "difference": mean,
                "standard_error": error,
                "threshold": threshold,
                "apart": abs(mean) > threshold,
                "screened": abs(mean) > 3 * spread,
            }
        )
    return pd.DataFrame(rows)


def _parting(layer: str, run: pd.DataFrame) -> dict[str, Any]:
    """Return the first phase from which a layer's curves differ, with one sign, up to the last phase."""
    ordered = run.sort_values("phase").to_dict("records")
    side = np.sign(ordered[-1]["difference"])
    since = {"apart": -1, "screened": -1}
    for criterion in since:
        for row in reversed(ordered):
            if not row[criterion] or np.sign(row["difference"]) != side:
                break
            since[criterion] = int(row["phase"])
    return {
        "layer": layer,
        "phase": since["apart"],
        "screened": since["screened"],
        "difference": ordered[-1]["difference"],
    }
