"""VID: predict the teacher from the student with a Gaussian whose variance is learned per channel."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, softplus

from mikit.critics import HEADS, mean_head
from mikit.errors import InputError
from mikit.estimators.base import Estimator, seeded
from mikit.estimators.fitting import FitRecord, Training
from mikit.functional.variational import difference_of_entropies, gaussian_nll, residual_variance, ridge_regression
from mikit.inputs import refuse_non_finite
from mikit.measurement import Check
from mikit.rows import require_paired

__all__ = ["VID"]

REDUCTIONS = ("mean", "nats")
_LOG_2PI = math.log(2 * math.pi)


@final
class VID(Estimator):
    """Variational information distillation between rows ``(n, d)`` or feature maps ``(n, c, h, w)``.

    Formula: ``q(t | s) = Π_c,h,w N(t_chw; μ_chw(s), σ_c²)`` with a learned mean ``μ`` and one learned variance per
    teacher channel. ``forward`` is ``-log q`` up to constants:

    - ``reduction="mean"``: mean over samples, channels and positions of ``½ [ (t - μ)² / σ_c² + log σ_c² ]``, as the
      released codes reduce.
    - ``reduction="nats"``: nats per sample, ``½ Σ_c,h,w [ (t - μ)² / σ_c² + log σ_c² + log 2π ]``, mean over samples.

    ``estimate`` is the difference of entropies ``Σ_c,h,w [ h0(t_c) - h_q(t_c | s) ]``: the mean over rows of
    ``log q(t | s) - log q0(t)``, where ``q0`` is Gaussian with the mean and variance that the teacher's channels had in
    the fit data.

    The head works on standardised features: ``μ_c = m_c + V_c^½ head_c((s - a) / b)`` and
    ``σ_c² = V_c (softplus(α_c) + variance_floor)``, with the teacher's mean ``m_c`` and variance ``V_c`` in buffers.
    The start is ``σ_c² = V_c`` exactly, and a rescaled teacher trains the same way. Larger maps are average-pooled to
    the smaller height and the smaller width.

    Args:
        d_student: The student's width or channels.
        d_teacher: The teacher's width or channels.
        spatial: Whether features are maps ``(n, c, h, w)``.
        arch: The mean's network: ``"linear"``, ``"linear2"``, ``"relu3"`` or ``"bn_relu3x2"``; see
            :func:`mikit.critics.mean_head`.
        reduction: ``"mean"`` or ``"nats"``; concerns ``forward`` only.
        variance_floor: Smallest ``σ_c² / V_c``. A channel can gain about ``½ log(1 / variance_floor)`` nats at most:
            3.5 for the default.

    Unit: nats (``estimate``).

    Kind: estimate. It is neither a lower nor an upper bound on the mutual information: ``q`` makes it too small, the
    Gaussian ``q0`` and the sum over correlated channels and positions make it too large. Directional: student to
    teacher. On the rows that fitted the head it is too large.

    Raises:
        InputError: If shapes, widths or options do not fit.

    Cost:
        One pass over the maps: ``O(n h w d_student d_teacher)`` time and a few temporaries of the teacher's size.

    Pitfalls:
        The loss is not an information: it lacks the teacher's entropy, and negative values are right. As a loss with
        ``reduction="mean"`` it usually wants a weight near 10 beside a cross-entropy; with 1 it trains little.
        ``reduction="nats"`` is larger by ``c h w``. A teacher that is a function of the student's features has infinite
        information; the number then shows the variance floor. Post-ReLU channels have an atom at 0 that no Gaussian
        describes: read features before the ReLU. Build from features of a student in training mode: an untrained
        network in evaluation mode has uncalibrated batch-norm statistics, and heads built on those train badly. Teacher
        channels that are constant in the example features are left out for good, with a warning. The student's scale is
        taken from its example features and does not follow it.

    Source:
        Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019; loss and heads as in released codes, the start at the teacher's
        variance and the standardisation are ours.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> s = torch.randn(2000, 4, generator=g)
        >>> t = 0.8 * s + 0.6 * torch.randn(2000, 4, generator=g)  # the truth is 2.04 nats
        >>> vid = VID.between(s[:1000], t[:1000], generator=g)
        >>> _ = vid.fit(s[:1000], t[:1000], generator=g)
        >>> 1.8 < float(vid.estimate(s[1000:], t[1000:])) < 2.3
        True
    """

    student_mean: Tensor
    student_scale: Tensor
    teacher_mean: Tensor
    teacher_variance: Tensor
    live: Tensor

    name = "vid"
    unit = "nats"
    kind = "estimate"
    learned = True
    shapes = ("nd", "nchw")
    recipe = Training(steps=1000, batch=512, learning_rate=1e-2, weight_decay=1e-2, every=25, patience=10)

    def __init__(
        self,
        d_student: int,
        d_teacher: int,
        *,
        spatial: bool = False,
        arch: str = "linear",
        reduction: str = "mean",
        variance_floor: float = 1e-3,
    ) -> None:
        super().__init__()
        if arch not in HEADS:
            raise InputError(f'There is no VID head "{arch}". Use one of {", ".join(HEADS)}.')
        if reduction not in REDUCTIONS:
            raise InputError(f'There is no VID reduction "{reduction}". Use "mean" or "nats".')
        if not 0 < variance_floor < 1:
            raise InputError(
                f"variance_floor is {variance_floor}; it is a share of the teacher's variance and must lie in (0, 1)."
            )
        self.d_student = d_student
        self.d_teacher = d_teacher
        self.spatial = spatial
        self.arch = arch
        self.reduction = reduction
        self.variance_floor = variance_floor
        self.head = mean_head(arch, d_student, d_teacher, spatial=spatial)
        self.alpha = nn.Parameter(self._alpha_for(torch.ones(d_teacher)))
        self.register_buffer("student_mean", torch.zeros(d_student))
        self.register_buffer("student_scale", torch.ones(d_student))
        self.register_buffer("teacher_mean", torch.zeros(d_teacher))
        self.register_buffer("teacher_variance", torch.ones(d_teacher))
        self.register_buffer("live", torch.ones(d_teacher, dtype=torch.bool))

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        arch: str = "linear",
        reduction: str = "mean",
        variance_floor: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set sizes, layout, the teacher's mean and variance and the start.

        The student is centred and divided by one scale for all its columns, so that a column which is still quiet at
        the start of training cannot explode later; ``fit`` uses a scale per column.

        Args:
            x: Student features ``(n, d)`` or ``(n, c, h, w)``. A few hundred samples or positions make good statistics.
            y: Teacher features in the same layout; widths, heights and widths of maps may differ.
            arch: As in the class.
            reduction: As in the class.
            variance_floor: As in the class.
            generator: Where the head's start comes from; torch's global generator if None.

        Warns:
            UserWarning: If teacher channels are constant: they are left out.
        """
        _require_layout(x, y)
        refuse_non_finite(x, "x")
        refuse_non_finite(y, "y")
        with seeded(generator):
            estimator = cls(
                x.shape[1],
                y.shape[1],
                spatial=x.ndim == 4,
                arch=arch,
                reduction=reduction,
                variance_floor=variance_floor,
            ).to(x.device)
        estimator._take_statistics(*_pooled_alike(x, y), scale_per_column=False)
        return estimator

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyper-parameters, built for ``x`` and ``y``."""
        return type(self).between(
            x,
            y,
            arch=self.arch,
            reduction=self.reduction,
            variance_floor=self.variance_floor,
            generator=generator,
        )

    @property
    def variance(self) -> Tensor:
        """The learned ``σ_c²``, ``(d_teacher,)``; 0 for channels that are left out."""
        return self._relative_variance() * torch.where(self.live, self.teacher_variance, 0.0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; the teacher ``y`` gets no gradient."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._aligned(x, y.detach())
            per_channel = gaussian_nll(self.head(self._student(x)), self._teacher(y), self._relative_variance())
            # Back from standardised units: the change of variables adds log V_c^½.
            per_channel = per_channel + 0.5 * self._safe_variance().log().to(per_channel.dtype)
            if self.reduction == "nats":
                return torch.where(self.live, per_channel, 0.0).sum() * math.prod(y.shape[2:])
            per_channel = torch.where(self.live, per_channel - 0.5 * _LOG_2PI, 0.0)
            return per_channel.sum() / self.live.sum().clamp(min=1)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the difference of entropies over all rows, in nats; negative where the head misleads."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log q(t | s) - log q0(t)`` per sample, ``(n,)``, in nats."""
        was_training = self.head.training
        self.head.eval()  # batch normalisation must neither read nor update this batch's statistics
        try:
            with torch.autocast(x.device.type, enabled=False):
                x, y = self._aligned(x, y)
                prediction = self.head(self._student(x))
        finally:
            self.head.train(was_training)
        return difference_of_entropies(
            prediction,
            self._teacher(y),
            self._relative_variance(),
            reference_mean=torch.zeros_like(self.alpha),
            reference_variance=torch.ones_like(self.alpha),
            channels=self.live,
        )

    @torch.no_grad()
    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return what summing channels as if independent adds: warns above a tenth of the value, fails from 30 %.

        The sum exceeds the difference of joint Gaussian entropies by the total correlation of the teacher's channels
        less that of the residuals. Positions of a map are counted as samples of one law.
        """
        name = "channels counted once"
        value = float(self.estimate(x, y))
        x, y = self._aligned(x, y)
        target = _as_samples(self._teacher(y))[:, self.live].double()
        residual = target - _as_samples(self.head(self._student(x)))[:, self.live].double()
        if target.shape[0] < 5 * target.shape[1]:
            return (Check(name, "warn", None, None, "Too few rows to say how often correlated channels are counted."),)
        positions = math.prod(y.shape[2:])
        surplus = (_total_correlation(target) - _total_correlation(residual)) * positions
        said = f"Correlated teacher channels are counted as if independent, which adds {surplus:.3f} nats"
        threshold = max(0.05, 0.1 * abs(value))
        if abs(surplus) > max(0.05, 0.3 * abs(value)):
            return (Check(name, "fail", surplus, 0.3 * abs(value), f"{said} to the value {value:.3f}."),)
        if abs(surplus) > threshold or positions > 1:
            extra = "; positions are summed as well" if positions > 1 else ""
            return (Check(name, "warn", surplus, threshold, f"{said}{extra}."),)
        return (Check(name, "pass", surplus, threshold, f"{said}."),)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        select: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator,
        training: Training | None = None,
    ) -> FitRecord:
        """Fit head and variances, and take the statistics of both sides from the fit rows.

        The heads ``"linear"`` and ``"linear2"`` are fitted in closed form on all rows given (a ridge regression per
        teacher channel, with variances for new rows by generalised cross-validation). The others are trained by
        minibatches; their variances are the residual variances on ``select``, or on the fit rows where there is no such
        part.
        """
        x, y = self._aligned(x, y)
        if select is not None:
            select = self._aligned(*select)
        if self.arch in ("linear", "linear2"):
            if select is not None:
                x, y = torch.cat([x, select[0]]), torch.cat([y, select[1]])
            self._take_statistics(x, y, scale_per_column=True)
            self._fit_linear(x, y)
            return FitRecord()
        self._take_statistics(x, y, scale_per_column=True)
        record = super().fit(x, y, select=select, generator=generator, training=training)
        with torch.no_grad():
            watched_x, watched_y = select if select is not None else (x, y)
            residual = residual_variance(self.head(self._student(watched_x)), self._teacher(watched_y))
            self.alpha.copy_(self._alpha_for(residual))
        return record

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the head in one group and the variances, undecayed, in another."""
        return [{"params": list(self.head.parameters())}, {"params": [self.alpha], "weight_decay": 0.0}]

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return (
            f"{self.d_student}, {self.d_teacher}, spatial={self.spatial}, arch={self.arch!r}, "
            f"reduction={self.reduction!r}, variance_floor={self.variance_floor:g}"
        )

    def _fit_linear(self, x: Tensor, y: Tensor) -> None:
        regression = ridge_regression(_as_samples(self._student(x)), _as_samples(self._teacher(y)))
        with torch.no_grad():
            first, last = self.head[0], self.head[-1]
            assert isinstance(first, nn.Linear | nn.Conv2d)
            assert isinstance(last, nn.Linear | nn.Conv2d)
            if last is not first:  # two layers with nothing between them: the second passes on what the first predicts
                last.weight.copy_(torch.eye(self.d_teacher).reshape(last.weight.shape))
            first.weight.copy_(regression.weight.reshape(first.weight.shape))
            if first.bias is not None:  # without one, the bias is 0 because both sides are centred on these rows
                first.bias.copy_(regression.bias)
            self.alpha.copy_(self._alpha_for(regression.variance))

    @torch.no_grad()
    def _take_statistics(self, x: Tensor, y: Tensor, *, scale_per_column: bool) -> None:
        for name, values in (("x", x), ("y", y)):
            span = float((values.amax() - values.amin()).detach())
            if span > 0 and not 1e-15 < span < 1e15:
                raise InputError(
                    f"The values of {name} span {span:.1e}, which float32 cannot square. Divide them by a constant "
                    "first; the information does not change."
                )
        mean, variance = _moments(x)
        scale = variance.sqrt()
        if not scale_per_column:
            scale = variance.mean().sqrt().expand_as(scale)
        usable = scale > torch.finfo(mean.dtype).eps * mean.abs()
        self.student_mean = mean
        self.student_scale = torch.where(usable, scale, 1.0)
        self.teacher_mean, self.teacher_variance = _moments(y)
        self.live = self.teacher_variance.sqrt() > torch.finfo(mean.dtype).eps * self.teacher_mean.abs()
        dead = (~self.live).nonzero()[:, 0].tolist()
        if dead:
            warnings.warn(
                f"{len(dead)} of {self.d_teacher} teacher channels are constant in the example features (the first is "
                f"channel {dead[0]}). VID leaves them out: nothing can be learned about them.",
                stacklevel=3,
            )

    def _aligned(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        _require_layout(x, y)
        if (x.ndim == 4) != self.spatial:
            raise InputError(
                f"This VID was built for {'maps (n, c, h, w)' if self.spatial else 'rows (n, d)'}, but x has shape "
                f"{tuple(x.shape)}. Build it with VID.between from features of that layer."
            )
        if x.shape[1] != self.d_student or y.shape[1] != self.d_teacher:
            raise InputError(
                f"x has {x.shape[1]} columns and y has {y.shape[1]}, but this VID was built for a student of "
                f"{self.d_student} and a teacher of {self.d_teacher}. The student comes first."
            )
        return _pooled_alike(x, y)

    def _student(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return ((x - self.student_mean.view(shape)) / self.student_scale.view(shape)).to(self.alpha.dtype)

    def _teacher(self, y: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (y.ndim - 2)
        return ((y - self.teacher_mean.view(shape)) / self._safe_variance().sqrt().view(shape)).to(self.alpha.dtype)

    def _safe_variance(self) -> Tensor:
        return torch.where(self.live, self.teacher_variance, 1.0)

    def _relative_variance(self) -> Tensor:
        return softplus(self.alpha) + self.variance_floor

    def _alpha_for(self, relative_variance: Tensor) -> Tensor:
        """Return the ``α`` that makes ``σ_c² / V_c`` this value, or just above the floor where it is below."""
        excess = (relative_variance.double() - self.variance_floor).clamp(min=1e-3 * self.variance_floor)
        return (excess + torch.log(-torch.expm1(-excess))).to(torch.get_default_dtype())


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance per channel, in float64 for float64 features and float32 otherwise."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    x64 = x.detach().double()
    mean = x64.mean(dim=axes, keepdim=True)
    variance = (x64 - mean).square().mean(dim=axes)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return mean.flatten().to(dtype), variance.to(dtype)


def _total_correlation(rows: Tensor) -> float:
    """Return the Gaussian total correlation of the columns, ``-½ log|R|``, in nats."""
    centred = rows - rows.mean(0)
    scaled = centred / centred.square().mean(0).sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
    correlation = scaled.T @ scaled / rows.shape[0]
    floor = 1e-6 * torch.eye(correlation.shape[0], dtype=rows.dtype, device=rows.device)
    return float(-0.5 * torch.logdet(correlation + floor))


def _as_samples(x: Tensor) -> Tensor:
    """Return maps as one row per position, ``(n h w, c)``; rows as they are."""
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)


def _pooled_alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool both maps to the smaller of their heights and the smaller of their widths."""
    if x.ndim == 2 or x.shape[2:] == y.shape[2:]:
        return x, y
    size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
    return _pooled(x, size), _pooled(y, size)


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    if x.shape[2:] == size:
        return x
    return adaptive_avg_pool2d(x if x.dtype == torch.float64 else x.float(), size)


def _require_layout(x: Tensor, y: Tensor) -> None:
    if x.ndim != y.ndim or x.ndim not in (2, 4):
        raise InputError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}. VID reads two sets of rows (n, d) or two sets of "
            "maps (n, c, h, w); bring both to one layout, with a readout such as pooling."
        )
    require_paired(x, y)
