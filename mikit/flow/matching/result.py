"""The result of layer matching: every pair of layers with its distance from the selected one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mikit.core.errors import InputError
from mikit.core.measurement import plain

__all__ = ["ERRORS_APART", "NOT_A_FINDING", "RULES", "LayerMatch", "Pooled", "match_frame", "tie_broken"]

Array = NDArray[Any]

RULES: Mapping[str, str] = {
    "directional": "the teacher layer from which the student layer is most linearly recoverable",
    "held_out": "the same by the held-out score alone, which prefers narrow layers if samples are few",
    "cka": "the teacher layer with the largest linear CKA",
    "share": "the teacher layer of which the student layer recovers the largest share",
    "nearest": "the teacher layer with the nearest label information",
    "monotone": "the nearest label information along a matching that never goes back",
}
NOT_A_FINDING = (
    "No rule shows that two layers correspond: early layers contain the information of later ones, which biases the "
    "choice towards them, and on networks that were not trained layer to layer no rule finds the same depth reliably."
)
_COLUMNS: Mapping[str, str] = {
    "network": "str",
    "seed": "int64",
    "phase": "int64",
    "rule": "str",
    "layer": "str",
    "layer_index": "int64",
    "teacher_layer": "str",
    "teacher_layer_index": "int64",
    "value": "float64",
    "unit": "str",
    "share": "float64",
    "held_out": "float64",
    "behind": "float64",
    "standard_error": "float64",
    "basis": "str",
    "chosen": "bool",
    "tied": "bool",
    "declared": "bool",
}
_RUN = ["network", "seed", "phase", "rule"]
ERRORS_APART = 2.0


@final
@dataclass(frozen=True)
class Pooled:
    """Cells of one network, phase and rule, averaged over its seeds; tables are ``(student layers, teacher layers)``.

    Attributes:
        measured: Values, in ``unit``.
        shares: Shares; NaN for rules without shares.
        held_out: Held-out scores, by which ties are broken; NaN for rules without them.
        behind: Distance of each cell behind the chosen one, in ``unit``; NaN if the partner is a convention.
        chosen: The chosen teacher layer of every student layer.
        declared: Whether the partner is a convention.
        basis: What the standard errors are estimated from.
    """

    network: str
    phase: int
    layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    measured: Array
    unit: str
    shares: Array
    held_out: Array
    behind: Array
    errors: Array
    chosen: Array
    declared: Array
    seeds: int
    basis: str

    @property
    def tied(self) -> Array:
        """Cells that are less than two standard errors behind the chosen one."""
        others = np.arange(self.measured.shape[1])[None, :] != self.chosen[:, None]
        with np.errstate(invalid="ignore"):
            return np.asarray(others & (self.behind < ERRORS_APART * self.errors))

    @property
    def undecided(self) -> Array:
        """Student layers whose choice is a tie."""
        return np.asarray(self.tied.any(axis=1))


@final
@dataclass(frozen=True, eq=False, repr=False)
class LayerMatch:
    """The result of :func:`mikit.match_layers`: the teacher layer of every student layer by each rule, with margins.

    Attributes:
        frame: One row per network, seed, phase, rule, student layer and teacher layer. ``value`` is what the rule
            compares, in ``unit``: nats recovered (directional), an index (CKA), a share, or a squared gap in nats²
            (nearest and monotone, where smaller is better). ``share`` is the value divided by its largest possible
            value, if the rule has one, and ``held_out`` the held-out score that breaks ties. ``behind`` is the distance
            from the chosen layer, negative if a tie was broken against this one; ``standard_error`` is the error of
            that difference and ``basis`` what the error is estimated from. ``chosen`` marks the choice, ``tied`` the
            layers less than two standard errors behind it, and ``declared`` the rows whose partner is a convention.
        settings: The settings of the matching.

    Unit: per row.

    Kind: an index of similarity. It does not show that two layers correspond.

    Raises:
        InputError: From :meth:`pooled`, for an unknown network, phase or rule.

    Cost: A few hundred bytes per row.

    Pitfalls:
        ``behind`` compares the best layer with the others after the best was chosen on the same samples, which makes it
        slightly too large; two standard errors are exploratory, not a test. Errors over samples do not cover the
        choice of training seed: use several seeds.

    Source: The schema is specific to mikit.

    Example:
        >>> from mikit.flow import match_layers
        >>> rng = np.random.default_rng(0)
        >>> low = rng.standard_normal((600, 4))
        >>> teacher = {"low": low, "high": np.tanh(2 * low[:, :3])}
        >>> student = {"only": teacher["high"] + 0.5 * rng.standard_normal((600, 3))}
        >>> match_layers(teacher, student, rules=["directional"]).chosen[["layer", "teacher_layer", "decision"]]
          layer teacher_layer decision
        0  only          high    clear
    """

    frame: pd.DataFrame
    settings: dict[str, Any]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules, in the order of the frame."""
        return tuple(str(rule) for rule in self.frame["rule"].unique())

    @property
    def networks(self) -> tuple[str, ...]:
        """The student networks."""
        return tuple(str(name) for name in self.frame["network"].unique())

    @property
    def phases(self) -> tuple[int, ...]:
        """The phases, ascending."""
        return tuple(sorted(int(phase) for phase in self.frame["phase"].unique()))

    @property
    def chosen(self) -> pd.DataFrame:
        """One row per network, seed, phase, rule and student layer: the choice, the runner-up, and the margin.

        ``decision`` is ``"clear"``, ``"tie"`` if another layer is less than two standard errors behind, ``"declared"``
        if the partner is a convention, or ``"only one"`` if there is only one teacher layer.
        """
        found = []
        for _, cells in self.frame.groupby([*_RUN, "layer_index"], sort=False):
            best = cells[cells["chosen"]].iloc[0]
            others = cells[~cells["chosen"]].sort_values("behind", kind="stable")
            after = others.iloc[0] if len(others) and not best["declared"] else None
            decision = "only one" if others.empty else "tie" if others["tied"].any() else "clear"
            found.append(
                {
                    **best[[*_RUN, "layer", "layer_index", "teacher_layer", "teacher_layer_index"]].to_dict(),
                    **best[["value", "unit", "share"]].to_dict(),
                    "runner_up": "" if after is None else after["teacher_layer"],
                    "margin": np.nan if after is None else after["behind"],
                    "standard_error": np.nan if after is None else after["standard_error"],
                    "basis": best["basis"],
                    "decision": "declared" if best["declared"] else decision,
                }
            )
        return pd.DataFrame(found)

    def pooled(self, rule: str, *, network: str | None = None, phase: int | None = None) -> Pooled:
        """Return the cells of one network, phase and rule as tables, averaged over the seeds.

        With several seeds, a standard error is the larger of the one from the spread over seeds and the combined one of
        the seeds.

        Args:
            rule: The rule.
            network: The student network; optional if there is only one.
            phase: The phase; the last by default.

        Raises:
            InputError: If the rule, network or phase does not exist, or the network has to be named.
        """
        frame = self.frame[self.frame["rule"].eq(rule)]
        if frame.empty:
            raise InputError(f'This match has no rule "{rule}"; it contains {", ".join(self.rules)}.')
        if network is None and len(self.networks) > 1:
            raise InputError(f"This match contains the networks {', '.join(self.networks)}; name one with network=.")
        name = self.networks[0] if network is None else network
        frame = frame[frame["network"].eq(name)]
        if frame.empty:
            raise InputError(f"This match has no network {name!r}; it contains {', '.join(self.networks)}.")
        at = int(frame["phase"].max()) if phase is None else phase
        if frame[frame["phase"].eq(at)].empty:
            raise InputError(f"This match has no phase {at} of {name!r}; it has {', '.join(map(str, self.phases))}.")
        return _pool(frame[frame["phase"].eq(at)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers."""
        return {
            "settings": plain(self.settings),
            "cells": plain(self.frame.to_dict("records")),
            "chosen": plain(self.chosen.to_dict("records")),
            "sentence": NOT_A_FINDING,
        }

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = []
        for (network, seed, phase, rule), rows in self.chosen.groupby(_RUN, sort=False):
            picks = ", ".join(
                f"{row.layer} → {row.teacher_layer}" + ("" if row.decision == "clear" else f" ({row.decision})")
                for row in rows.itertuples()
            )
            lines.append(f"{network}, seed {seed}, phase {phase}, {rule}: {picks}")
        return "\n".join([*lines, NOT_A_FINDING])


def match_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return cells as the tidy table of a :class:`LayerMatch`."""
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(dict(_COLUMNS))


def _pool(frame: pd.DataFrame) -> Pooled:
    """Return the tables of one network, phase and rule."""
    ordered = frame.sort_values(["layer_index", "teacher_layer_index", "seed"], kind="stable")
    layers = tuple(str(name) for name in ordered["layer"].unique())
    theirs = tuple(str(name) for name in ordered.sort_values("teacher_layer_index")["teacher_layer"].unique())
    seeds = int(ordered["seed"].nunique())
    shape = (len(layers), len(theirs), seeds)
    if len(ordered) != np.prod(shape):
        raise InputError(
            f"The seeds of {frame['network'].iloc[0]!r} do not have the same layers, so they cannot be averaged. Match "
            "each seed separately."
        )
    values, shares, held_out, behind, errors = (
        ordered[name].to_numpy(dtype=float).reshape(shape)
        for name in ("value", "share", "held_out", "behind", "standard_error")
    )
    declared = np.asarray(ordered["declared"].to_numpy(dtype=bool).reshape(shape).any(axis=(1, 2)))
    chosen = ordered["chosen"].to_numpy(dtype=bool).reshape(shape)[:, :, 0].argmax(axis=1)
    unit, basis = str(ordered["unit"].iloc[0]), str(ordered["basis"].iloc[0])
    apart, error = behind[:, :, 0], errors[:, :, 0]
    if seeds > 1:
        # The choice is the layer that is best on average over the seeds, not the most frequent choice of the seeds.
        basis = f"{seeds} seeds, or {basis} where that is larger"
        apart, error = np.full(shape[:2], np.nan), np.full(shape[:2], np.nan)
        for row in np.flatnonzero(~declared):
            best = int(behind[row].mean(axis=1).argmin())
            chosen[row] = tie_broken(*_over_seeds(behind[row], errors[row], best), best, held_out[row].mean(axis=1))
            apart[row], error[row] = _over_seeds(behind[row], errors[row], chosen[row])
    return Pooled(
        str(frame["network"].iloc[0]),
        int(frame["phase"].iloc[0]),
        layers,
        theirs,
        values.mean(axis=2),
        unit,
        shares.mean(axis=2),
        held_out.mean(axis=2),
        apart,
        error,
        chosen,
        declared,
        seeds,
        basis,
    )


def _over_seeds(behind: Array, errors: Array, at: int) -> tuple[Array, Array]:
    """Return the distance of each cell ``(cells, seeds)`` behind the one ``at``, and its error, over the seeds."""
    apart, seeds = behind - behind[at], behind.shape[1]
    within = np.sqrt((errors**2 + errors[at] ** 2).sum(axis=1)) / seeds
    # With two or three seeds their spread can be small by chance; the error cannot be below that of the samples.
    return apart.mean(axis=1), np.maximum(within, apart.std(axis=1, ddof=1) / np.sqrt(seeds))


def tie_broken(behind: Array, errors: Array, best: int, held_out: Array) -> int:
    """Return the cell with the largest held-out score among those tied with the best; the best without scores."""
    if np.isnan(held_out).any():
        return best
    tied = (behind < ERRORS_APART * errors) | (np.arange(behind.shape[0]) == best)
    return int(np.where(tied, held_out, -np.inf).argmax())
