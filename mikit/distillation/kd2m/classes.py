"""What is compared with what: the rows of student and teacher, class by class, and what a class counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.distillation.kd2m.queue import FeatureQueue
from mikit.estimators.discrepancy import Discrepancy

__all__ = ["ClassLaw", "fewest_rows", "hard_laws", "mean_over_classes", "soft_laws"]


@final
class ClassLaw(NamedTuple):
    """Student and teacher, of one class or of all.

    Args:
        label: The class; None for all.
        share: What it counts: ``P(y)`` up to a common factor.
        student: Rows ``(k, d)``.
        teacher: Rows ``(m, d)``: the partners of the student's first, in their order, then those of the queue.
        weights: What the rows of the batch count, ``(k,)``; None: all the same.
        rows: Rows of the batch that belong to it.
    """

    label: int | None
    share: float
    student: Tensor
    teacher: Tensor
    weights: Tensor | None
    rows: int

    def compared(self, compare: Callable[..., Tensor]) -> Tensor:
        """Return the discrepancy of the two."""
        if self.weights is None:
            return compare(self.student, self.teacher)
        return compare(self.student, self.teacher, weights_x=self.weights, weights_y=self.weights)


def hard_laws(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    queue: FeatureQueue | None = None,
    prior: Sequence[float] | None = None,
) -> list[ClassLaw]:
    """Return the law of every class of a batch, whose rows are sorted once; a class without rows is not among them."""
    counts: list[int] = torch.bincount(labels).tolist()
    order = labels.argsort(stable=True).to(student.device)
    present = [label for label, count in enumerate(counts) if count]
    sizes = [counts[label] for label in present]
    kept = queue.counts() if queue is not None else []
    laws = []
    for label, own, partners in zip(
        present, torch.split(student[order], sizes), torch.split(teacher[order], sizes), strict=True
    ):
        if queue is not None and label < len(kept) and kept[label]:
            partners = torch.cat([partners, queue.of(label, kept[label]).to(partners)])
        share = counts[label] if prior is None else prior[label]
        laws.append(ClassLaw(label, float(share), own, partners, None, counts[label]))
    return laws


def soft_laws(
    student: Tensor, teacher: Tensor, labels: Tensor, *, prior: Sequence[float] | None = None
) -> list[ClassLaw]:
    """Return the law of every class of a batch, in which a row counts as much as its soft label says."""
    weights = labels.detach().double().to(student.device)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InputError("Soft labels must be finite and not negative. Pass probabilities, not logits.")
    sums = weights.sum(dim=1)
    if not bool((sums - 1).abs().amax() < 1e-2):
        raise InputError(
            f"The soft labels of a row add up to 1, but the sums lie between {float(sums.min()):.3g} and "
            f"{float(sums.max()):.3g}. Pass probabilities."
        )
    if prior is not None and len(prior) != labels.shape[1]:
        raise InputError(f"prior names {len(prior)} classes, but the soft labels have {labels.shape[1]} columns.")
    shares, rows = weights.sum(dim=0).tolist(), (weights > 0).sum(dim=0).tolist()
    columns = weights.T.contiguous()
    return [
        ClassLaw(label, shares[label] if prior is None else prior[label], student, teacher, columns[label], count)
        for label, count in enumerate(rows)
        if count
    ]


def mean_over_classes(
    metric: Discrepancy, compare: Callable[..., Tensor], laws: Sequence[ClassLaw], fewest: int
) -> tuple[Tensor, int]:
    """Return the mean discrepancy with ``P(y)`` of the classes with ``fewest`` rows, and how many are left out."""
    kept = [law for law in laws if law.rows >= fewest and law.share > 0]
    if not kept:
        raise InputError(
            f"No class of this batch has the {fewest} rows that {type(metric).__name__} takes at least. Draw larger or "
            "class-balanced batches, or use a metric that takes fewer, such as a biased one."
        )
    total = sum(law.share for law in kept)
    shares, left_out = [law.share / total for law in kept], len(laws) - len(kept)
    if all(law.weights is None for law in kept):
        together = metric.mean_between([(law.student, law.teacher) for law in kept], shares)
        if together is not None:
            return together, left_out
    values = torch.stack([law.compared(compare) * share for law, share in zip(kept, shares, strict=True)])
    return values.sum(), left_out


@torch.no_grad()
def fewest_rows(metric: Discrepancy, like: Tensor) -> int:
    """Return the fewest rows a side that ``metric`` compares in the width of ``like``, found by trying.

    The rows tried are rectified, so that among few of them some columns never vary, as among features they do not.
    """
    width = like.shape[1]
    drawn = torch.randn(2, width + 2, width, generator=torch.Generator().manual_seed(0)).relu().to(like)
    for count in (1, 2, 3, 4, width + 1):
        try:
            metric.estimate(drawn[0, :count], drawn[1, :count])
        except InputError:
            continue
        return count
    return width + 2
