"""Data of the figures: the rows of one quantity, averages over seeds, matching layers, and selected phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import pandas as pd

from mikit.core.errors import InputError
from mikit.flow.tracing.snapshots import depth_match

if TYPE_CHECKING:
    from mikit.flow import Flow

__all__ = [
    "Rows",
    "choose_phases",
    "label_entropy",
    "layers_of",
    "matching",
    "present",
    "refuse_mixtures",
    "select",
    "teacher_layers",
]

_UNITS = {
    "label_information": ("nats", "bits"),
    "label_gap": ("nats", "bits"),
    "recovered_share": ("share",),
    "cka": ("dimensionless",),
    "input_information": ("nats", "bits"),
    "accuracy": ("fraction",),
}
_MISSING = {
    "label_information": "It was traced without labels; pass labels= to mikit.trace.",
    "label_gap": "It was traced without labels; pass labels= to mikit.trace.",
    "recovered_share": "It contains no comparison of a student with a teacher; pass student stores to mikit.trace.",
    "cka": "It contains no comparison of a student with a teacher; pass student stores to mikit.trace.",
    "input_information": "It was traced without the information plane. Pass information_plane=True to mikit.trace.",
    "accuracy": "No accuracy was recorded with the activations; call store.note(phase, accuracy=...) when capturing.",
}
_NEEDED = frozenset(
    {"network", "role", "seed", "phase", "layer", "layer_index", "teacher_layer", "teacher_layer_index", "quantity"}
    | {"value", "unit", "noise", "probe", "readout", "n", "untrained", "null", "verdict"}
)
_PLACE = ["network", "phase", "layer", "layer_index", "teacher_layer", "teacher_layer_index"]


@final
@dataclass(frozen=True)
class Rows:
    """Rows of one quantity that share one unit, one noise level and one probe.

    Attributes:
        quantity: The quantity, as in the frame.
        unit: Its unit.
        noise: The teacher noise of the rows, or None if the quantity has none.
        noises: All noise levels of this quantity in the flow.
        students: The students' rows.
        teacher: The teacher's rows at its last phase (empty if the quantity has none).
    """

    quantity: str
    unit: str
    noise: float | None
    noises: tuple[float, ...]
    students: pd.DataFrame
    teacher: pd.DataFrame

    @property
    def networks(self) -> list[str]:
        """Student networks in the order of the frame."""
        return [str(name) for name in self.students["network"].unique()]

    @property
    def phases(self) -> list[int]:
        """Phases of the students, in increasing order."""
        return sorted(int(phase) for phase in self.students["phase"].unique())

    def averages(self) -> pd.DataFrame:
        """Return mean, minimum, maximum and SD over the seeds for every network, phase, layer and teacher layer.

        The columns are ``mean``, ``smallest``, ``largest``, ``sd`` (divisor n - 1; NaN for one seed), ``seeds``,
        ``untrained``, ``null`` and ``unreliable`` (true if the row of any seed was judged unreliable).
        """
        return _averages(self.students)

    def teacher_averages(self) -> pd.DataFrame:
        """Return the same averages for the teacher's last phase."""
        return _averages(self.teacher)


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    marked = table.assign(unreliable=table["verdict"].eq("unreliable"))
    return marked.groupby(_PLACE, sort=False, as_index=False, dropna=False).agg(
        mean=("value", "mean"),
        smallest=("value", "min"),
        largest=("value", "max"),
        sd=("value", "std"),
        seeds=("value", "count"),
        untrained=("untrained", "mean"),
        null=("null", "mean"),
        unreliable=("unreliable", "any"),
    )


def present(flow: Flow, quantity: str) -> bool:
    """Return whether the flow contains student rows of a quantity."""
    frame = flow.frame
    if frame.empty:
        return False
    return bool((frame["quantity"].eq(quantity) & frame["role"].eq("student")).any())


def select(flow: Flow, quantity: str, *, noise: float | None = None, networks: Sequence[str] | None = None) -> Rows:
    """Return the rows of one quantity at one noise level, for the student ``networks`` in this order.

    The noise is 0.3 by default if it was measured, otherwise the middle level. Raises an ``InputError`` if the
    quantity, the noise or a network is not in the frame, or if the rows mix units, probes or repeated measurements that
    must not share an axis.
    """
    if quantity not in _UNITS:
        raise InputError(f'"{quantity}" is not a quantity that can be drawn; choose one of {", ".join(_UNITS)}.')
    frame = flow.frame
    lacking = sorted(_NEEDED - set(frame.columns))
    if lacking:
        raise InputError(f"The flow's frame lacks the columns {', '.join(lacking)}; it is not one that mikit wrote.")
    if not present(flow, quantity):
        raise InputError(f"This flow has no student rows of {quantity}. {_MISSING[quantity]}")
    rows = frame[frame["quantity"].eq(quantity)]
    unit = _one_unit(rows, quantity)
    levels = tuple(sorted(float(level) for level in rows["noise"].dropna().unique()))
    chosen = _chosen_noise(levels, noise, quantity)
    if chosen is not None:
        rows = rows[rows["noise"].eq(chosen)]
    students, teacher = rows[rows["role"].eq("student")], rows[rows["role"].eq("teacher")]
    students = _kept_networks(students, networks)
    if not teacher.empty:
        teacher = teacher[teacher["phase"].eq(teacher["phase"].max())]
    _refuse_repeats(students, quantity)
    refuse_mixtures(pd.concat([students, teacher]), quantity)
    return Rows(quantity, unit, chosen, levels, students, teacher)


def _one_unit(rows: pd.DataFrame, quantity: str) -> str:
    units = sorted(str(unit) for unit in rows["unit"].unique())
    if len(units) > 1:
        raise InputError(
            f"The rows of {quantity} are in {' and '.join(units)}: two units cannot share one axis. "
            "Convert one of them, or draw two figures."
        )
    if units[0] not in _UNITS[quantity]:
        raise InputError(
            f'The rows of {quantity} have the unit "{units[0]}", but that quantity is in '
            f"{' or '.join(_UNITS[quantity])}. The frame mislabels its unit."
        )
    return units[0]


def refuse_mixtures(rows: pd.DataFrame, quantity: str) -> None:
    """Refuse rows that must not share an axis: of several kinds, probes, sample sizes, or poolings of a layer."""
    if quantity == "accuracy":
        return
    for column, what, why, instead in (
        ("kind", "kinds", "They are not comparable.", "Keep one kind, or draw two figures"),
        ("probe", "probes", "The estimate depends on the probe.", "Trace all of them with one probe"),
        ("n", "numbers of samples N", "The estimate grows with N.", "Trace all of them on the same samples"),
    ):
        found = rows[column].unique()
        if len(found) > 1:
            raise InputError(
                f"The rows of {quantity} have {len(found)} {what}: {_examples(rows, column)}. {why} {instead}; "
                f'flow.frame[flow.frame["{column}"].eq(...)] keeps one.'
            )
    students = rows[rows["role"].eq("student")]
    for layer, group in students.groupby("layer", sort=False):
        if len(readouts := group["readout"].unique()) > 1:
            raise InputError(
                f'The rows of {quantity} at layer "{layer}" have {len(readouts)} readouts: '
                f"{_examples(group, 'readout')}. A layer with another pooling is another layer. Record it under "
                "another "
                'name, or keep one readout with flow.frame[flow.frame["readout"].eq(...)].'
            )


def _examples(rows: pd.DataFrame, column: str, most: int = 3) -> str:
    """Return the values of a column, each with the first row that has it."""
    firsts = rows.drop_duplicates(column)
    found = []
    for row in firsts.head(most).to_dict("records"):
        value = f"{row[column]:,}" if column == "n" else f'"{row[column]}"'
        found.append(f"{value} ({row['network']}, seed {row['seed']}, phase {row['phase']}, layer {row['layer']})")
    return ", ".join(found) + (f" and {len(firsts) - most} more" if len(firsts) > most else "")


def _chosen_noise(levels: tuple[float, ...], noise: float | None, quantity: str) -> float | None:
    if noise is None:
        return None if not levels else 0.3 if 0.3 in levels else levels[len(levels) // 2]
    near = [level for level in levels if abs(level - noise) < 1e-9]
    if not near:
        known = ", ".join(f"{level:g}" for level in levels) or "none"
        raise InputError(f"The flow has no {quantity} at noise {noise:g}; measured noise levels: {known}.")
    return near[0]


def _kept_networks(students: pd.DataFrame, networks: Sequence[str] | None) -> pd.DataFrame:
    if networks is None:
        return students
    known = [str(name) for name in students["network"].unique()]
    unknown = [name for name in networks if name not in known]
    if unknown or not networks:
        raise InputError(f"The flow has no student network {unknown or '(none named)'}; it has {', '.join(known)}.")
    return pd.concat([students[students["network"].eq(name)] for name in networks])


def _refuse_repeats(students: pd.DataFrame, quantity: str) -> None:
    repeated = students.duplicated([*_PLACE, "seed"])
    if repeated.any():
        first = students[repeated].iloc[0]
        differing = [name for name in ("probe", "readout", "n") if len(students[name].unique()) > 1]
        why = f" The rows differ in {' and '.join(differing)}, which one axis cannot show." if differing else ""
        raise InputError(
            f"{int(repeated.sum())} rows of {quantity} repeat a network, seed, phase and layer; the first is "
            f"{first['network']}, seed {first['seed']}, phase {first['phase']}, layer {first['layer']}.{why} "
            "Keep one of each before drawing."
        )


def layers_of(table: pd.DataFrame, network: str | None = None) -> list[str]:
    """Return the layer names of a network (or of all networks in the table) in network order."""
    rows = table if network is None else table[table["network"].eq(network)]
    if network is None:
        found: dict[str, None] = {}
        for name in rows["network"].unique():
            found.update(dict.fromkeys(layers_of(rows, str(name))))
        return list(found)
    return [str(layer) for layer in rows.sort_values("layer_index", kind="stable")["layer"].unique()]


def teacher_layers(rows: Rows) -> list[str]:
    """Return the teacher layers of a comparison, in network order."""
    ordered = rows.students.sort_values("teacher_layer_index", kind="stable")
    return [str(layer) for layer in ordered["teacher_layer"].unique() if layer]


def matching(rows: Rows, network: str) -> dict[str, str]:
    """Return the teacher layer at the same relative depth as each student layer, as the flow pairs them."""
    layers, theirs = layers_of(rows.students, network), teacher_layers(rows)
    return {layer: theirs[depth_match(place, len(layers), len(theirs))] for place, layer in enumerate(layers)}


def choose_phases(available: Sequence[int], most: int, wanted: Sequence[int] | None = None) -> list[int]:
    """Return at most ``most`` phases in increasing order: the first, the last and others equally spaced by rank.

    ``wanted`` selects phases instead; an ``InputError`` is raised if one does not exist or there are too many.

    Examples:
        >>> choose_phases([0, 1, 2, 4, 8, 16, 30], 4)
        [0, 2, 8, 30]
    """
    ordered = sorted(available)
    if wanted is not None:
        unknown = sorted(set(wanted) - set(ordered))
        if unknown or not wanted:
            raise InputError(f"The flow has no phase {unknown or '(none named)'}; it has {ordered}.")
        if len(set(wanted)) > most:
            raise InputError(f"{len(set(wanted))} phases were requested; this figure is readable up to {most}.")
        return sorted(set(wanted))
    if len(ordered) <= most:
        return ordered
    picks = np.linspace(0, len(ordered) - 1, most).round().astype(int)
    return [ordered[i] for i in dict.fromkeys(picks.tolist())]


def label_entropy(flow: Flow) -> float | None:
    """Return H(Y) of the probe labels in nats, if the flow recorded it."""
    value = flow.settings.get("label_entropy")
    return None if value is None or not np.isfinite(float(value)) else float(value)
