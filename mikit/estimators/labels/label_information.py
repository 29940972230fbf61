"""What features say about class labels, as far as a declared probe can use it."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, clustered_standard_error
from mikit.estimators.fitting import FitRecord, Training
from mikit.estimators.labels.label_rotation import (
    PROBES,
    FittedProbe,
    RotatedInformation,
    probe_named,
    rotated_information,
)
from mikit.functional.engine.operators import passed_if
from mikit.functional.labels.linear_probes import CLIP, Array, label_entropy
from mikit.functional.labels.nonlinear_probes import (
    HiddenLayerProbe,
    NeighborProbe,
    fit_mlp_probe,
    fit_neighbor_probe,
    neighbor_frequencies,
    neighbor_labels,
)

__all__ = ["LabelInformation", "RotatedInformation", "rotated_information"]


_MORE, _MORE_SHARE = 0.05, 0.1
_FEWEST_TO_LOOK, _MOST_TO_LOOK = 300, 3000


@final
class LabelInformation(Estimator):
    """Information on class labels ``(n,)`` that a declared probe finds in features ``(n, d)``.

    Formula: ``I_V = H(Y) - CE = mean_i [log q(y_i | x_i) - log π(y_i)]`` with ``q`` the probe fitted on other rows and
    ``π`` the class frequencies of the rows it was fitted to.

    ``fit`` fits the probe itself, in its own way. ``between`` makes a starting point from example features: the same
    probe with its strongest regularisation. The probe's weights and biases are parameters, so that as a loss they train
    along with the student; standardisation and class frequencies are buffers and stay as they were at ``between`` or
    ``fit``.

    Args:
        probe: ``"logistic"``, which ``"linear"`` stands for as well (multinomial, ridge chosen on the select part);
            ``"lda"`` (Gaussian classes with one covariance, shrinkage and temperature chosen on the select part; some
            ten times quicker); ``"mlp"`` (one hidden layer of 256 units, stopped by the select part, which also chooses
            the temperature); or ``"knn"`` (class frequencies ``(n_c + s π_c) / (k + s)`` among the k nearest of the fit
            rows; k and the prior's weight ``s > 0`` chosen on the select part, so that no class has probability 0). The
            last has no gradient: as a loss it raises TypeError.

    Unit: nats.

    Kind: V-information of the probe's family. On fresh rows it is at most ``H(Y)`` in expectation and a lower bound in
    expectation on the mutual information; it may grow with depth, because later layers make the same information easier
    to read. There is no ceiling in the number of rows; :meth:`label_entropy` is the most it can reach.

    Raises:
        InputError: If a class has no row in the fit part, a label is unknown, or shapes do not match.

    Cost:
        Logistic: some 40 passes of ``O(n d C)`` plus ``O(d³)``; for 10,000 rows and 256 columns about 0.2 s. MLP: up to
        3,000 steps of 256 rows. kNN: ``O(n m d)`` for m rows judged by n, and the features of the n are kept.

    Pitfalls:
        The number belongs to the probe: name it, and do not take the highest of several. ``"knn"`` weighs all columns
        alike and finds little in many of them. Compare values at one number of rows only: the probe learns more from
        more rows. Rows that the network was trained on inflate the value. A network's own logits give less than a probe
        on them when it is overconfident. Spatial features are pooled first, and pooling hides what early layers hold:
        name the readout. As a loss, the example features must hold every class.

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
        """Return the hyper-parameters."""
        return f"probe={self.probe!r}"

    @classmethod
    def between(
        cls, x: Tensor, y: Tensor, *, probe: str = "logistic", generator: torch.Generator | None = None
    ) -> Self:
        """Return an instance whose probe starts from the strongest regularisation on these rows; draws nothing."""
        instance = cls(probe)
        instance._install(PROBES[instance.probe](_array(x), _codes(y), _classes(y)), x)
        return instance

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return a new instance with the same probe, started from ``x`` and ``y``."""
        return type(self).between(x, y, probe=self.probe, generator=generator)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Fit the probe. The record counts function evaluations, or steps of the MLP.

        Of ``training`` only ``steps`` is read, and only by the MLP, as the most steps it takes; 3,000 without it.

        Raises:
            InputError: If there is no select part: the regularisation is chosen on it.
        """
        if select is None:
            raise InputError("LabelInformation chooses its regularisation on a select part; pass select=(x, y).")
        classes = _classes(y)
        features, codes = _array(x), _codes(y)
        chosen = (_array(select[0]), _known(_codes(select[1]), classes))
        if self.probe == "mlp":
            seed = int(torch.randint(2**62, (1,), generator=generator).item())
            most = 3000 if training is None else training.steps
            fitted: FittedProbe = fit_mlp_probe(features, codes, classes, select=chosen, max_steps=most, seed=seed)
        else:
            fitted = PROBES[self.probe](features, codes, classes, select=chosen)
        self._install(fitted, x)
        steps = fitted.iterations
        kept = fitted.best_iteration if isinstance(fitted, HiddenLayerProbe) else steps
        return FitRecord(steps, kept, ((kept, fitted.select_cross_entropy),), stopped_early=fitted.converged)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy of the probe less that of the class frequencies: minus the V-information."""
        if not self.differentiable:
            raise TypeError(
                "LabelInformation(probe='knn') has no gradient: which rows are neighbours is piecewise constant. Train "
                "with another probe, and report this one with estimate or mikit.measure."
            )
        return -self.pointwise(x, y).mean()

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the V-information in nats; it falls below 0 where the probe is worse than the class frequencies."""
        return self.pointwise(x, y).mean().detach()

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log q(y | x) - log π(y)`` per row."""
        if "mean" not in self._buffers:
            raise InputError("This LabelInformation has no probe yet. Build it with between, or use mikit.measure.")
        if x.ndim != 2 or x.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"x has shape {tuple(x.shape)}, but the probe reads {self.mean.shape[0]} columns. Pool or flatten "
                "feature maps first, and build the probe from features of the same width."
            )
        if y.ndim != 1 or y.shape[0] != x.shape[0] or y.is_floating_point():
            raise InputError(
                f"The labels have shape {tuple(y.shape)} and dtype {y.dtype} for {x.shape[0]} rows. Pass one class "
                "index per row."
            )
        classes = self.log_prior.shape[0]
        known = ((y >= 0) & (y < classes)).all()
        if torch.compiler.is_compiling():  # the values are known only when the graph runs
            y = passed_if(y, known, f"A label does not lie among the {classes} classes that the probe was built for.")
        elif not bool(known):
            _known(_codes(y), classes)
        with torch.autocast(x.device.type, enabled=False):
            z = ((x.to(self.mean.dtype) - self.mean) / self.scale).clamp(-CLIP, CLIP)
            log_q = self._log_probabilities(z)
            rows = torch.arange(y.shape[0], device=y.device)
            return log_q[rows, y] - self.log_prior.to(log_q.dtype)[y]

    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Ask whether neighbours find more than this probe, though they are shown far fewer rows."""
        return () if self.probe == "knn" else (self._neighbours_find_more(x, y),)

    def _neighbours_find_more(self, x: Tensor, y: Tensor) -> Check:
        name = "neighbours find no more"
        order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(x.shape[0])).to(x.device)
        order = order[:_MOST_TO_LOOK]
        fit, select, report = order[: len(order) // 2], *order[len(order) // 2 :].tensor_split(2)
        known, asked = (torch.unique(y[rows]) for rows in (fit, torch.cat([select, report])))
        if len(order) < _FEWEST_TO_LOOK or not bool(torch.isin(asked, known).all()):
            return Check(name, "not applicable", None, None, "There are too few rows of every class to ask neighbours.")
        other = LabelInformation("knn")
        chosen = (_array(x[select]), _codes(y[select]))
        other._install(fit_neighbor_probe(_array(x[fit]), _codes(y[fit]), len(self.log_prior), select=chosen), x)
        difference = other.pointwise(x[report], y[report]) - self.pointwise(x[report], y[report])
        more, error = float(difference.mean()), clustered_standard_error(difference)
        own = float(self.pointwise(x[report], y[report]).mean())
        threshold = max(_MORE, _MORE_SHARE * abs(own), 2 * error)
        said = f"Nearest neighbours among {len(fit)} rows find {own + more:.3f} nats where the probe finds {own:.3f}"
        if more > threshold:
            told = f'{said}: the features hold more than this probe can use. Look with LabelInformation("mlp") as well.'
            return Check(name, "warn", more, threshold, told)
        return Check(name, "pass", more, threshold, f"{said}.")

    def label_entropy(self, y: Tensor) -> float:
        """Return ``H(Y)`` of these labels in nats: the most the estimate can reach in expectation."""
        return label_entropy(_codes(y))

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return 10: below that no class can stand in every part."""
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
        # float64 whatever the features' dtype: a float32 mean would lose the digits that a large offset leaves.
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
                # The parameters stay the same objects, so that an optimiser that holds them goes on working.
                with torch.no_grad():
                    present.copy_(value)
            else:
                setattr(self, name, nn.Parameter(value))
        for name, array in buffers.items():
            self.register_buffer(name, torch.from_numpy(np.array(array)).to(like.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for as many fit rows as the state holds, then load it."""
        for name in ("neighbor_rows", "neighbor_codes"):
            held = state_dict.get(prefix + name)
            if held is not None and name in self._buffers:
                self.register_buffer(name, held.new_empty(held.shape, device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _array(x: Tensor) -> Array:
    if x.ndim != 2:
        raise InputError(
            f"x has shape {tuple(x.shape)}, but the probe reads rows of shape (n, d). Pool or flatten feature maps "
            "first."
        )
    x = x.detach().cpu()
    return (x if x.dtype == torch.float64 else x.float()).numpy()


def _codes(y: Tensor) -> Array:
    if y.ndim != 1 or y.is_floating_point():
        raise InputError(f"The labels have shape {tuple(y.shape)} and dtype {y.dtype}; pass one class index per row.")
    return y.detach().cpu().numpy().astype(np.int64)


def _classes(y: Tensor) -> int:
    return int(y.max()) + 1 if y.numel() else 0


def _known(codes: Array, classes: int) -> Array:
    wrong = np.flatnonzero((codes < 0) | (codes >= classes))
    if wrong.shape[0]:
        raise InputError(
            f"Row {wrong[0]} has class {codes[wrong[0]]}, but the probe was fitted to the classes 0 to {classes - 1}. "
            "Every class must occur in the rows the probe is fitted to."
        )
    return codes
