"""Phases of training in a flow: change points of curves, divergence from the teacher, and data-processing flags."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
import pandas as pd

from mikit.activations import ActivationStore
from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.measurement import plain
from mikit.flow.readings.data_processing import data_processing_flags
from mikit.flow.readings.divergence import critical_phases, flow_divergences
from mikit.flow.result import Flow
from mikit.flow.tracing.joining import fold_samples, read_rows, row_order, runs_of
from mikit.flow.tracing.snapshots import depth_match
from mikit.functional.flow.moments import factor_layer, jackknife
from mikit.functional.flow.segments import segment_curve

__all__ = ["GEOMETRY", "PhaseReading", "change_points", "flow_curves", "layer_geometry", "read_phases"]

GEOMETRY = (
    "Phases are estimated from curves of linearly decodable information under declared noise. A rise of label "
    "information is called fitting and a fall of the effective dimension compression. Both describe the geometry of "
    "classes and variance in a layer; neither is a gain or loss of information, because the layers are deterministic "
    "functions of the input."
)
_CURVE = ["network", "seed", "quantity", "layer", "layer_index", "teacher_layer"]
_CHANGE = ["before", "phase", "low", "high", "confidence", "p_value", "slope_before", "slope_after", "jump"]
_BY_FOLDS = ("recovered_share", "cka", "effective_dimension")


@final
@dataclass(frozen=True, eq=False, repr=False)
class PhaseReading:
    """The result of :func:`read_phases`.

    Attributes:
        curves: One row per curve and phase: ``value``, ``standard_error`` (as used for the fit), ``fitted`` and
            ``piece``, and from the flow ``unit``, ``kind``, ``probe``, ``readout``, ``n`` and ``verdict``.
        changes: One row per change point: ``before`` and ``phase`` (the change lies between these two recordings),
            ``low`` and ``high`` (phases that contain 95 % of its probability), ``confidence`` (the probability that it
            is at most one recorded step away), ``p_value`` (a bound), ``slope_before``, ``slope_after`` (per recorded
            step) and ``jump``.
        movements: One row per piece: first and last phase, the ``change`` over the piece, its error, and ``reading``:
            ``"rises"``, ``"falls"`` or ``"level"``; for label information and effective dimension also ``"fitting"``
            and ``"compression"``.
        divergences: :func:`flow_divergences`; empty without labels.
        critical: :func:`critical_phases`; empty without labels or with one phase.
        flags: :func:`data_processing_flags`.
        settings: The settings.

    Unit: that of each quantity.

    Kind: features of curves.

    Raises:
        InputError: Only from :func:`read_phases`.

    Cost: None.

    Pitfalls:
        Standard errors cover the sampling of the data, not the randomness of training. Compare several seeds: a change
        point that only one seed has is specific to that run.

    Source: Specific to mikit.

    Example:
        >>> empty = pd.DataFrame()
        >>> reading = PhaseReading(empty, empty, empty, empty, empty, empty, {})
        >>> str(reading).startswith("0 change points in 0 curves")
        True
    """

    curves: pd.DataFrame
    changes: pd.DataFrame
    movements: pd.DataFrame
    divergences: pd.DataFrame
    critical: pd.DataFrame
    flags: pd.DataFrame
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers."""
        names = ("changes", "movements", "divergences", "critical", "flags")
        tables = {name: plain(getattr(self, name).to_dict("records")) for name in names}
        return {**tables, "settings": plain(self.settings), "sentence": GEOMETRY}

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        count = len(self.curves.groupby(_CURVE, sort=False)) if len(self.curves) else 0
        lines = [f"{len(self.changes)} change points in {count} curves"]
        for row in self.changes.to_dict("records"):
            lines.append(
                f"{row['network']}, seed {row['seed']}, {row['layer']}: {row['quantity']} changes between phases "
                f"{row['before']} and {row['phase']} [{row['low']}, {row['high']}], confidence {row['confidence']:.2f}"
            )
        for row in self.critical.to_dict("records"):
            if row["decision"] != "none":
                lines.append(
                    f"{row['network']}, seed {row['seed']}: D_F ({row['matching']}) falls most between phases "
                    f"{row['from_phase']} and {row['to_phase']}, by {row['fall']:.3g} nats² ({row['decision']})"
                )
        kinds = [str(row["kind"]) for row in self.flags.to_dict("records")]
        lines += [f"Data processing: {kinds.count(kind)} rows flagged, {kind}" for kind in dict.fromkeys(kinds)]
        return "\n".join([*lines, GEOMETRY])


def read_phases(
    flow: Flow,
    *,
    quantity: str | None = None,
    noise: float | None = None,
    shape: str = "straight",
    level: float = 0.01,
    jitter: float = 0.0,
    geometry: pd.DataFrame | None = None,
) -> PhaseReading:
    """Estimate the phases of training from a flow.

    Formula: change points by :func:`mikit.functional.flow.segments.segment_curve` over recorded steps, ``D_F`` and its
    largest fall by :func:`mikit.flow.flow_divergences` and :func:`mikit.flow.critical_phases`, flags by
    :func:`mikit.flow.data_processing_flags`.

    Args:
        flow: A flow from :func:`mikit.trace`.
        quantity: ``"label_information"``, or ``"recovered_share"`` or ``"cka"`` with the teacher layer of the same
            depth; by default the first that the flow contains.
        noise: Teacher noise of the share; by default 0.3 if measured, otherwise the middle level.
        shape: ``"straight"`` pieces, or ``"constant"`` pieces for curves that jump between levels.
        level: Largest probability of a change point in a curve that has none, if the standard errors are correct.
        jitter: Additional error of every point from training, in the unit of the quantity: the standard deviation of a
            curve around its trend, estimated from several seeds.
        geometry: The result of :func:`layer_geometry`, to include its curves.

    Returns:
        A :class:`mikit.flow.PhaseReading`.

    Unit: that of each quantity.

    Kind: features of curves; geometry, not gains and losses of information.

    Raises:
        InputError: If the flow lacks the quantity or noise, a student has fewer than two phases, or a standard error is
            missing.

    Cost:
        Milliseconds per curve.

    Pitfalls:
        - Steps are recordings: a change point is located in the recording schedule, and slopes are per recording.
        - A smooth curve has no change point and is divided where straight pieces fit it best; with small errors it is
          divided often.
        - Standard errors of shares and CKA are estimated from a few folds; they are pooled over the phases of a curve.

    Source:
        Specific to mikit.

    Example:
        >>> from mikit.flow.result import COLUMNS, frame_of
        >>> values = [0.2, 0.2, 0.2, 0.9, 0.9, 0.9]
        >>> given = {"network": "student", "role": "student", "layer": "fc", "layer_index": 0, "seed": 0, "n": 5000}
        >>> given |= {"quantity": "label_information", "standard_error": 0.01, "unit": "nats", "d_x": 8, "d_y": 3}
        >>> given |= {"teacher_layer_index": -1, "teacher_phase": -1, "teacher_layer": ""}
        >>> flow = Flow(frame_of([{**given, "phase": p, "value": v} for p, v in enumerate(values)]), {})
        >>> reading = read_phases(flow, shape="constant")
        >>> reading.changes[["before", "phase", "low", "high"]].to_numpy().tolist()
        [[2, 3, 3, 3]]
    """
    curves = flow_curves(flow, quantity, noise=noise)
    if geometry is not None:
        curves = pd.concat([curves, geometry], ignore_index=True)
    counts = curves.groupby(_CURVE, sort=False).size()
    if counts.min() < 2:
        network, own = counts.index.to_frame(index=False)[["network", "seed"]].iloc[int(counts.argmin())]
        raise InputError(
            f"{network!r} (seed {own}) was recorded at one phase only. Phases of training need several recordings."
        )
    fitted, changes, movements = change_points(curves, shape=shape, level=level, jitter=jitter)
    labels = flow.frame[flow.frame["quantity"].eq("label_information")]
    both = labels["role"].nunique() == 2  # the teacher's and the students', which the divergence compares
    divergences = flow_divergences(flow) if both else pd.DataFrame()
    critical = critical_phases(divergences) if both else pd.DataFrame()
    settings = {"quantity": str(curves["quantity"].iloc[0]), "noise": noise, "shape": shape, "level": level}
    settings |= {"jitter": jitter, "label_entropy": flow.settings.get("label_entropy"), "n": flow.settings.get("n")}
    return PhaseReading(fitted, changes, movements, divergences, critical, data_processing_flags(flow), settings)


def flow_curves(flow: Flow, quantity: str | None = None, *, noise: float | None = None) -> pd.DataFrame:
    """Return the students' curves of one quantity; shares and CKA with the teacher layer of the same depth."""
    known = ("label_information", "recovered_share", "cka")
    frame = flow.frame[flow.frame["role"].eq("student")]
    if quantity is None:
        quantity = next((name for name in known if frame["quantity"].eq(name).any()), known[0])
    if quantity not in known:
        raise InputError(f'quantity is "{quantity}"; it must be one of {", ".join(known)}.')
    rows = frame[frame["quantity"].eq(quantity)]
    if rows.empty:
        raise InputError(f"This flow contains no student rows of {quantity}.")
    if quantity == "recovered_share":
        levels = sorted(rows["noise"].unique())
        at = noise if noise is not None else 0.3 if 0.3 in levels else levels[len(levels) // 2]
        rows = rows[np.isclose(rows["noise"], at)]
        if rows.empty:
            raise InputError(f"The flow has no share at noise {at:g}; it has {', '.join(map('{:g}'.format, levels))}.")
    if quantity != "label_information":
        others = rows["teacher_layer_index"].max() + 1
        count = rows.groupby(["network", "seed"])["layer_index"].transform("max") + 1
        depth = [depth_match(i, n, others) for i, n in zip(rows["layer_index"], count, strict=True)]
        rows = rows[rows["teacher_layer_index"].eq(pd.Series(depth, index=rows.index))]
    kept = ["phase", "value", "standard_error", "unit", "kind", "probe", "readout", "n", "verdict"]
    return rows[[*_CURVE, *kept]].reset_index(drop=True)


def change_points(
    curves: pd.DataFrame, *, shape: str = "straight", level: float = 0.01, jitter: float = 0.0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Divide every curve of a table into pieces; see :func:`read_phases` for the arguments and the three tables.

    ``curves`` has one row per curve and phase, as returned by :func:`flow_curves` and :func:`layer_geometry`.
    """
    require.one_of(shape, "shape", ("straight", "constant"))
    if not (np.isfinite(jitter) and jitter >= 0):
        raise InputError(f"jitter is {jitter}; it must be finite and not negative.")
    fitted, changes, movements = [], [], []
    for key, run in curves.groupby(_CURVE, sort=False, dropna=False):
        ordered = run.sort_values("phase").reset_index(drop=True)
        where = dict(zip(_CURVE, key, strict=True))
        values, errors = (ordered[name].to_numpy(dtype=float) for name in ("value", "standard_error"))
        if where["quantity"] in _BY_FOLDS:
            # The error of one phase comes from a few folds and is itself noisy; a phase whose error is too small by
            # chance would attract change points. All phases together give a stable error.
            errors = np.full_like(errors, np.sqrt((errors**2).mean()))
        errors = np.hypot(errors, jitter)
        pieces = segment_curve(values, errors, degree=int(shape == "straight"), level=level)
        phases = ordered["phase"].to_numpy()
        bounds = [0, *pieces.changes, len(phases)]
        piece = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        fitted.append(ordered.assign(standard_error=errors, fitted=pieces.fitted, piece=piece))
        for index, at in enumerate(pieces.changes):
            low, high = pieces.intervals[index]
            changes.append(
                {
                    **where,
                    "before": int(phases[at - 1]),
                    "phase": int(phases[at]),
                    "low": int(phases[low]),
                    "high": int(phases[high]),
                    "confidence": pieces.confidence[index],
                    "p_value": pieces.p_values[index],
                    "slope_before": pieces.slopes[index],
                    "slope_after": pieces.slopes[index + 1],
                    "jump": float(pieces.fitted[at] - pieces.fitted[at - 1]),
                }
            )
        for index, (start, end) in enumerate(pairwise(bounds)):
            moved = _movement(str(where["quantity"]), phases, errors, pieces.slopes[index], start, end)
            movements.append({**where, **moved})
    columns = [*_CURVE, *_CHANGE]
    return pd.concat(fitted, ignore_index=True), pd.DataFrame(changes, columns=columns), pd.DataFrame(movements)


def _movement(quantity: str, phases: Any, errors: Any, slope: float, start: int, end: int) -> dict[str, Any]:
    """Return the change of a piece from its first point to its last, and its name."""
    x, w = np.arange(end - start, dtype=float), 1 / errors[start:end] ** 2
    spread = float(w @ (x - (w @ x) / w.sum()) ** 2)
    change = slope * (end - start - 1)
    error = (end - start - 1) / np.sqrt(spread) if spread > 0 else 0.0
    reading = "level" if abs(change) < 2 * error or change == 0 else "rises" if change > 0 else "falls"
    called = {("label_information", "rises"): "fitting", ("effective_dimension", "falls"): "compression"}
    return {
        "from_phase": int(phases[start]),
        "to_phase": int(phases[end - 1]),
        "change": change,
        "standard_error": error,
        "reading": called.get((quantity, reading), reading),
    }


def layer_geometry(
    store: ActivationStore, *, noise: float = 0.3, layers: list[str] | None = None, folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Return the effective dimension of every layer at every phase, as curves for :func:`read_phases`.

    Formula: ``Σ λ_i / (λ_i + σ²)`` with the variances ``λ`` of the layer along its principal axes, in units of its mean
    variance: the number of directions with more variance than the noise. The standard error is a delete-one-fold
    jackknife.

    Args:
        store: A network's store.
        noise: ``σ``, in RMS SDs of the layer.
        layers: Names of the layers; all by default.
        folds: Number of folds of the jackknife.
        seed: Seed of the folds.

    Returns:
        One row per layer and phase, for :func:`read_phases`. Unit: dimensionless. Kind: an index of geometry.

    Raises:
        InputError: If a layer is not stored as ``(n, d)`` or contains NaN, or there are too few samples.

    Cost:
        ``O(n d² + k d³)`` per layer and phase.

    Pitfalls:
        A fall means that variance concentrates in fewer directions. It does not show that information is compressed.

    Source:
        The effective degrees of freedom of ridge regression; their use for compression is specific to mikit.

    Example:
        >>> import tempfile
        >>> rng = np.random.default_rng(0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ActivationStore(folder, network="student", seed=0)
        ...     store.append({"fc": rng.standard_normal((200, 4))}, ids=np.arange(200), phase=0)
        ...     store.append({"fc": rng.standard_normal((200, 4)) * [3, 0.1, 0.1, 0.1]}, ids=np.arange(200), phase=1)
        ...     layer_geometry(store)["value"].round(1).tolist()
        [3.7, 1.1]
    """
    require.positive(noise, "noise", "in units of the layer's RMS SD")
    run = runs_of(store, [store], layers, None)[0]
    samples = fold_samples(np.asarray(store.ids(store.phases[-1])), folds, seed)
    rows = []
    for phase in run.phases:
        order = row_order(run, phase, run, samples)
        for index, layer in enumerate(run.layers):
            factor = factor_layer(read_rows(run, layer, phase, order), samples.folds)
            if not factor.spectrum.any():
                raise InputError(
                    f"Layer {layer!r} of {run.called(phase)} is constant and has no effective dimension. Leave it out."
                )
            spectra = factor.fit_spectra / factor.fit_spectra.mean(axis=1, keepdims=True)
            without = (spectra / (spectra + noise**2)).sum(axis=1)
            rows.append(
                {
                    "network": run.network,
                    "seed": run.seed,
                    "quantity": "effective_dimension",
                    "layer": layer,
                    "layer_index": index,
                    "teacher_layer": "",
                    "phase": phase,
                    "value": factor.effective_dimension(noise),
                    "standard_error": jackknife(without),
                    "unit": "dimensionless",
                }
            )
    return pd.DataFrame(rows)
