"""VID: predict the teacher from the student with a Gaussian whose variance is learned per channel."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.core.inputs import refuse_non_finite
from mikit.core.measurement import Check
from mikit.estimators.base import Estimator, seeded
from mikit.estimators.fitting import FitRecord, Training
from mikit.estimators.vid.features import RESIZES, FeaturePair, as_samples, require_layouts
from mikit.estimators.vid.heads import HEADS, TRANSPOSED, mean_head, transposed_head
from mikit.estimators.vid.released import RELEASED
from mikit.estimators.vid.residual_distributions import VARIANCES, ResidualLaw, counted_once, residual_law
from mikit.functional.vid.residuals import ridge_regression

__all__ = ["VID"]

REDUCTIONS = ("mean", "nats")
_LOG_2PI = math.log(2 * math.pi)
_FLOOR = 1e-3


@final
class VID(Estimator):
    """Variational information distillation between rows ``(n, d)`` or feature maps ``(n, c, h, w)``.

    Formula: ``q(t | s) = Π_h,w N(t_hw; μ_hw(s), Σ)`` with a learned mean ``μ`` and a covariance that is the same for
    all samples and positions: ``diag(σ_c²)``, or full. ``forward`` is ``-log q`` up to constants:

    - ``reduction="mean"``: mean over samples, channels and positions of ``½ [ (t - μ)² / σ_c² + log σ_c² ]``, as the
      released codes reduce.
    - ``reduction="nats"``: nats per sample, ``½ Σ_c,h,w [ (t - μ)² / σ_c² + log σ_c² + log 2π ]``, mean over samples.

    ``estimate`` is the difference of entropies ``Σ_c,h,w [ h0(t_c) - h_q(t_c | s) ]``: the mean over rows of
    ``log q(t | s) - log q0(t)``, where ``q0`` is Gaussian with the mean and variance (with ``variance="full"``: the
    covariance) that the teacher's channels had in the fit data.

    The head works on standardised features: ``μ_c = m_c + V_c^½ head_c((s - a) / b)`` and
    ``σ_c² = V_c (softplus(α_c) + variance_floor)``, with the teacher's mean ``m_c`` and variance ``V_c`` in buffers.
    The start is ``σ_c² = V_c`` exactly, and a rescaled teacher trains the same way.

    Args:
        d_student: The student's width or channels.
        d_teacher: The teacher's width or channels.
        spatial: Whether the teacher's features are maps ``(n, c, h, w)``; the student's are too, unless ``arch`` is
            ``"transposed"``.
        arch: The mean's network: ``"linear"``, ``"linear2"``, ``"relu3"`` or ``"bn_relu3x2"``
            (:func:`mikit.estimators.vid.heads.mean_head`), or ``"transposed"``, which reads rows of a student and
            predicts maps of a teacher (:func:`mikit.estimators.vid.heads.transposed_head`). None: ``"transposed"`` for
            rows beside maps, else ``"linear"``.
        reduction: ``"mean"`` or ``"nats"``; concerns ``forward`` only.
        variance: ``"learned"``: as in the formula. ``"closed"``: the residual variance itself, averaged over the
            batches of training, the newest with weight 0.1, and at least ``variance_floor V_c``; there is nothing to
            optimise but the head. ``"full"``: a learned covariance of all channels, which starts at the teacher's own.
        variance_floor: Smallest ``σ_c² / V_c``. A channel can gain about ``½ log(1 / variance_floor)`` nats at most:
            3.5 for the default.
        resize: Where maps differ in size. ``"pool"``: both are average-pooled to the smaller height and the smaller
            width. ``"interpolate"``: the student's is brought to the teacher's size bilinearly.
        size: The teacher's height and width; needed by ``"transposed"`` alone.
        compat: ``"repdistiller"`` or ``"xfer"``: the loss of that released code, to rounding. Features are not
            standardised, the variances start at 5 and 5.0134 whatever the teacher's, with 1e-5 and 0 for a floor, and
            ``arch`` is ``"relu3"`` and ``"linear2"``. ``"xfer"`` refuses maps of different sizes, as its code has no
            rule for them.

    Unit: nats (``estimate``).

    Kind: estimate. It is neither a lower nor an upper bound on the mutual information: ``q`` makes it too small, the
    Gaussian ``q0`` and the sum over correlated channels and positions make it too large. Directional: student to
    teacher. On the rows that fitted the head it is too large.

    Raises:
        InputError: If shapes, widths or options do not fit.

    Warns:
        UserWarning: If teacher channels, or with ``"full"`` combinations of them, are constant: they are left out.

    Cost:
        The head, and one pass over the maps for the residual: ``O(n h w d_student d_teacher)`` time and a few
        temporaries of the teacher's size. ``"full"`` adds ``O(n h w d_teacher² + d_teacher³)`` and as many parameters
        as the covariance has entries.

    Pitfalls:
        The loss is not an information: it lacks the teacher's entropy, and negative values are right. As a loss with
        ``reduction="mean"`` it usually wants a weight near 10 beside a cross-entropy; with 1 it trains little.
        ``reduction="nats"`` is larger by ``c h w``. A teacher that is a function of the student's features has infinite
        information; the number then shows the variance floor. Post-ReLU channels have an atom at 0 that no Gaussian
        describes: read features before the ReLU. Build from features of a student in training mode: an untrained
        network in evaluation mode has uncalibrated batch-norm statistics, and heads built on those train badly. Teacher
        channels that are constant in the example features are left out for good. The student's scale is taken from its
        example features and does not follow it. ``"full"`` overfits where rows are few beside channels (less than some
        five times as many). Interpolation invents no information: it predicts fine maps from coarse ones.

    Source:
        Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019; loss and heads as in released codes. The start at the teacher's
        variance, the standardisation, the closed and full variances and the transposed head are ours.

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
        variance_floor: float = _FLOOR,
        resize: str = "pool",
        size: tuple[int, int] | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("head", arch, (*HEADS, TRANSPOSED, None)),
            ("reduction", reduction, REDUCTIONS),
            ("variance", variance, VARIANCES),
            ("resize", resize, RESIZES),
            ("compat", compat, (*RELEASED, None)),
        ):
            if value not in choices:
                raise InputError(f'There is no VID {name} "{value}". Use one of {", ".join(filter(None, choices))}.')
        if not 0 < variance_floor < 1:
            raise InputError(
                f"variance_floor is {variance_floor}; it is a share of the teacher's variance and must lie in (0, 1)."
            )
        released = None if compat is None else RELEASED[compat]
        if released is not None:
            released.require(arch=arch, reduction=reduction, variance=variance, resize=resize)
            if variance_floor != _FLOOR:
                raise InputError(
                    f"compat={compat!r} has a floor of its own; leave out variance_floor ({variance_floor})."
                )
        arch = arch or (released.arch if released else TRANSPOSED if size is not None else "linear")
        if (arch == TRANSPOSED) != (size is not None) or (arch == TRANSPOSED and not spatial):
            raise InputError(
                f'arch is "{arch}", size is {size} and spatial is {spatial}. The head "transposed", and it alone, '
                "needs the size (height, width) of the teacher's maps, with spatial=True."
            )
        self.d_student = d_student
        self.d_teacher = d_teacher
        self.spatial = spatial
        self.arch = arch
        self.reduction = reduction
        self.variance_mode = variance
        self.variance_floor = variance_floor
        self.resize = resize
        self.size = size
        self.compat = compat
        self.head = (
            transposed_head(d_student, d_teacher, size)
            if size
            else mean_head(arch, d_student, d_teacher, spatial=spatial)
        )
        self.law: ResidualLaw = (
            released.law(d_teacher) if released else residual_law(variance, d_teacher, variance_floor)
        )
        self.pair = FeaturePair(
            d_student,
            d_teacher,
            layouts=(4 if spatial and arch != TRANSPOSED else 2, 4 if spatial else 2),
            resize=None if compat == "xfer" else resize,
            size=size,
            standardise=compat is None,
        )

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        arch: str | None = None,
        reduction: str = "mean",
        variance: str = "learned",
        variance_floor: float = _FLOOR,
        resize: str = "pool",
        compat: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set sizes, layout, the teacher's mean and variance and the start.

        The student is centred and divided by one scale for all its columns, so that a column which is still quiet at
        the start of training cannot explode later; ``fit`` uses a scale per column.

        Args:
            x: Student features ``(n, d)`` or ``(n, c, h, w)``. A few hundred samples or positions make good statistics.
            y: Teacher features in the same layout, or maps beside rows of a student; widths and sizes may differ.
            arch: As in the class.
            reduction: As in the class.
            variance: As in the class.
            variance_floor: As in the class.
            resize: As in the class.
            compat: As in the class.
            generator: Where the head's start comes from; torch's global generator if None.

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
        """Return an unfitted copy with the same hyper-parameters, built for ``x`` and ``y``."""
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
        """10 for the mean over elements: the least weight that showed most of the gain on small images. Else 1."""
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
            # Back from standardised units: the change of variables adds log V_c^½.
            nats = self.law.nll(self.head(self._student(x)), self._teacher(y), live)
            nats = nats + self.law.log_volume(live, self.pair.teacher_unit().square()).to(nats.dtype)
            if self.reduction == "nats":
                return nats * math.prod(y.shape[2:])
            elements = self.law.elements(live)
            return (nats - 0.5 * _LOG_2PI * elements) / elements.clamp(min=1)

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the difference of entropies over all rows, in nats; negative where the head misleads."""
        return self.pointwise(x, y).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log q(t | s) - log q0(t)`` per sample, ``(n,)``, in nats."""
        with torch.autocast(x.device.type, enabled=False):
            x, y = self.pair.aligned(x, y)
            mean, variance = self.pair.teacher_law()
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
        teacher channel, with variances for new rows by generalised cross-validation). The others, and those under
        ``compat``, are trained by minibatches; their variances, or their covariance, are the residuals' on ``select``,
        or on the fit rows where there is no such part.
        """
        x, y = self.pair.aligned(x, y)
        if select is not None:
            select = self.pair.aligned(*select)
        closed = self.arch in ("linear", "linear2") and self.compat is None
        if closed and select is not None:
            x, y = torch.cat([x, select[0]]), torch.cat([y, select[1]])
        self._take_statistics(x, y, scale_per_column=True)
        if closed:
            self._fit_linear(x, y)
            return FitRecord()
        record = super().fit(x, y, select=select, generator=generator, training=training)
        watched_x, watched_y = select if select is not None else (x, y)
        with torch.no_grad():
            self.law.set_to(as_samples(self._teacher(watched_y)) - as_samples(self._predicted(watched_x)))
        return record

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the head in one group and the variances, undecayed, in another; what is frozen is in neither."""
        head, law = ([p for p in part.parameters() if p.requires_grad] for part in (self.head, self.law))
        groups = [{"params": head}] if head else []
        return [*groups, {"params": law, "weight_decay": 0.0}] if law else groups

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        told = (
            f"{self.d_student}, {self.d_teacher}, spatial={self.spatial}, arch={self.arch!r}, "
            f"reduction={self.reduction!r}, variance_floor={self.variance_floor:g}"
        )
        for name, value, usual in (
            ("variance", self.variance_mode, "learned"),
            ("resize", self.resize, "pool"),
            ("size", self.size, None),
            ("compat", self.compat, None),
        ):
            told += "" if value == usual else f", {name}={value!r}"
        return told

    @torch.no_grad()
    def _fit_linear(self, x: Tensor, y: Tensor) -> None:
        student, teacher = as_samples(self._student(x)), as_samples(self._teacher(y))
        regression = ridge_regression(student, teacher)
        first, last = self.head[0], self.head[-1]
        assert isinstance(first, nn.Linear | nn.Conv2d)
        assert isinstance(last, nn.Linear | nn.Conv2d)
        if last is not first:  # two layers with nothing between them: the second passes on what the first predicts
            last.weight.copy_(torch.eye(self.d_teacher).reshape(last.weight.shape))
        first.weight.copy_(regression.weight.reshape(first.weight.shape))
        if first.bias is not None:  # without one, the bias is 0 because both sides are centred on these rows
            first.bias.copy_(regression.bias)
        self.law.set_to(teacher - as_samples(self._predicted(x)), regression.variance)

    def _take_statistics(self, x: Tensor, y: Tensor, *, scale_per_column: bool) -> None:
        pair = self.pair
        pair.take_statistics(x, y, scale_per_column=scale_per_column)
        dead = (~pair.live).nonzero()[:, 0].tolist()
        if dead:
            warnings.warn(
                f"{len(dead)} of {self.d_teacher} teacher channels are constant in the example features (the first is "
                f"channel {dead[0]}). VID leaves them out: nothing can be learned about them.",
                stacklevel=3,
            )
        left_out = self.law.take_statistics(as_samples(self._teacher(y)), pair.live, pair.teacher_variance)
        if left_out:
            warnings.warn(
                f"{left_out} directions of the {self.d_teacher} teacher channels are constant in the example features, "
                'because channels depend on each other or rows are fewer than channels. variance="full" leaves these '
                "directions out.",
                stacklevel=3,
            )

    def _predicted(self, x: Tensor) -> Tensor:
        """Return the head's prediction in evaluation mode: this batch's statistics are neither read nor kept."""
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
