"""Information of features about class labels, as far as a declared probe can use it."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, clustered_standard_error, require_matrix
from mikit.estimators.fitting import FitData, FitRecord
from mikit.estimators.labels.label_rotation import (
    PROBES,
    FittedProbe,
    RotatedInformation,
    probe_named,
    rotated_information,
)
from mikit.functional.engine.operators import passed_if
from mikit.functional.labels.linear_probes import label_entropy
from mikit.functional.labels.nonlinear_probes import (
    HiddenLayerProbe,
    NeighborProbe,
    fit_mlp_probe,
    fit_neighbor_probe,
    neighbor_frequencies,
    neighbor_labels,
)
from mikit.functional.labels.probe import CLIP, Array

__all__ = ["LabelInformation", "RotatedInformation", "rotated_information"]


_MORE, _MORE_SHARE = 0.05, 0.1
_FEWEST_TO_COMPARE, _MOST_TO_COMPARE = 300, 3000


@final
class LabelInformation(Estimator):
    """Information about class labels ``(n,)`` that a declared probe finds in features ``(n, d)``.

    Formula: ``I_V = H(Y) - CE = mean_i [log q(y_i | x_i) - log π(y_i)]`` with ``q`` the probe fitted on other samples
    and ``π`` the class frequencies of the samples it was fitted to.

    ``fit`` needs a select part, on which it chooses the regularization. Of a training recipe only the MLP uses
    ``steps``, as its largest number of steps; 3,000 without one. ``between`` makes a starting point from example
    features: the same probe with its strongest regularization. The probe's weights and biases are parameters, so that
    as a loss they are trained together with the student. Standardization and class frequencies are buffers and keep
    their values from ``between`` or ``fit``.

    Args:
        probe: One of

            - ``"logistic"``, or equivalently ``"linear"``: multinomial, ridge chosen on the select part.
            - ``"lda"``: Gaussian classes with one covariance, shrinkage and temperature chosen on the select part; some
              ten times faster.
            - ``"mlp"``: one hidden layer of 256 units, stopped by the select part, which also chooses the temperature.
            - ``"knn"``: class frequencies ``(n_c + s π_c) / (k + s)`` among the k nearest fit samples; k and the
              prior's weight ``s > 0`` chosen on the select part, so that no class has probability 0. It has no
              gradient: as a loss it raises TypeError.

    Unit: nats.

    Kind: V-information of the probe's family. On new samples its expectation is at most ``H(Y)`` and at most the mutual
    information. It may increase with depth, because later layers make the same information easier to use. The number of
    samples sets no upper limit; :meth:`label_entropy` is the largest possible value.

    Raises:
        InputError: If a class has no row in the fit part, a label is unknown, shapes do not match, or ``fit`` gets no
            select part.

    Cost:
        Logistic: some 40 passes of ``O(n d C)`` plus ``O(d³)``; for 10,000 samples and 256 features about 0.2 s. MLP:
        up to 3,000 steps of 256 samples. kNN: ``O(n m d)`` for m samples predicted from n, whose features are kept.

    Pitfalls:
        The number depends on the probe: name it, and do not report the highest of several. ``"knn"`` weights all
        features equally and finds little among many of them. Compare values at the same sample size only, because the
        probe learns more from more samples. Samples that the network was trained on inflate the value. A network's own
        logits give less than a probe on them if they are overconfident. Spatial features are pooled first, and pooling
        hides information of early layers: report the ``readout``. As a loss, the example features must contain every
        class.

    Source:
        Xu et al., ICLR 2020 (arXiv 2002.10689), for V-information.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> y = torch.randint(0, 2, (1000,), generator=g)
        >>> x = torch.randn(1000, 2, generator=g) + 2.0 * y[:, None]
        >>> probe = LabelInformation.between(x, y)
        >>> _ = probe.fit(x[:600], y[:600], select=(x[600:800], y[600:800]), generator=g)
        >>> 0.4 < float(probe.estimate(x[800:], y[800:])) < probe.label_entropy(y)
        True
    """

    mean: Tensor
    scale: Tensor
    log_prior: Tensor
    neighbor_rows: Tensor
    neighbor_codes: Tensor
    neighbors: Tensor
    strength: Tensor

    name = "label_information"
    unit = "nats"
    kind = "V-information"
    explains = "labels"
    learned = True

    def __init__(self, probe: str = "logistic") -> None:
        super().__init__()
        self.probe = probe_named(probe)
        self.differentiable = self.probe != "knn"
        self.hidden_weights: nn.Parameter | None = None
        self.hidden_bias: nn.Parameter | None = None
        self.weights: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        return f"probe={self.probe!r}"

    @classmethod
    def between(
        cls, x: Tensor, y: Tensor, *, probe: str = "logistic", generator: torch.Generator | None = None
    ) -> Self:
        """Return an instance whose probe starts from the strongest regularization on these samples."""
        instance = cls(probe)
        instance._install(PROBES[instance.probe](_array(x), _codes(y), _classes(y)), x)
        return instance

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return a new instance with the same probe, initialized from ``x`` and ``y``."""
        return type(self).between(x, y, probe=self.probe, generator=generator)

    def _fit(self, data: FitData) -> FitRecord:
        """Fit the probe. The record counts function evaluations, or steps of the MLP."""
        if data.select is None:
            raise InputError("LabelInformation chooses its regularization on a select part; pass select=(x, y).")
        classes = _classes(data.y)
        features, codes = _array(data.x), _codes(data.y)
        chosen = (_array(data.select[0]), _known(_codes(data.select[1]), classes))
        if self.probe == "mlp":
            seed = int(torch.randint(2**62, (1,), generator=data.generator).item())
            most = 3000 if data.training is None else data.training.steps
            fitted: FittedProbe = fit_mlp_probe(features, codes, classes, select=chosen, max_steps=most, seed=seed)
        else:
            fitted = PROBES[self.probe](features, codes, classes, select=chosen)
        self._install(fitted, data.x)
        steps = fitted.iterations
        kept = fitted.best_iteration if isinstance(fitted, HiddenLayerProbe) else steps
        return FitRecord(steps, kept, ((kept, fitted.select_cross_entropy),), stopped_early=fitted.converged)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy of the probe minus that of the class frequencies: minus the V-information."""
        if not self.differentiable:
            raise TypeError(
                "LabelInformation(probe='knn') has no gradient, because the choice of neighbors is piecewise constant. "
                "Train with another probe, and report this one with estimate or mikit.measure."
            )
        return -self.pointwise(x, y).mean()

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the V-information in nats; it is negative if the probe is worse than the class frequencies."""
        return self.pointwise(x, y).mean().detach()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log q(y | x) - log π(y)`` per sample."""
        if "mean" not in self._buffers:
            raise InputError("This LabelInformation has no probe yet. Build it with between, or use mikit.measure.")
        if x.ndim != 2 or x.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"x has shape {tuple(x.shape)}, but the probe needs {self.mean.shape[0]} features. Pool or flatten "
                "feature maps first, and build the probe from features of the same width."
            )
        if y.ndim != 1 or y.shape[0] != x.shape[0] or y.is_floating_point():
            raise InputError(
                f"The labels have shape {tuple(y.shape)} and dtype {y.dtype} for {x.shape[0]} samples. Pass one class "
                "index per sample."
            )
        classes = self.log_prior.shape[0]
        known = ((y >= 0) & (y < classes)).all()
        if torch.compiler.is_compiling():  # the values are known only when the graph runs
            y = passed_if(y, known, f"A label is not one of the {classes} classes that the probe was built for.")
        elif not bool(known):
            _known(_codes(y), classes)
        with torch.autocast(x.device.type, enabled=False):
            z = ((x.to(self.mean.dtype) - self.mean) / self.scale).clamp(-CLIP, CLIP)
            log_q = self._log_probabilities(z)
            rows = torch.arange(y.shape[0], device=y.device)
            return log_q[rows, y] - self.log_prior.to(log_q.dtype)[y]

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Check whether nearest neighbors find more than this probe, although they use far fewer samples."""
        return () if self.probe == "knn" else (self._neighbors_find_more(x, y),)

    def _neighbors_find_more(self, x: Tensor, y: Tensor) -> Check:
        name = "neighbours find no more"
        order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(x.shape[0])).to(x.device)
        order = order[:_MOST_TO_COMPARE]
        fit, select, report = order[: len(order) // 2], *order[len(order) // 2 :].tensor_split(2)
        known, needed = (torch.unique(y[rows]) for rows in (fit, torch.cat([select, report])))
        if len(order) < _FEWEST_TO_COMPARE or not bool(torch.isin(needed, known).all()):
            return Check.not_applicable(name, "There are too few samples of every class to compare with neighbors.")
        other = LabelInformation("knn")
        chosen = (_array(x[select]), _codes(y[select]))
        other._install(fit_neighbor_probe(_array(x[fit]), _codes(y[fit]), len(self.log_prior), select=chosen), x)
        difference = other.pointwise(x[report], y[report]) - self.pointwise(x[report], y[report])
        more, error = float(difference.mean()), clustered_standard_error(difference)
        value = float(self.pointwise(x[report], y[report]).mean())
        threshold = max(_MORE, _MORE_SHARE * abs(value), 2 * error)
        sentence = (
            f"Nearest neighbors among {len(fit)} samples find {value + more:.3f} nats where the probe finds {value:.3f}"
        )
        if more > threshold:
            sentence += ': the features contain more than this probe can use. Also try LabelInformation("mlp").'
            return Check.warned(name, sentence, more, threshold)
        return Check.passed(name, f"{sentence}.", more, threshold)

    def label_entropy(self, y: Tensor) -> float:
        """Return ``H(Y)`` of these labels in nats: the upper limit of the expected estimate."""
        return label_entropy(_codes(y))

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 10: with fewer samples no class can occur in every part."""
        return 10

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the weights, and the biases without weight decay."""
        weights = [value for value in (self.hidden_weights, self.weights) if value is not None]
        biases = [value for value in (self.hidden_bias, self.bias) if value is not None]
        return [{"params": weights}, {"params": biases, "weight_decay": 0.0}] if weights else []

    def _log_probabilities(self, z: Tensor) -> Tensor:
        if self.weights is None or self.bias is None:
            # In the precision of the fit rows, where a row that is one of them must come out equal.
            near = neighbor_labels(
                z.to(self.neighbor_rows.dtype), self.neighbor_rows, self.neighbor_codes, int(self.neighbors)
            )
            return neighbor_frequencies(near, self.log_prior.exp(), float(self.strength)).log()
        z = z.to(self.weights.dtype)
        if self.hidden_weights is not None and self.hidden_bias is not None:
            z = nn.functional.gelu(z @ self.hidden_weights + self.hidden_bias)
        return torch.log_softmax(z @ self.weights + self.bias, dim=1)

    def _install(self, fitted: FittedProbe, like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        parameters: dict[str, Array] = {}
        # float64 whatever the features' dtype: with a large offset, a float32 mean would lose the digits that matter.
        buffers: dict[str, Array] = {
            name: np.array(getattr(fitted, name), dtype=np.float64) for name in ("mean", "scale", "log_prior")
        }
        if isinstance(fitted, NeighborProbe):
            buffers |= {
                "neighbor_rows": fitted.rows,
                "neighbor_codes": fitted.codes,
                "neighbors": np.array(fitted.neighbors),
                "strength": np.array(fitted.strength, dtype=np.float64),
            }
        else:
            parameters = {"weights": fitted.weights, "bias": fitted.bias}
        if isinstance(fitted, HiddenLayerProbe):
            parameters |= {"hidden_weights": fitted.hidden_weights, "hidden_bias": fitted.hidden_bias}
        for name, array in parameters.items():
            value = torch.from_numpy(array).to(like.device, dtype)
            present = getattr(self, name)
            if present is not None and present.shape == value.shape:
                # The parameters remain the same objects, so that an optimizer that refers to them continues to work.
                with torch.no_grad():
                    present.copy_(value)
            else:
                setattr(self, name, nn.Parameter(value))
        for name, array in buffers.items():
            self.register_buffer(name, torch.from_numpy(np.array(array)).to(like.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Resize the buffers of the fit samples to those of the state, then load it."""
        for name in ("neighbor_rows", "neighbor_codes"):
            stored = state_dict.get(prefix + name)
            if stored is not None and name in self._buffers:
                self.register_buffer(name, stored.new_empty(stored.shape, device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _array(x: Tensor) -> Array:
    require_matrix(x, "x")
    x = x.detach().cpu()
    return (x if x.dtype == torch.float64 else x.float()).numpy()


def _codes(y: Tensor) -> Array:
    if y.ndim != 1 or y.is_floating_point():
        raise InputError(
            f"The labels have shape {tuple(y.shape)} and dtype {y.dtype}; pass one class index per sample."
        )
    return y.detach().cpu().numpy().astype(np.int64)


def _classes(y: Tensor) -> int:
    return int(y.max()) + 1 if y.numel() else 0


def _known(codes: Array, classes: int) -> Array:
    wrong = np.flatnonzero((codes < 0) | (codes >= classes))
    if wrong.shape[0]:
        raise InputError(
            f"Row {wrong[0]} has class {codes[wrong[0]]}, but the probe was fitted to the classes 0 to {classes - 1}. "
            "Every class must occur in the samples the probe is fitted to."
        )
    return codes
