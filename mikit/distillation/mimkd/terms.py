"""The terms of MIMKD: its options, the widths of the features it is built for, and the maps that each term uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

from mikit.core import require
from mikit.core.errors import InputError
from mikit.distillation.mimkd.contrast import ContrastSettings
from mikit.distillation.mimkd.features import NetworkFeatures

__all__ = ["FeatureWidths", "MIMKDOptions", "Term", "terms_of"]

Term = tuple[str, str | None]  # "global", "local" or "feature", and the name of its map


@final
@dataclass(frozen=True, kw_only=True)
class MIMKDOptions:
    """The arguments of :class:`mikit.MIMKD` besides the widths, as they were passed."""

    local: Sequence[str] | None
    global_weight: float
    local_weight: float
    feature_weight: float
    objective: str
    critic: str | Mapping[str, str]
    negatives: str | None
    grid: int | None
    width: int
    bound: float
    critic_rate: float | None

    def __post_init__(self) -> None:
        for term, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{term}_weight is {weight}; it must be finite and cannot be negative.")
        if not any(self.weights.values()):
            raise InputError("All weights are 0, so there is no loss. Leave at least one above 0.")
        if self.grid is not None and self.grid < 1:
            raise InputError(f"grid is {self.grid}; it must be at least 1, or None to leave maps at their size.")
        if self.critic_rate is not None:
            require.positive(self.critic_rate, "critic_rate")
        if not isinstance(self.critic, str) and set(self.critic) != set(self.weights):
            raise InputError(
                f"critic has the names {_listed(self.critic)}; pass one critic for each of {_listed(self.weights)}, or "
                "one string."
            )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each kind of term."""
        return {"global": self.global_weight, "local": self.local_weight, "feature": self.feature_weight}

    def contrasts(self) -> dict[str, ContrastSettings]:
        """Return the settings of the contrast of each kind of term."""
        return {
            term: ContrastSettings(
                objective=self.objective,
                critic=self.critic if isinstance(self.critic, str) else self.critic[term],
                negatives=self.negatives,
                width=self.width,
                bound=self.bound,
            )
            for term in self.weights
        }


@final
@dataclass(frozen=True)
class FeatureWidths:
    """Widths of student and teacher: those of the vectors, and by name the channels of the maps."""

    vectors: tuple[int, int] | None
    maps: Mapping[str, tuple[int, int | None]]

    @classmethod
    def of(cls, student: NetworkFeatures, teacher: NetworkFeatures) -> Self:
        """Return the widths of example features; refuse features that do not belong together."""
        alone = [name for name in teacher.maps if name not in student.maps]
        if alone:
            raise InputError(
                f"The teacher has the maps {_listed(alone)}, which the student lacks: it has {_listed(student.maps)}. "
                "Give maps that belong together the same name in both, and leave the others out."
            )
        maps = {
            name: (one.shape[1], teacher.maps[name].shape[1] if name in teacher.maps else None)
            for name, one in student.maps.items()
        }
        vectors = None
        if student.vector is not None and teacher.vector is not None:
            vectors = student.vector.shape[1], teacher.vector.shape[1]
        elif (student.vector is None) != (teacher.vector is None):
            raise InputError(
                f"The {'teacher' if teacher.vector is None else 'student'} has no vector (n, d), and the other network "
                "has one. Pass one for each, such as pooled features, or none."
            )
        return cls(vectors, maps)

    def require(self, features: NetworkFeatures) -> None:
        """Raise :class:`~mikit.InputError` unless ``features`` have the widths of their side."""
        side = 0 if features.side == "student" else 1
        widths: dict[str, int | None] = {} if self.vectors is None else {"vector": self.vectors[side]}
        widths |= {name: both[side] for name, both in self.maps.items() if both[side] is not None}
        found = {name: tensor.shape[1] for name, tensor in features.tensors.items()}
        if found != widths:
            raise InputError(
                f"The {features.side}'s features have the widths {found}, but this MIMKD was built for {widths}. The "
                "student comes first; build the loss with MIMKD.between from features of the same layers."
            )

    def of_term(self, term: Term) -> tuple[int, int]:
        """Return the widths of the cells that a term contrasts."""
        kind, name = term
        student = self.vectors[0] if name is None and self.vectors else self.maps[str(name)][0]
        teacher = self.maps[str(name)][1] if kind == "feature" else self.vectors and self.vectors[1]
        assert teacher is not None
        return student, teacher


def terms_of(widths: FeatureWidths, options: MIMKDOptions) -> tuple[Term, ...]:
    """Return the terms of a loss; refuse terms without features, and maps that no term uses."""
    maps, weights = widths.maps, options.weights
    local = _local_maps(maps, options)
    shared = [name for name, (_, teacher) in maps.items() if teacher is not None]
    missing = {
        "global": widths.vectors is None and "a vector (n, d) of each network",
        "local": (widths.vectors is None or not local) and "a vector of each network and a map of the student",
        "feature": not shared and "a map (n, c, h, w) of each network with the same name",
    }
    for kind, needed in missing.items():
        if weights[kind] and needed:
            raise InputError(f"The {kind} term needs {needed}. Pass it, or {kind}_weight=0 to leave the term out.")
    unread = [name for name in maps if name not in local and not (name in shared and weights["feature"])]
    if unread:
        raise InputError(
            f"No term uses the maps {_listed(unread)}. Give the teacher's map the same name, name them in local=, "
            "or leave them out."
        )
    terms: list[Term] = [("global", None)] if weights["global"] else []
    terms += [("local", name) for name in local]
    return tuple(terms + [("feature", name) for name in shared if weights["feature"]])


def _local_maps(maps: Mapping[str, object], options: MIMKDOptions) -> tuple[str, ...]:
    if not options.weights["local"]:
        return ()
    chosen = tuple(maps)[-1:] if options.local is None else tuple(options.local)
    unknown = [name for name in chosen if name not in maps]
    if unknown:
        raise InputError(f"local names {_listed(unknown)}, but the student's maps are {_listed(maps)}.")
    return chosen


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
