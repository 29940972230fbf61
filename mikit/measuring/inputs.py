"""From the arguments of :func:`mikit.measure` to paired samples and an estimator for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.core.inputs import as_labels, as_rows
from mikit.core.rows import FEWEST_IN_A_FOLD, checked_ids, joined_order, require_paired
from mikit.estimators import estimator_named
from mikit.estimators.base import Estimator

__all__ = ["Samples", "estimator_and_samples", "require_fit", "require_settings", "require_shapes"]

_SHAPES = {"nd": "(n, d)", "ntd": "(n, t, d)", "nchw": "(n, c, h, w)"}


@final
@dataclass(frozen=True, eq=False)
class Samples:
    """Both sides as tensors, joined by sample ids where both have them.

    Attributes:
        x: Samples of the student.
        y: Samples of the teacher, or labels.
        labels: Whether ``y`` was given as labels.
        ids: Whether ``x`` and ``y`` came with sample ids.
        order: The samples of ``y`` that were given, in the order of ``x``; None if they were not reordered.
        noise: Declared noise on ``y``, as a fraction of each feature's standard deviation.
    """

    x: Tensor
    y: Tensor
    labels: bool
    ids: tuple[bool, bool]
    order: Tensor | None = None
    noise: float | None = None

    @classmethod
    def joined(cls, x: Any, y: Any, labels: Any, x_ids: Any, y_ids: Any) -> Self:
        """Read the arguments of :func:`mikit.measure`."""
        if (y is None) == (labels is None):
            raise InputError("Pass either y, the activations to explain, or labels, but not both and not neither.")
        labelled = labels is not None
        other = "labels" if labelled else "y"
        x_values, x_ids = _values_and_ids(x, x_ids, "x")
        y_values, y_ids = _values_and_ids(labels if labelled else y, y_ids, other)
        features = as_rows(x_values, "x")
        target = as_labels(y_values) if labelled else as_rows(y_values, "y")
        if x_ids is not None:
            x_ids = checked_ids(x_ids, features.shape[0], "x")
        if y_ids is not None:
            y_ids = checked_ids(y_ids, target.shape[0], other)
        order = None
        if x_ids is not None and y_ids is not None:
            order = torch.from_numpy(joined_order(x_ids, y_ids, "x", other))
            target = target[order]
        return cls(features, target, labelled, (x_ids is not None, y_ids is not None), order)

    def with_noise(self, noise: float, seed: int) -> Self:
        """Add independent Gaussian noise to a copy of ``y``."""
        if self.labels:
            raise InputError("noise is added to the features of y, but labels were given; leave out the noise.")
        generator = torch.Generator().manual_seed(seed + 179424673)
        drawn = torch.randn(self.y.shape, generator=generator, dtype=torch.float64).to(self.y)
        return replace(self, y=self.y + noise * self.y.std(dim=0) * drawn, noise=noise)

    def with_labels(self, given: Any, estimator: str) -> Self:
        """Read the ``y`` that was given as labels, for an estimator that explains labels."""
        if self.noise is not None:
            raise InputError(f"noise is added to the features of y, but {estimator} takes y as labels.")
        values, _ = _values_and_ids(given, None, "y")
        target = as_labels(values, "y")
        return replace(self, y=target if self.order is None else target[self.order])


def require_settings(folds: int, rotations: int, permutations: int | None, noise: float | None, seed: int) -> None:
    """Require settings of :func:`mikit.measure` that fit together."""
    require.seed(seed)
    if folds < 3:
        raise InputError(f"folds is {folds}; at least 3 are needed: one to fit, one to select and one to report.")
    if not 1 <= rotations <= folds:
        raise InputError(f"rotations is {rotations}; it must lie between 1 and the number of folds, {folds}.")
    if permutations is not None and permutations < 0:
        raise InputError(f"permutations is {permutations}; it cannot be negative.")
    if noise is not None and not 0 < noise < math.inf:
        raise InputError(
            f"noise is {noise}; it is a fraction of each feature's standard deviation, above 0, such as 0.1."
        )


def estimator_and_samples(
    estimator: Estimator | type[Estimator] | str, samples: Samples, given: Any, generator: torch.Generator
) -> tuple[Estimator, Samples]:
    """Return the estimator that was asked for, built for the samples, and the samples as it reads them.

    ``given`` is the ``y`` of the call, which an estimator of label information reads as labels.
    """
    prototype = _prototype(estimator, samples, generator)
    if prototype.explains == "labels" and not samples.labels:
        samples = samples.with_labels(given, prototype.describe())
    if prototype.explains == "labels" and int(samples.y.max()) == 0:
        raise InputError("The labels contain a single class, so their entropy is 0 and there is nothing to explain.")
    require_shapes(prototype, samples.x, samples.y)
    return prototype, samples


def require_shapes(estimator: Estimator, x: Tensor, y: Tensor) -> None:
    """Require shapes that the estimator reads, and as many samples as it needs."""
    if estimator.needs_pairs:
        require_paired(x, y)
    layouts = {2: "nd", 3: "ntd", 4: "nchw"}
    for name, value in (("x", x), ("y", y)):
        if name == "y" and estimator.explains == "labels":
            continue
        if layouts.get(value.ndim) not in estimator.shapes:
            read = " or ".join(_SHAPES[shape] for shape in estimator.shapes)
            raise InputError(
                f"{name} has shape {tuple(value.shape)}, but {type(estimator).__name__} takes {read}. Pool or flatten "
                "it first, and state the pooling with the result."
            )
    width_y = 1 if estimator.explains == "labels" else y[0].numel()
    least = estimator.minimum_rows(x[0].numel(), width_y)
    if min(x.shape[0], y.shape[0]) < least:
        raise InputError(
            f"There are {min(x.shape[0], y.shape[0])} samples, but {type(estimator).__name__} needs at least {least} "
            f"for {x[0].numel()} and {width_y} features. Record more samples or reduce the features first."
        )


def require_fit(prototype: Estimator, n: int, folds: int) -> None:
    """Require as many samples as an estimator needs that is fitted on some folds and reports on others."""
    if prototype.learned and n // folds < FEWEST_IN_A_FOLD:
        raise InputError(
            f"There are {n} samples. {prototype.describe()} is fitted on some and evaluated on others, and {folds} "
            f"folds need at least {FEWEST_IN_A_FOLD * folds} samples. Record more samples."
        )


def _values_and_ids(value: Any, ids: Any, name: str) -> tuple[Any, Any]:
    """Take a stored array apart: it carries ``values`` and ``ids``."""
    if isinstance(value, (np.ndarray, Tensor)) or not (hasattr(value, "values") and hasattr(value, "ids")):
        return value, ids
    if value.ids is None:
        return value.values, ids
    if ids is not None:
        raise InputError(f"{name} carries its own sample ids; do not pass {name}_ids as well.")
    return value.values, value.ids


def _prototype(estimator: Estimator | type[Estimator] | str, samples: Samples, generator: torch.Generator) -> Estimator:
    if isinstance(estimator, str):
        if estimator == "auto" and samples.labels:
            estimator = "label_information"
        estimator = estimator_named(estimator)
    if not isinstance(estimator, Estimator) and not (isinstance(estimator, type) and issubclass(estimator, Estimator)):
        raise InputError(f"estimator is {estimator!r}; pass an estimator such as mikit.KSG(k=5), its class, or a name.")
    if samples.labels and estimator.explains != "labels":
        raise InputError(
            f'labels were given, but "{estimator.name}" explains vectors. Use "label_information", or pass the '
            "activations as y."
        )
    if isinstance(estimator, Estimator):
        return estimator
    x, y = samples.x, samples.y
    if estimator.explains == "labels" and not samples.labels:
        y = as_labels(y, "y")
    if estimator.needs_pairs:
        require_paired(x, y)
    return estimator.between(x, y, generator=generator)
