"""Student and teacher samples grouped by class, and the mean discrepancy over classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.distillation.kd2m.queue import FeatureQueue
from mikit.estimators.discrepancy import Discrepancy

__all__ = ["ClassSamples", "by_class", "by_soft_label", "fewest_rows", "mean_over_classes"]


@final
class ClassSamples(NamedTuple):
    """Student and teacher samples of one class, or of all classes.

    ``teacher`` starts with the partners of the student's samples, in their order; samples of the queue follow.
    ``share`` is ``P(y)`` up to a common factor. ``weights`` belong to the samples of the batch, None for equal ones.
    ``rows`` is the number of samples in the batch that belong to the class.
    """

    label: int | None
    share: float
    student: Tensor
    teacher: Tensor
    weights: Tensor | None
    rows: int

    def compared(self, compare: Callable[..., Tensor]) -> Tensor:
        """Return the discrepancy between student and teacher."""
        if self.weights is None:
            return compare(self.student, self.teacher)
        return compare(self.student, self.teacher, weights_x=self.weights, weights_y=self.weights)


def by_class(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    queue: FeatureQueue | None = None,
    prior: Sequence[float] | None = None,
) -> list[ClassSamples]:
    """Group a batch by class index; classes without samples are left out."""
    # One sort and one split for the whole batch. A boolean mask for each of 100 classes would launch hundreds of
    # kernels and synchronize with the device as often.
    counts: list[int] = torch.bincount(labels).tolist()
    order = labels.argsort(stable=True).to(student.device)
    present = [label for label, count in enumerate(counts) if count]
    sizes = [counts[label] for label in present]
    kept = queue.counts() if queue is not None else []
    groups = []
    for label, samples, partners in zip(
        present, torch.split(student[order], sizes), torch.split(teacher[order], sizes), strict=True
    ):
        if queue is not None and label < len(kept) and kept[label]:
            partners = torch.cat([partners, queue.of(label, kept[label]).to(partners)])
        share = counts[label] if prior is None else prior[label]
        groups.append(ClassSamples(label, float(share), samples, partners, None, counts[label]))
    return groups


def by_soft_label(
    student: Tensor, teacher: Tensor, labels: Tensor, *, prior: Sequence[float] | None = None
) -> list[ClassSamples]:
    """Return the whole batch once for each class, weighted by the soft labels ``(n, classes)``."""
    weights = labels.detach().double().to(student.device)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InputError("Soft labels must be finite and not negative. Pass probabilities, not logits.")
    sums = weights.sum(dim=1)
    if not bool((sums - 1).abs().amax() < 1e-2):
        raise InputError(
            f"The soft labels of a sample must add up to 1, but the sums lie between {float(sums.min()):.3g} and "
            f"{float(sums.max()):.3g}. Pass probabilities."
        )
    if prior is not None and len(prior) != labels.shape[1]:
        raise InputError(f"prior has {len(prior)} classes, but the soft labels have {labels.shape[1]} columns.")
    shares, rows = weights.sum(dim=0).tolist(), (weights > 0).sum(dim=0).tolist()
    columns = weights.T.contiguous()
    return [
        ClassSamples(label, shares[label] if prior is None else prior[label], student, teacher, columns[label], count)
        for label, count in enumerate(rows)
        if count
    ]


def mean_over_classes(
    metric: Discrepancy, compare: Callable[..., Tensor], groups: Sequence[ClassSamples], fewest: int
) -> tuple[Tensor, int]:
    """Return the mean discrepancy over classes of at least ``fewest`` samples, and how many classes are left out."""
    kept = [group for group in groups if group.rows >= fewest and group.share > 0]
    if not kept:
        raise InputError(
            f"No class of this batch has the {fewest} samples that {type(metric).__name__} needs at least. Use larger "
            "or class-balanced batches, or a metric that needs fewer samples, such as a biased one."
        )
    # Shares are normalized over the classes that are compared: the loss keeps its size when a batch lacks some classes.
    total = sum(group.share for group in kept)
    shares, left_out = [group.share / total for group in kept], len(groups) - len(kept)
    if all(group.weights is None for group in kept):
        # Some metrics compare all classes in one batched call, which is far faster than a loop over small samples.
        together = metric.mean_between([(group.student, group.teacher) for group in kept], shares)
        if together is not None:
            return together, left_out
    values = torch.stack([group.compared(compare) * share for group, share in zip(kept, shares, strict=True)])
    return values.sum(), left_out


@torch.no_grad()
def fewest_rows(metric: Discrepancy, like: Tensor) -> int:
    """Return the fewest samples a side that ``metric`` compares in the width of ``like``, found by trying."""
    width = like.shape[1]
    # Rectified, because real features are: among a few samples some columns are constant, which singular covariances
    # do not survive. Normal samples would suggest that fewer are enough.
    drawn = torch.randn(2, width + 2, width, generator=torch.Generator().manual_seed(0)).relu().to(like)
    for count in (1, 2, 3, 4, width + 1):
        try:
            metric.estimate(drawn[0, :count], drawn[1, :count])
        except InputError:
            continue
        return count
    return width + 2
