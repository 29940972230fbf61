"""KD²M: the law of a student's features drawn onto that of its teacher's, as a loss and as a diagnostic."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation.kd2m.classes import ClassLaw, fewest_rows, hard_laws, mean_over_classes, soft_laws
from mikit.distillation.kd2m.diagnosis import GapDiagnosis, diagnosed
from mikit.distillation.kd2m.labels import GivenLabels, Labels, label_coordinates, mean_cost
from mikit.distillation.kd2m.queue import FeatureQueue
from mikit.distillation.kd2m.scale import MatchedProjection, TeacherScale, unrelated_standard
from mikit.distillation.kd2m.settings import discrepancy_named, require_settings, require_weighted
from mikit.estimators import Estimator
from mikit.estimators.base import require_pair
from mikit.estimators.discrepancy import Discrepancy

__all__ = ["KD2M"]

DEFAULT_QUEUE = 32
_ROWS_OF_STANDARD = 512


@final
class KD2M(Estimator):
    r"""Discrepancy between the laws of a student's features and of its teacher's, rows ``(n, d)``.

    Formula: with the teacher's scale :math:`u(z) = (z - \bar t) / s` and a map :math:`\pi` to the teacher's width,

    .. math:: L = \frac1c D\bigl(u(\pi(S)), u(T)\bigr), \qquad
              \frac1c \sum_y P(y)\, D\bigl(u(\pi(S_y)), u(T_y)\bigr), \qquad
              \frac1c D\bigl([u(\pi(S)), \sqrt\lambda\, l_S], [u(T), \sqrt\lambda\, l_T]\bigr)

    for ``conditional`` None, ``"class"`` and ``"joint"``. ``D`` is any discrepancy of mikit, :math:`S_y` are the
    student's rows of class ``y``, ``l`` label coordinates. ``c`` is what ``D`` gives between the teacher and a standard
    that has nothing to do with it: normal rows of the teacher's spread around a point one spread from its mean. So a
    weight of 1 means the same for every metric, width and network: a student whose features are unrelated to the
    teacher's costs about 1.

    Args:
        metric: A discrepancy, or its name in the registry. A fixed bandwidth or epsilon is in units of the teacher's
            spread.
        conditional: None: the laws as they are. ``"class"``: class by class. ``"joint"``: features and labels together.
        label_weight: ``λ`` of ``"joint"``. None: mean squared distance of two of the teacher's rows over that of their
            labels, from the example labels or else the first batch, and a constant from then on; 0 until then.
        projection: Maps the student to the teacher's width, and trains. None: nothing; :meth:`between` puts a linear
            map where widths differ.
        scale: ``"standard"``: as in the formula. ``"spread"``: with ``c = 1``. None: features and values as they come.
        queue: Teacher rows of earlier batches kept for each class, beside which those of the batch are compared under
            ``"class"``; 0 for none. None: 32, or 0 where the metric reads pairs; with soft labels it is left alone.
        classes: Number of classes. None: as many as labels show.
        prior: ``P(y)``. None: shares of the batch.

    Shapes:
        Student ``(n, d_s)``, teacher ``(n, d_t)``. Class indices ``(n,)``, soft labels or logits ``(n, classes)``.
        Without labels the numbers of rows may differ.

    Unit: dimensionless; that of the metric with ``scale=None``.

    Kind: discrepancy, 0 or for biased metrics small for equal laws, and blind to which row belongs to which: within the
    class under ``"class"``. Never clipped, so unbiased metrics give negative values about half of the time for equal
    laws, as a loss too.

    Raises:
        InputError: If an argument does not fit the others, labels are missing or wrong, the teacher was never shown,
            widths differ without a projection, or there are too few rows for the metric in the batch or in every class.

    Warns:
        UserWarning: The first time classes with fewer rows than the metric takes are left out; :meth:`terms` counts
            them from then on.

    Cost:
        That of the metric; under ``"class"`` once for each class of the batch, on its rows. The rest is O(n d). Reads
        the class sizes on the host. ``classes · queue · d`` numbers of memory.

    Pitfalls:
        - Exact transport on a batch with many columns matches each row with its own partner: it is regression then, and
          :meth:`diagnose` says so. With a queue, partners are few among many.
        - At 128 rows of 100 classes half of the classes present have one row. Without a queue, comparing one row with
          one row is regression as well; :meth:`terms` gives the share of such classes.
        - Biased metrics do not go to 0 for equal laws. Compare with the chance level of :meth:`terms`.
        - Gaussian metrics by class need many rows of every class.
        - Exact transport with a queue compares samples of different sizes, for which POT is needed.
        - Scale and ``c`` come from the example features alone: about a batch of them, from the trained teacher, gives
          the bias of ``D`` its usual size.
        - With ``prior``, classes missing from the batch are left out and the others scaled up.

    Source:
        Fernandes Montesuma (2025), arXiv 2504.01757, for matching the laws of features; its code (eddardd/kddm
        5489263) for the three forms. Weighting by ``P(y)``, the queue, the scale and the standard are mikit's.

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

    label_weight: Tensor

    name = "kd2m"
    unit = "dimensionless"
    kind = "discrepancy"
    needs_pairs = False
    zero_when_independent = False

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
        super().__init__()
        self.metric = discrepancy_named(metric)
        require_settings(self.metric, conditional, label_weight, scale, queue, classes, prior)
        self.conditional = conditional
        self.scale = scale
        self.projection = projection
        self.prior = None if prior is None else tuple(float(one) for one in prior)
        self.classes = classes if self.prior is None else len(self.prior)
        of_class = 0 if self.metric.needs_pairs else DEFAULT_QUEUE
        self.queue_size = 0 if conditional != "class" else of_class if queue is None else queue
        self.queue: FeatureQueue | None = None
        self.teacher_scale = TeacherScale()
        self.register_buffer("label_weight", torch.tensor(float(label_weight or 0)))
        self.learned = projection is not None and any(p.requires_grad for p in projection.parameters())
        self.needs_pairs = self.metric.needs_pairs or conditional is not None
        self.orderless = self.metric.orderless
        self.unit = self.metric.unit if scale is None else "dimensionless"
        self._label_weight_told, self._queue_told = label_weight, queue
        self._weighed = label_weight is not None
        self._fewest: int | None = None
        self._warned = False

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
        """Build from example features, which set the scale, and the projection where widths differ.

        Args:
            x: Student features ``(n, d_s)``.
            y: Teacher features ``(m, d_t)``, about a batch of them.
            metric: As in the class.
            conditional: As in the class.
            labels: Labels of ``y``, from which ``"joint"`` takes the label weight; the teacher's own, where it is to be
                compared by those.
            label_weight: As in the class.
            projection: As in the class. None: a linear map where widths differ, which starts with the teacher's mean
                and spread.
            scale: As in the class.
            queue: As in the class.
            classes: As in the class.
            prior: As in the class.
            generator: Where the projection and the standard are drawn from; None: torch's global generator for the
                first and seed 0 for the second.
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
        """Return an unfitted copy with the same hyper-parameters for ``x`` and ``y``; a projection is drawn anew."""
        return type(self).between(
            x,
            y,
            metric=copy.deepcopy(self.metric),
            conditional=self.conditional,
            label_weight=self._label_weight_told,
            scale=self.scale,
            queue=self._queue_told,
            classes=None if self.prior is not None else self.classes,
            prior=self.prior,
            generator=generator,
        )

    @torch.no_grad()
    def calibrate(
        self, teacher: Tensor, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Take the scale from a teacher's features ``(n, d)``, and from their labels the label weight of ``"joint"``.

        A label weight that is known stays; the queue is emptied. The standard is compared with at most 512 rows, evenly
        spaced among those given.

        Raises:
            InputError: If the features are not rows, not finite or all equal, or the metric does not tell the teacher
                from the standard, so that its values have no unit.
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
                    f"{type(self.metric).__name__} gives {unit:.3g} between the teacher's features and an unrelated "
                    'standard, which is no unit for its values. Pass scale="spread" and choose the weight by hand.'
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
        """Return the loss of a batch; the teacher gets no gradient. In training mode its rows then join the queue.

        Args:
            x: Student features.
            y: Teacher features.
            labels: Class indices, or under ``"class"`` soft labels for a metric that takes weights. Not read where
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
        """Return the same for a report, by the metric's estimate: of these rows alone, without the queue."""
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
        """Return what to log of a batch now and then: the loss, and what it has to be read against.

        Returns:
            0-dim tensors without gradient. ``loss``: what :meth:`estimate` gives. ``apart`` and ``chance``: what half
            of the student's rows and the other half of the teacher's give, and the two halves of the teacher; nan
            where no class can be halved. ``identity_fraction``, of transport metrics: the share of the batch's rows
            that exact transport within the batch matches with their own partner. Under ``"class"``:
            ``single_row_classes``, the share of the classes present that have one row, and ``left_out_classes``, of
            those with fewer than the metric takes.
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
        """Return the gap with its bias taken off, beside what the teacher gives against itself, class by class.

        The queue is not used: pass as many rows as there are.

        Args:
            x: Student features.
            y: Teacher features of the same inputs.
            labels: As for the loss.
            student_labels: As for the loss.
            teacher_labels: As for the loss.
            halvings: Random halvings to average over.
            generator: Where they are drawn from; None: seed 0.
        """
        require_pair(x, y)
        given = GivenLabels(labels, student_labels, teacher_labels)
        with torch.autocast(x.device.type, enabled=False):
            both = self._mapped(x, y)
            laws = (
                self._class_laws(*both, given, None) if self.conditional == "class" else [self._one_law(*both, given)]
            )
            return diagnosed(
                self.metric,
                laws,
                both,
                form=self.conditional or "marginal",
                standard=float(self.teacher_scale.standard),
                fewest=self._fewest_for(both[1]),
                halvings=halvings,
                generator=generator,
            )

    def minimum_rows(self, d_x: int, d_y: int) -> int:
        """Return the fewest rows that the metric takes."""
        return self.metric.minimum_rows(d_y, d_y)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        said = f"metric={self.metric.describe()}, conditional={self.conditional!r}, scale={self.scale!r}"
        return said + (f", queue={self.queue_size}" if self.conditional == "class" else "")

    def _mapped(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides in one space, on the teacher's scale."""
        fewest = min(x.shape[0], y.shape[0])
        require_pair(x[:fewest], y[:fewest], minimum=1)
        y = y.detach()
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        student, teacher = x.to(dtype), y.to(dtype)
        if self.projection is not None:
            weight = next(self.projection.parameters(), student)
            student = self.projection(student.to(weight.dtype)).to(dtype)
        if student.shape[1] != teacher.shape[1]:
            raise InputError(
                f"The student has {student.shape[1]} columns{' after the projection' if self.projection else ''} and "
                f"the teacher {teacher.shape[1]}. Build the loss with KD2M.between, or pass a projection."
            )
        if self.scale is not None and not self.teacher_scale.known:
            raise InputError(
                "This KD2M has not seen the teacher's features, so it has no scale. Build it with KD2M.between from "
                "example features, call calibrate(teacher), or pass scale=None."
            )
        return self.teacher_scale(student), self.teacher_scale(teacher)

    def _value(
        self, compare: Callable[..., Tensor], student: Tensor, teacher: Tensor, given: GivenLabels, *, training: bool
    ) -> Tensor:
        if self.conditional == "class":
            value: Tensor = self._over_classes(compare, student, teacher, given, training)
        else:
            value = self._one_law(student, teacher, given, keep=training and self.training).compared(compare)
        return value / self.teacher_scale.standard

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives it no types
    def _over_classes(
        self, compare: Callable[..., Tensor], student: Tensor, teacher: Tensor, given: GivenLabels, training: bool
    ) -> Tensor:
        """Return the mean over classes; sizes are read on the host, which no compiled graph does."""
        queue = self._queue_for(teacher) if training else None
        laws = self._class_laws(student, teacher, given, queue)
        value, left_out = mean_over_classes(self.metric, compare, laws, self._fewest_for(teacher))
        if training and left_out and not self._warned:
            self._warned = True
            warnings.warn(
                f"{left_out} of the {len(laws)} classes in this batch have fewer rows than the {self._fewest} that "
                f"{type(self.metric).__name__} takes, or a prior of 0. They are left out, here and from now on; "
                "terms() tells their share. Class-balanced batches avoid it.",
                stacklevel=7,
            )
        if queue is not None and self.training and given.labels is not None and given.labels.ndim == 1:
            queue.push(teacher, given.labels)
        return value

    def _class_laws(
        self, student: Tensor, teacher: Tensor, given: GivenLabels, queue: FeatureQueue | None
    ) -> list[ClassLaw]:
        given.require_shared(self.conditional)
        require_pair(student, teacher, minimum=1)
        labels = Labels.read(given.labels, len(teacher), "labels")
        if not labels.soft:
            return hard_laws(student, teacher, labels.counted(self.classes), queue=queue, prior=self.prior)
        require_weighted(self.metric, self._queue_told)
        return soft_laws(student, teacher, labels.values, prior=self.prior)

    def _one_law(self, student: Tensor, teacher: Tensor, given: GivenLabels, *, keep: bool = False) -> ClassLaw:
        if self.conditional == "joint":
            of_student, of_teacher = given.coordinates(len(student), len(teacher), self.classes)
            root = self._weigh(teacher, of_teacher, keep=keep).sqrt()
            student = torch.cat([student, root * of_student.to(student)], dim=1)
            teacher = torch.cat([teacher, root * of_teacher.to(teacher)], dim=1)
        else:
            given.require_shared(self.conditional)
        return ClassLaw(None, 1.0, student, teacher, None, len(student))

    def _fewest_for(self, rows: Tensor) -> int:
        if self._fewest is None:
            self._fewest = fewest_rows(self.metric, rows)
        return self._fewest

    def _weigh(self, rows: Tensor, coordinates: Tensor, *, keep: bool = True) -> Tensor:
        """Return the label weight, from these rows where it is not known yet."""
        if self._weighed:
            return self.label_weight
        of_labels = mean_cost(coordinates)
        if not float(of_labels) > 0:
            raise InputError(
                "All labels of these rows are alike, so no label weight follows from them. Pass label_weight=, or rows "
                "of several classes first."
            )
        weight = (mean_cost(rows) / of_labels).to(rows)
        if keep:
            self.label_weight, self._weighed = weight, True
        return weight

    def _queue_for(self, rows: Tensor) -> FeatureQueue | None:
        if self.queue_size and self.queue is None:
            queue = FeatureQueue(self.queue_size, rows.shape[1], classes=self.classes or 0, dtype=rows.dtype)
            self.queue = queue.to(rows.device)
        return self.queue

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}queue.rows")
        if stored is not None and self.queue_size == stored.shape[1]:
            self._queue_for(stored.new_empty(0, stored.shape[2], device=self.label_weight.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._weighed = float(self.label_weight) > 0
