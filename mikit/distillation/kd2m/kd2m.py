"""KD²M: a loss and a diagnosis that match the distributions of a student's and a teacher's features."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Self, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation.kd2m.diagnosis import GapDiagnosis, Halving, diagnosed
from mikit.distillation.kd2m.labels import GivenLabels, Labels, label_coordinates
from mikit.distillation.kd2m.matching import DistributionMatching
from mikit.distillation.kd2m.scale import MatchedProjection, unrelated_standard
from mikit.distillation.kd2m.settings import KD2MOptions, discrepancy_named
from mikit.estimators.base import require_pair
from mikit.estimators.discrepancy import Discrepancy

__all__ = ["KD2M"]

_ROWS_OF_STANDARD = 512


@final
class KD2M(DistributionMatching):
    r"""Discrepancy between the distributions of a student's and a teacher's features ``(n, d)``.

    Formula: with the teacher's scale :math:`u(z) = (z - \bar t) / s` and a map :math:`\pi` to the teacher's width,

    .. math:: L = \frac1c D\bigl(u(\pi(S)), u(T)\bigr), \qquad
              \frac1c \sum_y P(y)\, D\bigl(u(\pi(S_y)), u(T_y)\bigr), \qquad
              \frac1c D\bigl([u(\pi(S)), \sqrt\lambda\, l_S], [u(T), \sqrt\lambda\, l_T]\bigr)

    for ``conditional`` None, ``"class"`` and ``"joint"``. ``D`` is any discrepancy of mikit, :math:`S_y` are the
    student's samples of class ``y``, ``l`` label coordinates. ``c`` is the value of ``D`` between the teacher and
    unrelated samples: normal samples with the teacher's spread, around a point one spread from its mean. So a weight of
    1 means the same for every metric, width and network: the loss of a student with unrelated features is about 1.

    Args:
        metric: A discrepancy, or its name in the registry. A fixed bandwidth or epsilon is in units of the teacher's
            spread.
        conditional: None: compare the distributions of all samples. ``"class"``: compare class by class. ``"joint"``:
            compare the joint distributions of features and labels.
        label_weight: ``λ`` of ``"joint"``. None: the mean squared distance between two samples of the teacher, divided
            by that between their labels. It is taken from the example labels or else from the first batch, and is
            constant afterwards; it is 0 until then.
        projection: Maps the student to the teacher's width, and is trained. None: no map; :meth:`between` uses a linear
            map if the widths differ.
        scale: ``"standard"``: as in the formula. ``"spread"``: with ``c = 1``. None: features and values without
            scaling.
        queue: Number of teacher samples of earlier batches that are stored for each class and compared together with
            those of the batch, for ``"class"``; 0 for none. None: 32, or 0 if the metric compares pairs. Soft labels
            do not use it.
        classes: Number of classes. None: as many as the labels show.
        prior: ``P(y)``. None: the class frequencies of the batch.

    Shapes:
        Student ``(n, d_s)``, teacher ``(n, d_t)``. Class indices ``(n,)``, soft labels or logits ``(n, classes)``.
        Without labels the numbers of samples may differ.

    Unit: dimensionless; that of the metric with ``scale=None``.

    Kind: discrepancy. It is 0, or small for biased metrics, if the distributions are equal. It does not depend on which
    samples are paired, within each class for ``"class"``. It is never clipped, so unbiased metrics give negative values
    about half of the time if the distributions are equal, also as a loss.

    Raises:
        InputError: If an argument does not fit the others, labels are missing or wrong, the loss was not calibrated on
            a teacher, widths differ without a projection, or the batch, or every class in it, has too few samples for
            the metric.

    Warns:
        UserWarning: The first time classes with fewer samples than the metric needs are left out; :meth:`terms` counts
            them afterwards.

    Cost:
        That of the metric; with ``"class"`` once for each class of the batch, on its samples. The rest is O(n d). The
        class sizes are read on the host. Memory for ``classes · queue · d`` numbers.

    Pitfalls:
        - In high dimension, exact transport on a batch matches each sample with its own partner. It is then regression,
          and :meth:`diagnose` reports that. With a queue, partners are few among many.
        - In a batch of 128 samples from 100 classes, half of the classes present have one sample. Without a queue,
          comparing one sample with one sample is regression as well; :meth:`terms` gives the share of such classes.
        - Biased metrics do not go to 0 for equal distributions. Compare with the chance level of :meth:`terms`.
        - Gaussian metrics by class need many samples of every class.
        - Exact transport with a queue compares samples of different sizes, for which POT is needed.
        - The scale and ``c`` are computed from the example features alone. Pass about one batch of them, from the
          trained teacher, so that the bias of ``D`` in ``c`` is that of a batch.
        - With ``prior``, classes missing from the batch are left out and the others are scaled up.

    Source:
        Fernandes Montesuma (2025), arXiv 2504.01757, for matching the distributions of features; its code
        (eddardd/kddm 5489263) for the three forms. Weighting by ``P(y)``, the queue, the scale and ``c`` are mikit's.

    Example:
        >>> import mikit
        >>> g = torch.Generator().manual_seed(0)
        >>> teacher, student = torch.randn(128, 16, generator=g), torch.randn(128, 8, generator=g)
        >>> labels = torch.arange(128) % 4
        >>> kd = mikit.KD2M.between(student, teacher, metric="mmd", conditional="class", generator=g)
        >>> mikit.check_optimizer(torch.optim.SGD(kd.param_groups(), lr=0.1), kd)
        >>> kd(student, teacher, labels=labels).shape  # and its gradient trains the projection
        torch.Size([])
    """

    name = "kd2m"

    def __init__(
        self,
        metric: Discrepancy | str = "mmd",
        *,
        conditional: str | None = None,
        label_weight: float | None = None,
        projection: nn.Module | None = None,
        scale: str | None = "standard",
        queue: int | None = None,
        classes: int | None = None,
        prior: Sequence[float] | None = None,
    ) -> None:
        options = KD2MOptions(
            metric=discrepancy_named(metric),
            conditional=conditional,
            label_weight=label_weight,
            scale=scale,
            queue=queue,
            classes=classes,
            prior=prior,
        )
        super().__init__(options, projection)

    @classmethod
    def between(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        metric: Discrepancy | str = "mmd",
        conditional: str | None = None,
        labels: Tensor | None = None,
        label_weight: float | None = None,
        projection: nn.Module | None = None,
        scale: str | None = "standard",
        queue: int | None = None,
        classes: int | None = None,
        prior: Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features, which set the scale, and the projection if the widths differ.

        Args:
            x: Student features ``(n, d_s)``.
            y: Teacher features ``(m, d_t)``, about one batch.
            metric: As in the class.
            conditional: As in the class.
            labels: Labels of ``y``, from which ``"joint"`` computes the label weight: the teacher's own, if it is
                compared by those.
            label_weight: As in the class.
            projection: As in the class. None: a linear map if the widths differ. Its outputs start with the teacher's
                mean and spread.
            scale: As in the class.
            queue: As in the class.
            classes: As in the class.
            prior: As in the class.
            generator: Source of randomness of the projection and of the unrelated samples in ``c``. None: torch's
                global generator for the former and seed 0 for the latter.
        """
        require_pair(x[: min(len(x), len(y))], y[: min(len(x), len(y))])
        if projection is None and x.shape[1] != y.shape[1]:
            projection = MatchedProjection.between(x, y, generator=generator)
        loss = cls(
            metric,
            conditional=conditional,
            label_weight=label_weight,
            projection=projection,
            scale=scale,
            queue=queue,
            classes=classes,
            prior=prior,
        ).to(y.device)
        loss.calibrate(y, labels=labels, generator=generator)
        return loss

    def fresh(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Self:
        """Return an unfitted copy with the same hyper-parameters for ``x`` and ``y``; a projection is drawn again."""
        options = vars(self._options) | {"metric": copy.deepcopy(self.metric)}
        return type(self).between(x, y, **options, generator=generator)

    @torch.no_grad()
    def calibrate(
        self, teacher: Tensor, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Set the scale from a teacher's features ``(n, d)``, and the label weight of ``"joint"`` from their labels.

        A label weight that is known is kept; the queue is emptied. ``c`` is computed from at most 512 samples, evenly
        spaced among those given.

        Raises:
            InputError: If the features are not ``(n, d)``, not finite or all equal, or if the metric does not
                distinguish the teacher from unrelated samples, so that its values have no unit.
        """
        teacher = teacher.detach()
        if self.scale is not None:
            self.teacher_scale.take(teacher)
        rows = self.teacher_scale(teacher)
        if self.scale == "standard":
            kept = torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS_OF_STANDARD), device=rows.device).long()
            standard = unrelated_standard(len(kept), rows.shape[1], generator=generator).to(rows)
            unit = float(self.metric.estimate(standard, rows[kept]))
            if not 1e-6 < unit < math.inf:
                raise InputError(
                    f"{type(self.metric).__name__} is {unit:.3g} between the teacher's features and unrelated samples, "
                    'which is no unit for its values. Pass scale="spread" and choose the weight by hand.'
                )
            self.teacher_scale.standard.fill_(unit)
        self.queue = None
        self._queue_for(rows)
        if labels is not None and self.conditional == "joint" and not self._weighed:
            self._weigh(rows, label_coordinates(Labels.read(labels, len(rows), "labels"), self.classes))

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels: Tensor | None = None,
        student_labels: Tensor | None = None,
        teacher_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch; the teacher gets no gradient. In training mode it then joins the queue.

        Args:
            x: Student features.
            y: Teacher features.
            labels: Class indices, or for ``"class"`` soft labels if the metric takes weights. Not used if
                ``conditional`` is None.
            student_labels: For ``"joint"``: the student's own soft labels or logits, which get a gradient.
            teacher_labels: For ``"joint"``: the teacher's.
        """
        given = GivenLabels(labels, student_labels, teacher_labels)
        with torch.autocast(x.device.type, enabled=False):
            return self._value(self.metric, *self._mapped(x, y), given, training=True)

    def estimate(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels: Tensor | None = None,
        student_labels: Tensor | None = None,
        teacher_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the same by the metric's estimate, for a report: of these samples alone, without the queue."""
        given = GivenLabels(labels, student_labels, teacher_labels)
        with torch.autocast(x.device.type, enabled=False):
            return self._value(self.metric.estimate, *self._mapped(x, y), given, training=False)

    @torch.no_grad()
    def terms(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels: Tensor | None = None,
        student_labels: Tensor | None = None,
        teacher_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return values to log for a batch now and then: the loss, and reference values to compare it with.

        Returns:
            0-dim tensors without gradient. ``loss``: the value of :meth:`estimate`. ``apart``: the gap between half of
            the student's samples and the other half of the teacher's. ``chance``: the gap between the two halves of the
            teacher. Both are nan if no class can be halved. ``identity_fraction``, for transport metrics: the share of
            the batch that exact transport within the batch matches with its own partner. With ``"class"`` also the
            shares of the classes present that have one sample, ``single_row_classes``, and that have fewer than the
            metric needs, ``left_out_classes``.
        """
        given = GivenLabels(labels, student_labels, teacher_labels)
        found = self.diagnose(x, y, **given._asdict(), halvings=1)
        values = {"loss": self.estimate(x, y, **given._asdict()), "apart": found.apart, "chance": found.null}
        if found.identity_fraction is not None:
            values["identity_fraction"] = found.identity_fraction
        if self.conditional == "class":
            values["single_row_classes"] = found.single_row_classes
            values["left_out_classes"] = found.left_out_classes
        return {name: torch.as_tensor(value, device=x.device) for name, value in values.items()}

    @torch.no_grad()
    def diagnose(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels: Tensor | None = None,
        student_labels: Tensor | None = None,
        teacher_labels: Tensor | None = None,
        halvings: int = 5,
        generator: torch.Generator | None = None,
    ) -> GapDiagnosis:
        """Return the bias-corrected gap with its null value, class by class.

        The queue is not used: pass as many samples as there are.

        Args:
            x: Student features.
            y: Teacher features of the same inputs.
            labels: As for the loss.
            student_labels: As for the loss.
            teacher_labels: As for the loss.
            halvings: Number of random halvings to average over.
            generator: Source of the halvings; None: seed 0.
        """
        require_pair(x, y)
        given = GivenLabels(labels, student_labels, teacher_labels)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        with torch.autocast(x.device.type, enabled=False):
            both = self._mapped(x, y)
            by_class = self.conditional == "class"
            groups = self._classes_of(*both, given, None) if by_class else [self._all_of(*both, given)]
            unit, fewest = float(self.teacher_scale.standard), self._fewest_for(both[1])
            halving = Halving(self.metric, unit, fewest, halvings, generator)
            return diagnosed(halving, groups, both, form=self.conditional or "marginal")

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return the fewest samples that the metric takes."""
        return self.metric.minimum_rows(d_y, d_y)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        shown = f"metric={self.metric.describe()}, conditional={self.conditional!r}, scale={self.scale!r}"
        return shown + (f", queue={self.queue_size}" if self.conditional == "class" else "")
