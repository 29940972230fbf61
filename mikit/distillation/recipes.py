"""The default use of each distillation loss, by name: its layers, how it is built, and its weight."""

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
from mikit.distillation.losses.base import recommended_weight
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


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The recommended use of one loss.

    Attributes:
        name: Its name on the command line and in :func:`distillation_terms`.
        about: A description in a few words.
        weight: Recommended weight beside a cross-entropy of weight 1, in units of the loss's ``recommended_weight``.
            If there are several pairs of layers, it is the weight of each.
        layers: Default layers of :class:`~mikit.models.ResNet8`, for both networks.
        reads: ``"features"``, ``"logits"``, or ``"several"`` for one loss on all layers at once.
        readout: Pooling of the activations: ``"whole"`` for losses on maps, else ``"pool"``.
        labels: Whether it takes the class indices of the batch.
        build: Function of example activations of both networks, labels, batch size and a generator that returns the
            loss.
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
        weight: Its weight, in the same unit.
    """

    recipe: Recipe
    weight: float

    @property
    def label(self) -> str:
        """The name, followed by the weight if it is not the recommended one."""
        weight = "" if self.weight == self.recipe.weight else f":{self.weight:g}"
        return f"{self.recipe.name}{weight}"


def _vid(x: Tensor, y: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
    return VID.between(x, y, generator=generator)


def _kd2m(x: Tensor, y: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
    # One batch, because the unit must include the bias that exact transport has between samples of that size.
    few = slice(0, batch)
    return KD2M.between(
        x[few], y[few], metric="wasserstein", conditional="joint", labels=labels[few], generator=generator
    )


def _flow(x: Any, y: Any, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
    return InformationFlow.between(x, y)


def _alike(cls: Any) -> Build:
    """Return the builder of a class whose ``between`` takes features and a generator."""

    def build(x: Any, y: Any, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
        loss: nn.Module = cls.between(x, y, generator=generator)
        return loss

    return build


def _ready(cls: Callable[[], nn.Module]) -> Build:
    """Return the builder of a class that needs no example."""

    def build(x: Tensor, y: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> nn.Module:
        return cls()

    return build


def _recipe(
    about: str,
    build: Build,
    layers: tuple[str, ...] = ("stage1", "stage2", "stage3"),
    *,
    reads: str = "features",
    readout: str = "whole",
    labels: bool = False,
    weight: float = 1.0,
) -> dict[str, Any]:
    """Return the fields of a recipe but its name; by default of a loss on the maps of every stage."""
    return {
        "about": about,
        "weight": weight,
        "layers": layers,
        "reads": reads,
        "readout": readout,
        "labels": labels,
        "build": build,
    }


_LOGITS: dict[str, Any] = {"layers": ("fc",), "reads": "logits", "readout": "pool"}
_POOLED: dict[str, Any] = {"layers": ("pool",), "readout": "pool"}

# A weight is given here only if it belongs to this use of a loss: KD2M with exact transport of features and labels,
# and CRD as its released scripts weigh it. All other weights are the loss's own recommended_weight, or the scale of its
# formula: FitNet, AttentionTransfer and PKT are scaled to about 10, 1000 and 1000 times the plain means of other codes.
_RECIPES = {
    "vid": _recipe("variational information distillation", _vid),
    "hinton": _recipe("softened logits, T = 4", _ready(HintonKD), **_LOGITS),
    "dkd": _recipe("softened logits, the label separately", _ready(DKD), labels=True, **_LOGITS),
    "fitnet": _recipe("regression of the teacher's maps", _alike(FitNet), ("stage2",)),
    "attention": _recipe("where activations are large", _ready(AttentionTransfer)),
    "channel_mmd": _recipe("MMD across channels", _ready(ChannelMMD), ("stage3",)),
    "pkt": _recipe("neighbors in the batch", _alike(PKT), **_POOLED),
    "flow": _recipe(
        "neighbors at several layers", _flow, ("stage1", "stage2", "stage3", "pool"), reads="several", readout="pool"
    ),
    "kd2m": _recipe("exact transport of features and labels", _kd2m, labels=True, weight=5.0, **_POOLED),
    "mimkd": _recipe("contrast of images and of positions", _alike(MIMKD), ("stage3", "pool"), reads="several"),
    "crd": _recipe("contrast in the batch", _alike(CRD), weight=0.8, **_POOLED),
}
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {name: Recipe(name=name, **fields) for name, fields in _RECIPES.items()}
)
"""Every loss by name."""


def read_ingredients(text: str) -> tuple[Ingredient, ...]:
    """Parse the names of losses, such as ``"vid"``, ``"vid:2"`` or ``"vid:2+hinton"``.

    Args:
        text: Names of :data:`RECIPES`, joined by ``+`` for losses that are added; each may have a weight after a
            colon.

    Raises:
        InputError: If a loss does not exist (similar names are listed) or occurs twice, or a weight is not a positive
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
            raise InputError(f'The loss "{name}" occurs twice in "{text}". Name it once, with one weight.')
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
    """Build losses with their recommended settings, for :func:`~mikit.distillation.train_student`.

    Args:
        ingredients: The result of :func:`read_ingredients`, or its text.
        student: The student, untrained.
        teacher: The teacher, in evaluation mode.
        images: Example images, in random order, at least one batch; the student's training images are suitable.
        labels: Their class indices.
        batch: Number of images in a training step; metrics with a bias that depends on it use so many examples.
        pairs: Layers of the student and of the teacher for losses on features, in place of the default layers;
            ``HintonKD`` and ``DKD`` always use the logits.
        generator: Source of the losses' initial parameters; torch's global generator if None.

    Returns:
        The terms by name: ``"vid"``, or ``"vid stage1:stage1"`` if a loss has several pairs of layers.

    Raises:
        InputError: If a layer does not exist, or a loss cannot be built between its layers; the message names both.

    Cost:
        One forward pass of both networks for each pair of layers.

    Pitfalls:
        Default layers are those of :class:`~mikit.models.ResNet8`; pass ``pairs`` for another network. Weights are
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
        used = pairs if pairs and recipe.reads != "logits" else [(layer, layer) for layer in recipe.layers]
        layers, sources = tuple(pair[0] for pair in used), tuple(pair[1] for pair in used)
        groups: list[tuple[Any, Any]] = [(layers, sources)] if recipe.reads == "several" else list(used)
        for layer, source in groups:
            names = f"{_joined(layer)}:{_joined(source)}"
            try:
                x, y = _examples(recipe, student, teacher, images, layer, source)
                loss = recipe.build(x, y, labels.cpu(), batch, generator)
                _try_out(loss, x, y)
                term = DistillationTerm(
                    loss=loss.to(images.device),
                    layer=layer,
                    teacher_layer=source,
                    weight=one.weight * recommended_weight(loss),
                    readout=recipe.readout,
                    labels=recipe.labels,
                )
            except InputError as cause:
                raise InputError(
                    f'The loss "{recipe.name}" cannot be built between the layers {names}. {cause}'
                ) from cause
            terms[recipe.name if len(groups) == 1 else f"{recipe.name} {names}"] = term
    return terms


def _examples(
    recipe: Recipe, student: nn.Module, teacher: nn.Module, images: Tensor, layer: Any, source: Any
) -> tuple[Any, Any]:
    """Return activations of one layer each, or of several by name, on the CPU, where generators draw."""
    if recipe.reads == "several":
        sides = example_layers(student, teacher, images, layer, source, readout=recipe.readout)
        of_student, of_teacher = ({name: value.cpu() for name, value in side.items()} for side in sides)
        return of_student, of_teacher
    x, y = example_features(student, teacher, images, layer, source, readout=recipe.readout)
    return x.cpu(), y.cpu()


def _try_out(loss: nn.Module, x: Any, y: Any) -> None:
    """Raise now what the loss would raise at the first step."""
    require = getattr(loss, "require", None)
    if require is not None:
        require(x, y)


def _joined(layers: str | tuple[str, ...]) -> str:
    return layers if isinstance(layers, str) else "+".join(layers)


def _weight(text: str, whole: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f'The weight "{text}" in "{whole}" is not a positive number. Write the loss as "vid:2".')
    return weight
