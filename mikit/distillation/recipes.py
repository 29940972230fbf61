"""How each distillation loss is used by default, by name: where it stands, how it is built, how much it weighs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError
from mikit.distillation.examples import example_features, example_layers
from mikit.distillation.kd2m.kd2m import KD2M
from mikit.distillation.losses.crd import CRD
from mikit.distillation.losses.features import AttentionTransfer, ChannelMMD, FitNet
from mikit.distillation.losses.information_flow import InformationFlow
from mikit.distillation.losses.logits import DKD, HintonKD
from mikit.distillation.losses.pkt import PKT
from mikit.distillation.mimkd.mimkd import MIMKD
from mikit.distillation.training.plan import DistillationTerm
from mikit.estimators import VID

__all__ = ["RECIPES", "Ingredient", "Recipe", "distillation_terms", "read_ingredients"]

Pair = tuple[str, str]
Build = Callable[[Any, Any, Tensor, int, torch.Generator], nn.Module]

# In units of each loss's own recommended_weight. FitNet, AttentionTransfer and PKT come scaled: their weights are about
# 10, 1000 and 1000 of the plain means that released codes weigh.
_WEIGHTS = {
    "vid": 1.0,
    "hinton": 1.0,
    "dkd": 1.0,
    "fitnet": 1.0,
    "attention": 1.0,
    "channel_mmd": 1.0,
    "pkt": 1.0,
    "flow": 1.0,
    "kd2m": 5.0,
    "mimkd": 1.0,
    "crd": 0.8,
}


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One loss as it is recommended.

    Attributes:
        name: What the command line and :func:`distillation_terms` call it.
        about: What it is, in a few words.
        weight: Recommended weight beside a cross-entropy of weight 1, in units of the loss's ``recommended_weight``.
            Where the loss stands between several pairs of layers, each pair has it.
        layers: Layers of :class:`~mikit.models.ResNet8` it stands at by default, on both sides.
        reads: ``"features"``, ``"logits"``, or ``"several"`` for one loss that reads all layers at once.
        readout: What is kept of an activation: ``"whole"`` where it reads maps, else ``"pool"``.
        labels: Whether it takes the class indices of the batch.
        build: From example activations of both sides, labels, batch size and a generator to the loss.
    """

    name: str
    about: str
    weight: float
    layers: tuple[str, ...]
    reads: str
    readout: str
    labels: bool
    build: Build


@final
@dataclass(frozen=True)
class Ingredient:
    """A loss and its weight.

    Attributes:
        recipe: The loss.
        weight: Its weight, in the same unit; the recommended one unless told otherwise.
    """

    recipe: Recipe
    weight: float

    @property
    def label(self) -> str:
        """The name, with the weight where it is not the recommended one."""
        told = "" if self.weight == self.recipe.weight else f":{self.weight:g}"
        return f"{self.recipe.name}{told}"


def _vid(x: Tensor, y: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
    return VID.between(x, y, generator=generator)


def _kd2m(x: Tensor, y: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
    # About a batch, because the bias of exact transport between so many rows belongs to the unit.
    few = slice(0, batch)
    return KD2M.between(
        x[few], y[few], metric="wasserstein", conditional="joint", labels=labels[few], generator=generator
    )


def _flow(x: Any, y: Any, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
    return InformationFlow.between(x, y)


def _alike(cls: Any) -> Build:
    """Return how a class is built whose ``between`` takes features and a generator."""

    def build(x: Any, y: Any, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
        loss: nn.Module = cls.between(x, y, generator=generator)
        return loss

    return build


def _ready(cls: Callable[[], nn.Module]) -> Build:
    """Return how a class is built that needs no example."""

    def build(x: Tensor, y: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
        return cls()

    return build


def _recipes() -> Mapping[str, Recipe]:
    stages = ("stage1", "stage2", "stage3")
    logits = ("fc",)
    pooled = ("pool",)
    rows: tuple[tuple[str, str, tuple[str, ...], str, str, bool, Build], ...] = (
        ("vid", "variational information distillation", stages, "features", "whole", False, _vid),
        ("hinton", "softened logits, T = 4", logits, "logits", "pool", False, _ready(HintonKD)),
        ("dkd", "softened logits, the label apart", logits, "logits", "pool", True, _ready(DKD)),
        ("fitnet", "regression of the teacher's maps", ("stage2",), "features", "whole", False, _alike(FitNet)),
        ("attention", "where the maps are large", stages, "features", "whole", False, _ready(AttentionTransfer)),
        ("channel_mmd", "MMD across channels", ("stage3",), "features", "whole", False, _ready(ChannelMMD)),
        ("pkt", "neighbours in the batch", pooled, "features", "pool", False, _alike(PKT)),
        ("flow", "neighbours at several layers", (*stages, "pool"), "several", "pool", False, _flow),
        ("kd2m", "exact transport of features and labels", pooled, "features", "pool", True, _kd2m),
        ("mimkd", "critics of images and of places", ("stage3", "pool"), "several", "whole", False, _alike(MIMKD)),
        ("crd", "contrast in the batch", pooled, "features", "pool", False, _alike(CRD)),
    )
    made = (
        Recipe(
            name=name,
            about=about,
            weight=_WEIGHTS[name],
            layers=layers,
            reads=reads,
            readout=readout,
            labels=labels,
            build=build,
        )
        for name, about, layers, reads, readout, labels, build in rows
    )
    return MappingProxyType({recipe.name: recipe for recipe in made})


RECIPES: Mapping[str, Recipe] = _recipes()
"""Every loss by name."""


def read_ingredients(text: str) -> tuple[Ingredient, ...]:
    """Return the losses that ``"vid"``, ``"vid:2"`` or ``"vid:2+hinton"`` names.

    Args:
        text: Names of :data:`RECIPES`, joined by ``+`` for losses that act together; each may have a weight behind a
            colon.

    Raises:
        InputError: If there is no such loss (the nearest names are told), it stands twice, or a weight is no positive
            number.

    Example:
        >>> [(one.recipe.name, one.weight) for one in read_ingredients("vid:2+hinton")]
        [('vid', 2.0), ('hinton', 1.0)]
        >>> read_ingredients("hinto")
        Traceback (most recent call last):
        mikit.core.errors.InputError: There is no loss "hinto". Did you mean hinton? The losses are vid, hinton, dkd,
        ...
    """
    found: list[Ingredient] = []
    for part in text.split("+"):
        name, colon, weight = part.strip().partition(":")
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, n=2, cutoff=0.6)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f'There is no loss "{name}".{hint} The losses are {", ".join(RECIPES)}.')
        if any(one.recipe.name == name for one in found):
            raise InputError(f'The loss "{name}" stands twice in "{text}". Name it once, with one weight.')
        found.append(Ingredient(RECIPES[name], _weight(weight, text) if colon else RECIPES[name].weight))
    return tuple(found)


def distillation_terms(
    ingredients: Sequence[Ingredient] | str,
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch: int,
    pairs: Sequence[Pair] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, DistillationTerm]:
    """Build losses as they are recommended, ready for :func:`~mikit.distillation.train_student`.

    Args:
        ingredients: What :func:`read_ingredients` gives, or its text.
        student: The student, untrained.
        teacher: The teacher, in evaluation mode.
        images: Example images, in random order, a batch of them at least; the student's own training images will do.
        labels: Their class indices.
        batch: Images a training step; metrics whose bias depends on it take so many of the example.
        pairs: Layers of the student and of the teacher that losses on features stand between, in place of their
            own; ``HintonKD`` and ``DKD`` stay at the logits.
        generator: Where losses draw their parameters from; torch's global generator if None.

    Returns:
        The terms by name: ``"vid"``, or ``"vid stage1:stage1"`` where a loss stands between several pairs.

    Raises:
        InputError: If a layer does not exist, or a loss cannot be built between its layers; the sentence names both.

    Cost:
        One forward pass of both networks for each pair of layers.

    Pitfalls:
        Default layers are those of :class:`~mikit.models.ResNet8`; give ``pairs`` for another network. Weights are
        recommended for its sizes and a cross-entropy of weight 1.

    Example:
        >>> import mikit
        >>> student, teacher = (mikit.models.ResNet8(width=width) for width in (0.25, 0.5))
        >>> part = mikit.datasets.digits().train.per_class(5, seed=0)
        >>> terms = distillation_terms("vid+hinton", student, teacher.eval(), part.images, part.labels, batch=25)
        >>> [(name, term.weight) for name, term in terms.items()][-2:]
        [('vid stage3:stage3', 10.0), ('hinton', 1.0)]
    """
    wanted = read_ingredients(ingredients) if isinstance(ingredients, str) else ingredients
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))
    terms: dict[str, DistillationTerm] = {}
    for one in wanted:
        recipe = one.recipe
        own = pairs if pairs and recipe.reads != "logits" else [(layer, layer) for layer in recipe.layers]
        layers, sources = tuple(pair[0] for pair in own), tuple(pair[1] for pair in own)
        groups: list[tuple[Any, Any]] = [(layers, sources)] if recipe.reads == "several" else list(own)
        for layer, source in groups:
            said = f"{_said(layer)}:{_said(source)}"
            try:
                own_example, example = _examples(recipe, student, teacher, images, layer, source)
                loss = recipe.build(own_example, example, labels.cpu(), batch, generator)
                _try_out(loss, own_example, example)
                term = DistillationTerm(
                    loss=loss.to(images.device),
                    layer=layer,
                    teacher_layer=source,
                    weight=one.weight * float(getattr(loss, "recommended_weight", 1.0)),
                    readout=recipe.readout,
                    labels=recipe.labels,
                )
            except InputError as cause:
                raise InputError(f'The loss "{recipe.name}" cannot stand between the layers {said}. {cause}') from cause
            terms[recipe.name if len(groups) == 1 else f"{recipe.name} {said}"] = term
    return terms


def _examples(
    recipe: Recipe, student: nn.Module, teacher: nn.Module, images: Tensor, layer: Any, source: Any
) -> tuple[Any, Any]:
    """Return activations of one layer each, or of several by name; on the CPU, where generators draw."""
    if recipe.reads == "several":
        sides = example_layers(student, teacher, images, layer, source, readout=recipe.readout)
        own, other = ({name: value.cpu() for name, value in side.items()} for side in sides)
        return own, other
    x, y = example_features(student, teacher, images, layer, source, readout=recipe.readout)
    return x.cpu(), y.cpu()


def _try_out(loss: nn.Module, own: Any, example: Any) -> None:
    """Refuse now what the loss would refuse at the first step."""
    require = getattr(loss, "require", None)
    if require is not None:
        require(own, example)


def _said(layers: str | tuple[str, ...]) -> str:
    return layers if isinstance(layers, str) else "+".join(layers)


def _weight(text: str, whole: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f'The weight "{text}" in "{whole}" is no positive number. Write the loss as "vid:2".')
    return weight
