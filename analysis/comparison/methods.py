"""Distillation methods that several analyses compare, each with the weight at which a search starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

import mikit
from comparison.runs import ALONE, Method, Pairing
from mikit.distillation import RECIPES, DistillationTerm, example_features, example_layers
from mikit.distillation.losses.base import recommended_weight

STAGES = ("stage1", "stage2", "stage3")
FLOW_LAYERS = (*STAGES, "pool")
_RELEASED_START = 5.0

Terms = dict[str, DistillationTerm]
Build = Callable[[Pairing], Terms]


def on_layer(
    loss: Callable[..., nn.Module],
    layer: str,
    source: str | None = None,
    *,
    readout: str = "pool",
    weight: float = 1.0,
    labels: bool = False,
) -> Build:
    """Return how to build one loss between two layers; ``loss`` takes two example activations and a generator."""

    def build(pairing: Pairing) -> Terms:
        networks = (pairing.student, pairing.teacher)
        examples = example_features(*networks, pairing.some.images, layer, source, readout=readout)
        built = loss(*examples, generator=pairing.generator)
        term = DistillationTerm(
            loss=built, layer=layer, teacher_layer=source, readout=readout, weight=weight, labels=labels
        )
        return {layer: term}

    return build


def on_stages(loss: Callable[..., nn.Module]) -> Build:
    """Return how to build one loss for each of the three stages, on maps."""
    return together(*(on_layer(loss, stage, readout="whole") for stage in STAGES))


def on_several(loss: Callable[..., nn.Module], layers: tuple[str, ...], *, readout: str, weight: float = 1.0) -> Build:
    """Return how to build one loss on several layers at once."""

    def build(pairing: Pairing) -> Terms:
        examples = example_layers(pairing.student, pairing.teacher, pairing.some.images, layers, readout=readout)
        built = loss(*examples, generator=pairing.generator)
        return {type(built).__name__: DistillationTerm(loss=built, layer=layers, readout=readout, weight=weight)}

    return build


def together(*builds: Build) -> Build:
    """Return how to build the losses of several methods at once."""

    def build(pairing: Pairing) -> Terms:
        terms: Terms = {}
        for number, part in enumerate(builds):
            terms |= {f"{number} {name}" if name in terms else name: term for name, term in part(pairing).items()}
        return terms

    return build


def scaled(build: Build, factor: float) -> Build:
    """Return the same losses with their weights times ``factor``."""

    def rescaled(pairing: Pairing) -> Terms:
        return {name: replace(term, weight=factor * term.weight) for name, term in build(pairing).items()}

    return rescaled


def recommended(build: Build) -> Build:
    """Return the same losses with their weights times each loss's ``recommended_weight``."""

    def reweighted(pairing: Pairing) -> Terms:
        terms = build(pairing)
        return {name: replace(term, weight=term.weight * recommended_weight(term.loss)) for name, term in terms.items()}

    return reweighted


@final
class OtherImages(nn.Module):
    """A loss with the teacher's features of another image of the batch: a control."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.recommended_weight = recommended_weight(loss)

    def forward(self, own: Tensor, source: Tensor) -> Tensor:
        """Return the loss with the teacher's samples shifted by one."""
        value: Tensor = self.loss(own, source.roll(1, 0))
        return value

    def param_groups(self) -> list[dict[str, Any]]:
        """Return those of the loss."""
        groups: list[dict[str, Any]] = self.loss.param_groups()
        return groups


def vid_of_other_images(own: Tensor, source: Tensor, *, generator: torch.Generator) -> nn.Module:
    """Return VID with the teacher's features of other images."""
    return OtherImages(mikit.VID.between(own, source, generator=generator))


def vid_from_five(own: Tensor, source: Tensor, *, generator: torch.Generator) -> nn.Module:
    """Return VID whose variances start at 5, as in released codes, for any variances of the teacher."""
    vid = mikit.VID.between(own, source, generator=generator)
    start = _RELEASED_START / vid.pair.teacher_variance
    vid.law.set_to(start.sqrt()[None], start)
    return vid


def residual_ratios(pairing: Pairing, terms: Terms) -> dict[str, Any]:
    """Return, stage by stage, VID's mean variance over that of its residuals, on views of the training images."""
    found = {}
    for name, term in terms.items():
        vid = term.loss
        assert isinstance(vid, mikit.VID)
        own, source = example_features(pairing.student, pairing.teacher, pairing.some.images, name, readout="whole")
        with torch.no_grad():
            own, source = vid.pair.aligned(own, source)
            residual = vid.head(vid.pair.student(own)) - vid.pair.teacher(source)
            left = residual.square().mean((0, 2, 3)) * vid.pair.teacher_unit().square()
            found[name] = float(vid.variance.mean() / left.mean())
    return found


def information_flow(own: Any, source: Any, *, generator: torch.Generator) -> nn.Module:
    """Return information-flow distillation by depth, as released: the weight of intermediate layers decays."""
    return mikit.InformationFlow.between(own, source, generator=generator)


def flow_kept(own: Any, source: Any, *, generator: torch.Generator) -> nn.Module:
    """Return information-flow distillation with equal and constant weights of the layers."""
    return mikit.InformationFlow.between(own, source, alpha=1.0, gamma=1.0, generator=generator)


def without_parts(loss: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    """Return a loss that needs no examples, with the signature of those that do."""

    def between(own: Tensor, source: Tensor, *, generator: torch.Generator) -> nn.Module:
        return loss()

    return between


def kd2m(metric: str, form: str) -> Build:
    """Return KD²M on the pooled layer, with a metric and a form."""

    def build(pairing: Pairing) -> Terms:
        examples = example_features(pairing.student, pairing.teacher, pairing.some.images, "pool")
        loss = mikit.KD2M.between(
            *examples,
            metric=METRICS[metric](),
            conditional=None if form == "marginal" else form,
            labels=pairing.some.labels,
            classes=pairing.student.fc.out_features,
            generator=pairing.generator,
        )
        return {"kd2m": DistillationTerm(loss=loss, layer="pool", labels=True)}

    return build


METRICS: dict[str, Callable[[], Any]] = {
    "mmd": lambda: mikit.MMD(),
    "energy": lambda: mikit.EnergyDistance(),
    "exact": lambda: mikit.Wasserstein(),
    "sinkhorn": lambda: mikit.SinkhornDivergence(),
    "sliced": lambda: mikit.SlicedWasserstein(),
    "gaussian": lambda: mikit.GaussianWasserstein(),
    "diagonal": lambda: mikit.GaussianWasserstein(diagonal=True),
    "kl": lambda: mikit.GaussianKL(),
}
METRIC_NAMES = {
    "mmd": "MMD, Gaussian kernel",
    "energy": "energy distance",
    "exact": "exact W₂²",
    "sinkhorn": "Sinkhorn divergence",
    "sliced": "sliced W₂²",
    "gaussian": "Gaussian W₂², full",
    "diagonal": "Gaussian W₂², diagonal",
    "kl": "Gaussian KL",
}
FORM_NAMES = {"class": "per class", "joint": "joint with labels", "marginal": "marginal"}

student_alone = Method(title="student alone", weights=(0.0,))
vid = recommended(on_stages(mikit.VID.between))
hinton = on_layer(without_parts(mikit.HintonKD), "fc")
attention = on_stages(without_parts(mikit.AttentionTransfer))
mimkd = on_several(mikit.MIMKD.between, FLOW_LAYERS, readout="whole")
exact_joint = scaled(kd2m("exact", "joint"), RECIPES["kd2m"].weight)

METHODS: dict[str, Method] = {
    ALONE: student_alone,
    "vid": Method(title="VID", build=vid, look=residual_ratios),
    "hinton": Method(title="Hinton KD", build=hinton),
    "fitnet": Method(title="FitNet", build=on_layer(mikit.FitNet.between, "stage2", readout="whole")),
    "attention": Method(title="attention transfer", build=attention),
    "vid-from-5": Method(
        title="VID, σ² from 5", build=recommended(on_stages(vid_from_five)), look=residual_ratios, weights=(1.0,)
    ),
    "vid-other-images": Method(
        title="VID, pairs broken", build=recommended(on_stages(vid_of_other_images)), weights=(1.0,)
    ),
    "vid-untrained": Method(title="VID, untrained teacher", build=vid, teacher="untrained", weights=(1.0,)),
    "mimkd": Method(title="MIMKD", build=mimkd),
    "flow": Method(title="information flow", build=on_several(information_flow, FLOW_LAYERS, readout="pool")),
    "flow-kept": Method(title="information flow, kept", build=on_several(flow_kept, FLOW_LAYERS, readout="pool")),
    "pkt": Method(title="PKT", build=on_layer(mikit.PKT.between, "pool")),
    "crd": Method(title="CRD", build=on_layer(mikit.CRD.between, "pool")),
    "dkd": Method(title="DKD", build=on_layer(without_parts(mikit.DKD), "fc", labels=True)),
    "kd2m": Method(title="KD²M, exact, joint", build=exact_joint),
    "vid+hinton": Method(title="VID + Hinton KD", build=together(vid, hinton)),
    "vid+kd2m": Method(title="VID + KD²M", build=together(vid, exact_joint)),
    "vid+logits": Method(
        title="VID + VID-LP", build=together(vid, recommended(on_layer(mikit.VID.between, "pool", "fc")))
    ),
}
