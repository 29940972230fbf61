"""Suggesting layer pairs for distillation from a matching of layers, each with its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd

from mikit.core.errors import InputError
from mikit.core.measurement import plain
from mikit.flow.matching.of_flow import match_flow
from mikit.flow.matching.result import NOT_A_FINDING, RULES, LayerMatch, Pooled
from mikit.flow.result import Flow
from mikit.flow.tracing.snapshots import depth_match
from mikit.functional.flow.monotone import monotone_alignment

__all__ = ["SuggestedPairs", "suggest_pairs"]

# CKA first: in training experiments, its pairs came closest to pairs of the same depth (docs/matching.md).
_PREFERRED = ("cka", "directional", "share", "held_out", "monotone", "nearest")


@final
@dataclass(frozen=True, eq=False, repr=False)
class SuggestedPairs(Mapping[tuple[str, str], Any]):
    """Layer pairs for :class:`mikit.LayerPairs`, with the evidence for each.

    Attributes:
        pairs: The loss, by student layer and teacher layer.
        evidence: One row per pair: ``layer``, ``teacher_layer``, ``value`` and ``unit`` of the rule, ``share`` if the
            rule has one, ``best`` (the choice of the rule for this layer alone), ``margin`` over the best of the others
            (negative if another layer is preferred), its ``standard_error``, ``decision`` (``"clear"``, ``"tie"``,
            ``"moved by order"``, ``"declared"`` or ``"only one"``) and ``same_depth``.
        rule: The rule.
        network: The student network.
        phase: The phase of the student.
        seeds: Number of seeds.
        fallen_back: Whether every choice was a tie, so that these are the pairs of the same depth.
        sentence: The result in words.

    Unit: per pair.

    Kind: a suggestion. It shows what is linearly recoverable, not which pairs train a better student.

    Raises:
        InputError: Only from :func:`suggest_pairs`.

    Cost: None.

    Pitfalls:
        The evidence does not show that training on these pairs is better than training on pairs of the same depth. Try
        both.

    Source: Specific to mikit.

    Example:
        >>> pairs = SuggestedPairs({("a", "b"): None}, pd.DataFrame(), "cka", "student", 3, 1, False, "One pair.")
        >>> list(pairs), len(pairs), pairs["a", "b"] is None
        ([('a', 'b')], 1, True)
    """

    pairs: Mapping[tuple[str, str], Any]
    evidence: pd.DataFrame
    rule: str
    network: str
    phase: int
    seeds: int
    fallen_back: bool
    sentence: str

    def __getitem__(self, pair: tuple[str, str]) -> Any:
        return self.pairs[pair]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and numbers."""
        return {
            "pairs": [list(pair) for pair in self.pairs],
            "evidence": plain(self.evidence.to_dict("records")),
            "rule": self.rule,
            "network": self.network,
            "phase": self.phase,
            "seeds": self.seeds,
            "fallen_back": self.fallen_back,
            "sentence": self.sentence,
        }

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = []
        for row in self.evidence.to_dict("records"):
            share = f", share {row['share']:.2f}" if np.isfinite(row["share"]) else ""
            unit = "" if row["unit"] == "dimensionless" else f" {row['unit']}"
            margin = f", margin {row['margin']:.3g} ± {row['standard_error']:.2g}{unit}"
            if not np.isfinite(row["margin"]):
                margin = ""
            lines.append(f"{row['layer']} → {row['teacher_layer']}: {row['decision']}{share}{margin}")
        return "\n".join([*lines, self.sentence])


def suggest_pairs(
    found: Flow | LayerMatch,
    *,
    loss: Any = None,
    rule: str | None = None,
    network: str | None = None,
    phase: int | None = None,
    layers: Sequence[str] | None = None,
) -> SuggestedPairs:
    """Suggest layer pairs for distillation, in network order, with the evidence for each pair.

    Formula: ``min Σ_i b(i, κ(i))`` over matchings that never go back, where ``b`` is the distance of a teacher layer
    from the one that the rule selects, as a fraction of the student layer's largest possible value if the rule has one.
    A layer that is tied with the selected one (less than two standard errors behind) costs nothing, and among equals
    the same depth is preferred: if every choice is a tie that includes the same depth, the pairs are those of the same
    depth.

    Args:
        found: The result of :func:`mikit.match_layers` or :func:`mikit.trace`.
        loss: The loss of every pair, as in :class:`mikit.LayerPairs`; :class:`mikit.VID` if None.
        rule: The rule; by default the first available of cka, directional, share, held_out, monotone and nearest.
        network: The student network; optional if there is only one.
        phase: The phase; the last by default.
        layers: Student layers to pair; all by default.

    Returns:
        A :class:`mikit.flow.SuggestedPairs`: a mapping for :class:`mikit.LayerPairs`, with evidence and a sentence.

    Unit: that of the rule.

    Kind: a suggestion. It does not show that two layers correspond.

    Raises:
        InputError: If the rule, network, phase or layer does not exist, or the network has to be named.

    Cost:
        Milliseconds.

    Pitfalls:
        - In mikit's training experiment, no suggestion trained a better student than pairs of the same depth, and the
          directional rule trained a much worse one: try the same depth first.
        - Match a trained student, or one like it: an untrained student shares only the input with the teacher.
        - Names are those of the stores; they are module names if the activations were recorded by module name.

    Source:
        Specific to mikit.

    Example:
        >>> import numpy as np
        >>> from mikit.flow import match_layers
        >>> rng = np.random.default_rng(0)
        >>> low = rng.standard_normal((600, 4))
        >>> teacher = {"low": low, "high": np.tanh(2 * low[:, :3]), "top": low[:, :1] ** 2}
        >>> student = {"one": teacher["high"] + 0.5 * rng.standard_normal((600, 3)), "two": 0.1 + teacher["top"]}
        >>> pairs = suggest_pairs(match_layers(teacher, student))
        >>> list(pairs)
        [('one', 'high'), ('two', 'top')]
    """
    if isinstance(found, Flow):
        named = None if network is None else [network]
        rules = None if rule is None else [rule]
        match = match_flow(found, rules=rules, networks=named, phases=None if phase is None else [phase])
    else:
        match = found
    chosen = rule if rule is not None else next(name for name in _PREFERRED if name in match.rules)
    pooled = match.pooled(chosen, network=network, phase=phase)
    depth = [depth_match(i, len(pooled.layers), len(pooled.teacher_layers)) for i in range(len(pooled.layers))]
    kept = _kept(pooled.layers, layers)
    path = monotone_alignment(_costs(pooled, depth)[kept])
    free = [i for i in kept if not pooled.declared[i] and len(pooled.teacher_layers) > 1]
    fallen_back = bool(free) and bool(pooled.undecided[free].all()) and list(path) == [depth[i] for i in kept]
    if loss is None:
        from mikit.estimators import VID

        loss = VID
    matched = list(zip(kept, path, strict=True))
    pairs = {(pooled.layers[i], pooled.teacher_layers[j]): loss for i, j in matched}
    evidence = pd.DataFrame([_evidence(pooled, i, j, depth[i]) for i, j in matched])
    sentence = _summary(evidence, chosen, fallen_back)
    return SuggestedPairs(pairs, evidence, chosen, pooled.network, pooled.phase, pooled.seeds, fallen_back, sentence)


def _kept(known: Sequence[str], layers: Sequence[str] | None) -> list[int]:
    if layers is None:
        return list(range(len(known)))
    if isinstance(layers, str) or not layers:
        raise InputError(f"layers is {layers!r}. Pass a list of student layers: {', '.join(known)}.")
    for name in layers:
        if name not in known:
            raise InputError(f"The match has no student layer {name!r}; it contains {', '.join(known)}.")
    return [i for i, name in enumerate(known) if name in layers]


def _costs(pooled: Pooled, depth: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the cost of every pair: its distance behind the selected layer; ties cost their distance in depth."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # From nats to fractions of the student layer's ceiling: wide layers would dominate the sum otherwise.
        scale = pooled.shares / pooled.measured
    costs = np.where(np.isfinite(scale), pooled.behind * scale, pooled.behind)
    costs = np.where(pooled.tied | np.isnan(costs), 0.0, costs)
    rows, columns = costs.shape
    costs[pooled.declared] = np.inf
    costs[pooled.declared, pooled.chosen[pooled.declared]] = 0.0
    away = np.abs(np.arange(columns)[None, :] - np.asarray(depth)[:, None])
    above = costs[np.isfinite(costs) & (costs > 0)]
    # The preference for the same depth decides between ties only: summed over all layers, it stays below half the
    # smallest measured distance.
    tiny = (float(above.min()) if above.size else 1.0) / (2.0 * rows * columns)
    return np.asarray(costs + tiny * away / columns)


def _evidence(pooled: Pooled, row: int, column: int, depth: int) -> dict[str, Any]:
    behind, errors = pooled.behind[row], pooled.errors[row]
    best = int(pooled.chosen[row])
    others = [j for j in range(len(pooled.teacher_layers)) if j != column]
    margin, error = np.nan, np.nan
    if others and not pooled.declared[row]:
        rival = best if best != column else min(others, key=lambda j: behind[j])
        margin = behind[rival] - behind[column]
        error = errors[rival] if rival != best else errors[column]
    if pooled.declared[row]:
        decision = "declared"
    elif not others:
        decision = "only one"
    elif column == best:
        decision = "tie" if pooled.undecided[row] else "clear"
    else:
        decision = "tie" if pooled.tied[row, column] else "moved by order"
    return {
        "layer": pooled.layers[row],
        "teacher_layer": pooled.teacher_layers[column],
        "value": float(pooled.measured[row, column]),
        "unit": pooled.unit,
        "share": float(pooled.shares[row, column]),
        "best": pooled.teacher_layers[best],
        "margin": float(margin),
        "standard_error": float(error),
        "basis": pooled.basis,
        "decision": decision,
        "same_depth": column == depth,
    }


def _summary(evidence: pd.DataFrame, rule: str, fallen_back: bool) -> str:
    what = f"Rule: {RULES[rule]}."
    if fallen_back:
        return (
            f"{what} Every choice is a tie (less than two standard errors), so these are the pairs of the same depth. "
            f"{NOT_A_FINDING}"
        )
    counts = evidence["decision"].value_counts()
    decisions = ", ".join(f"{counts[kind]} {kind}" for kind in _DECISIONS if kind in counts)
    same = int(evidence["same_depth"].sum())
    return f"{what} {len(evidence)} pairs: {decisions}; {same} of them at the same depth. {NOT_A_FINDING}"


_DECISIONS = ("clear", "tie", "moved by order", "declared", "only one")
