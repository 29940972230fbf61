"""All distillation losses with features to build and call them: one table for all cost scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mikit


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of the features of both networks.

    Attributes:
        rows: Number of samples in a batch.
        widths: Widths of the student's and of the teacher's vectors.
        maps: Channels, height and width of the student's and of the teacher's maps, from the input on.
        classes: Number of classes.
    """

    rows: int = 45
    widths: tuple[int, int] = (6, 5)
    maps: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = (((4, 4, 4), (5, 2, 2)),)
    classes: int = 4


class Batch(NamedTuple):
    """Features of one batch, as a loss takes them, and labels."""

    student: Any
    teacher: Any
    labels: Tensor


@dataclass(frozen=True)
class Case:
    """One loss.

    Attributes:
        build: From student, teacher and labels of example features to the loss.
        form: What it reads. ``"rows"``: two widths; ``"alike"``: rows of the teacher's width from both; ``"classes"``:
            rows and class indices; ``"logits"``; ``"maps"``: those of the last stage; ``"network"``: maps and a vector
            by name; ``"layers"``: a list of these, ``"pooled"``: with the maps averaged over places.
        labels: Whether it is called with labels: ``"taken"`` or ``"needed"``; empty if not.
        draws: Whether it draws at random when called and takes a generator.
        breaks: Why the compiler does not keep one graph; empty where it does.
        fewest: Fewest samples in a batch.
        pairs: Whether row ``i`` of both sides must be the same input.
    """

    build: Callable[..., nn.Module]
    form: str = "rows"
    labels: str = ""
    draws: bool = False
    breaks: str = ""
    fewest: int = 2
    pairs: bool = True

    def built(self, examples: Batch) -> nn.Module:
        """Return the loss, with its parameters drawn from a separate seed."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return self.build(*examples)

    def called(self, loss: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        options: dict[str, Any] = {"labels": batch.labels} if self.labels else {}
        if self.draws:
            options["generator"] = torch.Generator().manual_seed(3)
        value: Tensor = loss(batch.student, batch.teacher, **options)
        return value


def features(form: str, shapes: Shapes, seed: int, *, mean: float = 0.0, dtype: torch.dtype = torch.float32) -> Batch:
    """Return rectified features of two networks that see the same classes, ``mean`` spreads away from the origin."""
    g = torch.Generator().manual_seed(seed)
    n, (d_s, d_t) = shapes.rows, shapes.widths
    labels = torch.arange(n) % shapes.classes

    def drawn(*shape: int) -> Tensor:
        # The classes lie apart, alike in every batch, and both networks see a part of one signal.
        of_class = torch.randn(shapes.classes, *shape, generator=torch.Generator().manual_seed(sum(shape)))[labels]
        return (mean + 0.7 * of_class + 0.7 * torch.randn(n, *shape, generator=g)).relu().to(dtype)

    if form == "rows":
        return Batch(drawn(d_s), drawn(d_t), labels)
    if form == "alike":
        return Batch(drawn(d_t) + 0.5, drawn(d_t), labels)  # another distribution, so that no value is 0
    if form == "classes":
        return Batch(drawn(d_s), labels, labels)
    if form == "logits":
        of_label = 2 * nn.functional.one_hot(labels, shapes.classes)
        return Batch(*(of_label.to(dtype) + drawn(shapes.classes) for _ in range(2)), labels)
    if form == "maps":
        return Batch(*(drawn(*shape) for shape in shapes.maps[-1]), labels)
    maps = {f"stage{i + 1}": tuple(drawn(*shape) for shape in both) for i, both in enumerate(shapes.maps)}
    pooled = {"pool": (drawn(d_s), drawn(d_t))}
    sides = [{name: both[side] for name, both in (maps | pooled).items()} for side in (0, 1)]
    if form == "network":
        return Batch(*sides, labels)
    if form == "pooled":
        sides = [
            {name: one.flatten(2).mean(2) if one.ndim > 2 else one for name, one in side.items()} for side in sides
        ]
    return Batch(*(list(side.values()) for side in sides), labels)


def between(cls: Any, *, with_labels: bool = False, **options: Any) -> Callable[..., nn.Module]:
    """Return a function from example features to a loss of ``cls``."""

    def build(student: Any, teacher: Any, labels: Tensor) -> nn.Module:
        extra = {"labels": labels} if with_labels else {}
        loss: nn.Module = cls.between(student, teacher, **extra, **options)
        return loss

    return build


def plain(cls: Any, **options: Any) -> Callable[..., nn.Module]:
    """Return a function to a loss that takes nothing from features."""
    return lambda *_: cls(**options)


_CLASSES = "the classes are counted on the host"
_BY_CLASS = "class sizes are read on the host"
_GROMOV = "each step of its descent is decided on the host"
_FLOW = "which columns its flows leave straight is read on the host"
_SINKHORN = "epsilon is taken from the batch on the host, unless it is given"

LOSSES: Mapping[str, Case] = {
    "VID, learned variance": Case(between(mikit.VID), fewest=1),
    "VID, closed variance": Case(between(mikit.VID, variance="closed"), fewest=1),
    "VID, full covariance": Case(between(mikit.VID, variance="full"), fewest=1),
    "VID, batch-normalised head": Case(between(mikit.VID, arch="bn_relu3x2"), "maps", fewest=1),
    "VID, maps": Case(between(mikit.VID), "maps", fewest=1),
    "MIMKD": Case(between(mikit.MIMKD), "network"),
    "MIMKD, labels": Case(between(mikit.MIMKD), "network", labels="taken"),
    "MIMKD, concat, one negative": Case(between(mikit.MIMKD, critic="concat"), "network", draws=True),
    "MIMKD, InfoNCE": Case(between(mikit.MIMKD, objective="infonce"), "network"),
    "PKT": Case(between(mikit.PKT), fewest=3),
    "PKT, combined, Jeffreys": Case(between(mikit.PKT, kernel="combined", divergence="jeffreys"), fewest=3),
    "InformationFlow": Case(between(mikit.InformationFlow), "pooled", fewest=3),
    "InformationFlow, whole maps": Case(between(mikit.InformationFlow), "layers", fewest=3),
    "QMI": Case(plain(mikit.QMI)),
    "LabelQMI": Case(plain(mikit.LabelQMI), "classes"),
    "LabelHSIC": Case(plain(mikit.LabelHSIC), "classes", breaks=_CLASSES, fewest=4),
    "HSIC": Case(plain(mikit.HSIC), fewest=4),
    "CKA": Case(plain(mikit.CKA), fewest=4),
    "KD2M, MMD": Case(between(mikit.KD2M), pairs=False),
    "KD2M, MMD by class": Case(
        between(mikit.KD2M, conditional="class", classes=4), labels="needed", breaks=_BY_CLASS, fewest=5
    ),
    "KD2M, energy with labels": Case(
        between(mikit.KD2M, metric="energy", conditional="joint", classes=4, with_labels=True), labels="needed"
    ),
    "KD2M, Sinkhorn with labels": Case(
        between(mikit.KD2M, metric="sinkhorn_divergence", conditional="joint", classes=4, with_labels=True),
        labels="needed",
        breaks=_SINKHORN,
        fewest=1,
    ),
    "KD2M, Wasserstein by class": Case(
        between(mikit.KD2M, metric="wasserstein", conditional="class", classes=4),
        labels="needed",
        breaks=_BY_CLASS,
        fewest=1,
    ),
    "KD2M, Gaussian Wasserstein": Case(between(mikit.KD2M, metric="gaussian_wasserstein"), fewest=1, pairs=False),
    "KD2M, sliced Wasserstein": Case(between(mikit.KD2M, metric="sliced_wasserstein"), fewest=1, pairs=False),
    "MMD": Case(plain(mikit.MMD), "alike", pairs=False),
    "EnergyDistance": Case(plain(mikit.EnergyDistance), "alike", pairs=False),
    "SinkhornDivergence": Case(plain(mikit.SinkhornDivergence), "alike", breaks=_SINKHORN, fewest=1, pairs=False),
    "SinkhornDivergence, epsilon given": Case(
        plain(mikit.SinkhornDivergence, epsilon=0.5), "alike", fewest=1, pairs=False
    ),
    "SlicedWasserstein": Case(plain(mikit.SlicedWasserstein), "alike", fewest=1, pairs=False),
    "Wasserstein": Case(plain(mikit.Wasserstein), "alike", fewest=1, pairs=False),
    "GaussianWasserstein": Case(plain(mikit.GaussianWasserstein), "alike", fewest=1, pairs=False),
    "GaussianKL": Case(plain(mikit.GaussianKL), "alike", fewest=3, pairs=False),
    "GromovWasserstein": Case(plain(mikit.GromovWasserstein), breaks=_GROMOV, fewest=1, pairs=False),
    "InfoNCE": Case(between(mikit.InfoNCE)),
    "AnchoredInfoNCE": Case(between(mikit.AnchoredInfoNCE), fewest=3),
    "JSD": Case(between(mikit.JSD)),
    "NWJ": Case(between(mikit.NWJ)),
    "DV": Case(between(mikit.DV)),
    "SMILE": Case(between(mikit.SMILE)),
    "GaussianMI": Case(plain(mikit.GaussianMI)),
    "LabelInformation": Case(between(mikit.LabelInformation), "classes", fewest=1),
    "FlowMI": Case(between(mikit.FlowMI), breaks=_FLOW),
    "CRD": Case(between(mikit.CRD)),
    "CRD, labels": Case(between(mikit.CRD), labels="taken"),
    "HintonKD": Case(plain(mikit.HintonKD), "logits"),
    "DKD": Case(plain(mikit.DKD), "logits", labels="needed", fewest=1),
    "FitNet": Case(between(mikit.FitNet)),
    "FitNet, maps": Case(between(mikit.FitNet), "maps", fewest=1),
    "AttentionTransfer": Case(plain(mikit.AttentionTransfer), "maps", fewest=1),
    "ChannelMMD": Case(plain(mikit.ChannelMMD), "maps", fewest=1),
}
