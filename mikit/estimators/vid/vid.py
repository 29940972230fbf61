"""VID: predict the teacher from the student with a Gaussian whose variance is learned per channel."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core.inputs import refuse_non_finite
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, seeded
from mikit.estimators.fitting import FitData, FitRecord, Training
from mikit.estimators.vid.features import as_samples, require_layouts
from mikit.estimators.vid.options import VARIANCE_FLOOR, Options
from mikit.estimators.vid.residual_distributions import counted_once
from mikit.functional.vid.residuals import ridge_regression

__all__ = ["VID"]

_LOG_2PI = math.log(2 * math.pi)


@final
class VID(Estimator):
    """Variational information distillation between vectors ``(n, d)`` or feature maps ``(n, c, h, w)``.

    Formula: ``q(t | s) = Π_h,w N(t_hw; μ_hw(s), Σ)`` with a learned mean ``μ`` and a covariance that is the same for
    all samples and positions: ``diag(σ_c²)``, or full. ``forward`` is ``-log q`` up to constants:

    - ``reduction="mean"``: mean over samples, channels and positions of ``½ [ (t - μ)² / σ_c² + log σ_c² ]``, as in
      the released codes.
    - ``reduction="nats"``: nats per sample, ``½ Σ_c,h,w [ (t - μ)² / σ_c² + log σ_c² + log 2π ]``, mean over samples.

    ``estimate`` is the difference of entropies ``Σ_c,h,w [ h0(t_c) - h_q(t_c | s) ]``: the mean over samples of
    ``log q(t | s) - log q0(t)``, where ``q0`` is Gaussian with the mean and variance (with ``variance="full"``: the
    covariance) of the teacher's channels in the fit data.

    The head uses standardized features: ``μ_c = m_c + V_c^½ head_c((s - a) / b)`` and
    ``σ_c² = V_c (softplus(α_c) + variance_floor)``, with the teacher's mean ``m_c`` and variance ``V_c`` in buffers.
    Training starts at ``σ_c² = V_c`` exactly, and does not depend on the scale of the teacher.

    ``fit`` solves the heads ``"linear"`` and ``"linear2"`` in closed form on the fit and select parts together: a ridge
    regression per teacher channel, with variances for new samples by generalized cross-validation. It trains the
    others, and those under ``compat``, by minibatches, and then sets the variances, or the covariance, to those of the
    residuals on the select part (on the fit part where there is no select part).

    Args:
        d_student: The student's width or channels.
        d_teacher: The teacher's width or channels.
        spatial: Whether the teacher's features are maps ``(n, c, h, w)``; the student's are too, unless ``arch`` is
            ``"transposed"``.
        arch: The network that predicts the mean. ``"linear"``: one affine layer. ``"linear2"``: two linear layers
            without bias. ``"relu3"``: three linear layers without bias, with ReLU between them. ``"bn_relu3x2"``: three
            linear layers, the first two of twice the teacher's width with batch normalization and ReLU. On maps all of
            them are 1x1 convolutions. ``"transposed"``: transposed convolutions that predict maps of a teacher from
            vectors of a student. None: ``"transposed"`` for vectors with maps, else ``"linear"``.
        reduction: ``"mean"`` or ``"nats"``; used by ``forward`` only.
        variance: ``"learned"``: as in the formula. ``"closed"``: the residual variance, averaged over the training
            batches, the newest with weight 0.1, and at least ``variance_floor V_c``; only the head is optimized.
            ``"full"``: a learned covariance of all channels, which starts at the teacher's.
        variance_floor: Smallest ``σ_c² / V_c``. A channel can gain at most about ``½ log(1 / variance_floor)`` nats:
            3.5 for the default.
        resize: What to do with maps of different sizes. ``"pool"``: both are average-pooled to the smaller height and
            the smaller width. ``"interpolate"``: the student's are interpolated bilinearly to the teacher's size.
        size: The teacher's height and width; needed only by ``"transposed"``.
        compat: ``"repdistiller"`` or ``"xfer"``: the loss of that released code, up to rounding. Features are not
            standardized, the variances start at 5 and 5.0134 for any teacher, with floors of 1e-5 and 0, and ``arch``
            is ``"relu3"`` and ``"linear2"``. ``"xfer"`` refuses maps of different sizes, because its code does not
            support them.

    Unit: nats (``estimate``).

    Kind: estimate. It is neither a lower nor an upper bound on the mutual information: ``q`` makes it too small, the
    Gaussian ``q0`` and the sum over correlated channels and positions make it too large. Directional: student to
    teacher. On the samples that the head was fitted to it is too large.

    Raises:
        InputError: If shapes, widths or options do not fit.

    Warns:
        UserWarning: If teacher channels, or combinations of them with ``"full"``, are constant: they are left out.

    Cost:
        The head, and one pass over the maps for the residual: ``O(n h w d_student d_teacher)`` time and a few
        temporaries of the teacher's size. ``"full"`` adds ``O(n h w d_teacher² + d_teacher³)`` and as many parameters
        as the covariance has entries.

    Pitfalls:
        The loss is not mutual information: it lacks the teacher's entropy, and negative values are correct. With
        ``reduction="mean"`` it usually needs a weight near 10 beside a cross-entropy; with 1 it has little effect.
        ``reduction="nats"`` is larger by ``c h w``. If the teacher is a function of the student's features, the
        information is infinite and the number depends on the variance floor. Channels after a ReLU have an atom at 0
        that a Gaussian does not describe: use features before the ReLU. Build from features of a student in training
        mode: an untrained network in evaluation mode has uncalibrated batch-norm statistics, and heads built from these
        train badly. Teacher channels that are constant in the example features are left out permanently. The student's
        scale is computed from its example features and is not updated. ``"full"`` overfits if there are fewer than
        about five times as many samples as channels. Interpolation adds no information: it predicts fine maps from
        coarse ones.

    Source:
        Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019; loss and heads as in released codes. The start at the teacher's
        variance, the standardization, the closed and full variances and the transposed head are mikit's.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> s = torch.randn(2000, 4, generator=g)
        >>> t = 0.8 * s + 0.6 * torch.randn(2000, 4, generator=g)  # the truth is 2.04 nats
        >>> vid = VID.between(s[:1000], t[:1000], generator=g)
        >>> _ = vid.fit(s[:1000], t[:1000], generator=g)
        >>> 1.8 < float(vid.estimate(s[1000:], t[1000:])) < 2.3
        True
    """

    head: nn.Sequential

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
        arch: str | None = None,
        reduction: str = "mean",
        variance: str = "learned",
        variance_floor: float = VARIANCE_FLOOR,
        resize: str = "pool",
        size: tuple[int, int] | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        options = Options(
            spatial=spatial,
            arch=arch,
            reduction=reduction,
            variance=variance,
            variance_floor=variance_floor,
            resize=resize,
            size=size,
            compat=compat,
        )
        self.d_student = d_student
        self.d_teacher = d_teacher
        self.spatial = spatial
        self.arch = options.head_arch
        self.reduction = reduction
        self.variance_mode = variance
        self.variance_floor = variance_floor
        self.resize = resize
        self.size = size
        self.compat = compat
        self.head = options.head(d_student, d_teacher)
        self.law = options.residuals(d_teacher)  # named "law" in saved states
        self.pair = options.features(d_student, d_teacher)

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        arch: str | None = None,
        reduction: str = "mean",
        variance: str = "learned",
        variance_floor: float = VARIANCE_FLOOR,
        resize: str = "pool",
        compat: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set the sizes, the layout, and the teacher's mean and variance.

        The student's features are centered and divided by one scale for all of them, so that a feature with little
        variance at the start of training cannot explode later; ``fit`` uses a scale per feature.

        Args:
            x: Student features ``(n, d)`` or ``(n, c, h, w)``. A few hundred samples or positions are enough.
            y: Teacher features in the same layout, or maps with vectors of a student; widths and sizes may differ.
            arch: As in the class.
            reduction: As in the class.
            variance: As in the class.
            variance_floor: As in the class.
            resize: As in the class.
            compat: As in the class.
            generator: Source of the head's initial weights; torch's global generator if None.

        Warns:
            UserWarning: If teacher channels are constant: they are left out.
        """
        require_layouts(x, y)
        refuse_non_finite(x, "x")
        refuse_non_finite(y, "y")
        with seeded(generator):
            estimator = cls(
                x.shape[1],
                y.shape[1],
                spatial=y.ndim == 4,
                arch=arch,
                reduction=reduction,
                variance=variance,
                variance_floor=variance_floor,
                resize=resize,
                size=(y.shape[2], y.shape[3]) if x.ndim < y.ndim else None,
                compat=compat,
            ).to(x.device)
        estimator._take_statistics(*estimator.pair.aligned(x, y), scale_per_column=False)
        return estimator

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyperparameters, built for ``x`` and ``y``."""
        return type(self).between(
            x,
            y,
            arch=self.arch,
            reduction=self.reduction,
            variance=self.variance_mode,
            variance_floor=self.variance_floor,
            resize=self.resize,
            compat=self.compat,
            generator=generator,
        )

    @property
    def recommended_weight(self) -> float:  # type: ignore[override]  # a constant elsewhere
        """10 for the mean over elements, the smallest weight that had most of the benefit on small images; else 1."""
        return 10.0 if self.reduction == "mean" and self.compat is None else 1.0

    @property
    def variance(self) -> Tensor:
        """``σ_c²`` in the teacher's units, ``(d_teacher,)``; 0 for channels that are left out."""
        return self.law.relative_variance() * self.pair.teacher_unit().square() * self.pair.counted()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss; the teacher ``y`` gets no gradient."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self.pair.aligned(x, y.detach())
            live = self.pair.counted()
            # The change of variables from standardized to the teacher's units adds log V_c^½.
            nats = self.law.nll(self.head(self._student(x)), self._teacher(y), live)
            nats = nats + self.law.log_volume(live, self.pair.teacher_unit().square()).to(nats.dtype)
            if self.reduction == "nats":
                return nats * math.prod(y.shape[2:])
            elements = self.law.elements(live)
            return (nats - 0.5 * _LOG_2PI * elements) / elements.clamp(min=1)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the difference of entropies over all samples, in nats; negative if the head predicts badly."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log q(t | s) - log q0(t)`` per sample, ``(n,)``, in nats."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self.pair.aligned(x, y)
            mean, variance = self.pair.teacher_moments()
            return self.law.gain(self._predicted(x), self._teacher(y), self.pair.live, mean=mean, variance=variance)

    @torch.no_grad()
    def checks(self, x: Tensor, y: Tensor) -> tuple[Check, ...]:
        """Return whether correlated channels of the teacher are counted more than once."""
        value = float(self.estimate(x, y))
        x, y = self.pair.aligned(x, y)
        target = as_samples(self._teacher(y))[:, self.pair.live]
        residual = target - as_samples(self._predicted(x))[:, self.pair.live]
        positions, jointly = math.prod(y.shape[2:]), self.variance_mode == "full"
        return (counted_once(value, target, residual, positions=positions, jointly=jointly),)

    def _fit(self, data: FitData) -> FitRecord:
        """Fit in closed form where the head is linear, and by minibatches otherwise."""
        x, y = self.pair.aligned(data.x, data.y)
        select = None if data.select is None else self.pair.aligned(*data.select)
        data = replace(data, x=x, y=y, select=select)
        if self.arch in ("linear", "linear2") and self.compat is None:
            # Nothing is stopped early or selected, so all samples are used for the fit.
            x, y = data.pooled
            self._take_statistics(x, y, scale_per_column=True)
            self._fit_linear(x, y)
            return FitRecord()
        self._take_statistics(x, y, scale_per_column=True)
        record = super()._fit(data)
        # The head has fitted some of the noise of the fit part, so the residuals there are too small.
        x, y = data.watched
        with torch.no_grad():
            self.law.set_to(as_samples(self._teacher(y)) - as_samples(self._predicted(x)))
        return record

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the head in one group and the variances, without weight decay, in another; frozen ones in neither."""
        head, variances = ([p for p in part.parameters() if p.requires_grad] for part in (self.head, self.law))
        groups = [{"params": head}] if head else []
        return [*groups, {"params": variances, "weight_decay": 0.0}] if variances else groups

    def extra_repr(self) -> str:
        """Return the hyperparameters."""
        text = (
            f"{self.d_student}, {self.d_teacher}, spatial={self.spatial}, arch={self.arch!r}, "
            f"reduction={self.reduction!r}, variance_floor={self.variance_floor:g}"
        )
        for name, value, usual in (
            ("variance", self.variance_mode, "learned"),
            ("resize", self.resize, "pool"),
            ("size", self.size, None),
            ("compat", self.compat, None),
        ):
            text += "" if value == usual else f", {name}={value!r}"
        return text

    @torch.no_grad()
    def _fit_linear(self, x: Tensor, y: Tensor) -> None:
        student, teacher = as_samples(self._student(x)), as_samples(self._teacher(y))
        regression = ridge_regression(student, teacher)
        first, last = self.head[0], self.head[-1]
        assert isinstance(first, nn.Linear | nn.Conv2d)
        assert isinstance(last, nn.Linear | nn.Conv2d)
        if last is not first:  # two layers with nothing between them: the second becomes the identity
            last.weight.copy_(torch.eye(self.d_teacher).reshape(last.weight.shape))
        first.weight.copy_(regression.weight.reshape(first.weight.shape))
        if first.bias is not None:  # without one, the bias is 0 because both sides are centered on these samples
            first.bias.copy_(regression.bias)
        # The regression was fitted to these residuals, which are therefore too small for new samples; generalized
        # cross-validation corrects the variances for the degrees of freedom that each ridge used.
        self.law.set_to(teacher - as_samples(self._predicted(x)), regression.variance)

    def _take_statistics(self, x: Tensor, y: Tensor, *, scale_per_column: bool) -> None:
        pair, stacklevel = self.pair, 4 if scale_per_column else 3  # called through fit and _fit, or by between
        pair.take_statistics(x, y, scale_per_column=scale_per_column)
        dead = (~pair.live).nonzero()[:, 0].tolist()
        if dead:
            warnings.warn(
                f"{len(dead)} of {self.d_teacher} teacher channels are constant in the example features (the first is "
                f"channel {dead[0]}). VID leaves them out, because they contain no information.",
                stacklevel=stacklevel,
            )
        left_out = self.law.take_statistics(as_samples(self._teacher(y)), pair.live, pair.teacher_variance)
        if left_out:
            warnings.warn(
                f"{left_out} directions of the {self.d_teacher} teacher channels are constant in the example features, "
                "because channels depend on each other or there are fewer samples than channels. "
                'variance="full" leaves these directions out.',
                stacklevel=stacklevel,
            )

    def _predicted(self, x: Tensor) -> Tensor:
        """Return the head's prediction in evaluation mode, which does not depend on the batch."""
        was_training = self.head.training
        self.head.eval()
        try:
            prediction: Tensor = self.head(self._student(x))
        finally:
            self.head.train(was_training)
        return prediction

    def _student(self, x: Tensor) -> Tensor:
        return self.pair.student(x).to(next(self.head.parameters()).dtype)

    def _teacher(self, y: Tensor) -> Tensor:
        return self.pair.teacher(y).to(next(self.head.parameters()).dtype)
