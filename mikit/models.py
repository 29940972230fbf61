"""Small networks for the demo, the notebooks and the scripts."""

from __future__ import annotations

import math
from typing import ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from mikit.core.errors import InputError

__all__ = ["MLP", "ResNet8"]

_M = TypeVar("_M", bound=nn.Module)
_BASE_WIDTHS = (16, 32, 64)


@final
class ResNet8(nn.Module):
    """Eight-layer residual network for images ``(n, c, h, w)``; wide as a teacher, narrow as a student.

    Formula: a 3×3 stem, three stages of one basic block each at full, half and quarter resolution with
    ``16 k, 32 k, 64 k`` channels, global average pooling and a linear layer. The submodules ``stage1`` to ``stage3``
    end before their last ReLU, so that their activations have both signs.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
        width: The factor ``k``; 2 makes a teacher, 0.5 a small student.
        generator: Random generator of the initial weights; torch's global generator if None. Networks with equal
            generators and sizes have equal initial weights.

    Attributes:
        layers: Names of the submodules in network order, as :func:`mikit.capture` takes them.

    Raises:
        InputError: If a size is not positive, or the images have fewer than four pixels per side.

    Cost:
        About ``5e5 k²`` multiply-adds for an 8×8 image and ``8e6 k²`` for a 32×32 one; ``77,000 k²`` parameters.

    Pitfalls:
        Batch normalization has no usable statistics before the first training steps: the activations of an untrained
        network in evaluation mode are not scaled like those of a trained one. Call ``eval()`` before you record
        activations.

    Source:
        The residual network of He and others, shortened to one block per stage.

    Example:
        >>> student = ResNet8(channels=1, classes=10, width=0.5, generator=torch.Generator().manual_seed(0))
        >>> student(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> ResNet8.layers
        ('stem', 'stage1', 'stage2', 'stage3', 'pool', 'fc')
    """

    layers: ClassVar[tuple[str, ...]] = ("stem", "stage1", "stage2", "stage3", "pool", "fc")

    def __init__(
        self,
        *,
        channels: int = 1,
        classes: int = 10,
        width: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [round(base * width) for base in _BASE_WIDTHS]
        if channels < 1 or classes < 2 or widths[0] < 1:
            raise InputError(
                f"ResNet8 was called with channels={channels}, classes={classes} and width={width}; it needs at least "
                "1 channel, 2 classes and a width of 1/16, which leaves 1 channel in the first stage."
            )
        self.stem = nn.Sequential(_convolution(channels, widths[0], 1), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stage1 = _BasicBlock(widths[0], widths[0], 1)
        self.stage2 = _BasicBlock(widths[0], widths[1], 2)
        self.stage3 = _BasicBlock(widths[1], widths[2], 2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = _without_weights(nn.Linear(widths[2], classes, device="meta"))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        reach = 1 / math.sqrt(widths[2])
        nn.init.uniform_(self.fc.weight, -reach, reach, generator=generator)
        nn.init.uniform_(self.fc.bias, -reach, reach, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(n, classes)`` of ``images`` ``(n, c, h, w)``."""
        if images.ndim != 4 or min(images.shape[-2:]) < 4:
            raise InputError(f"ResNet8 needs images (n, c, h, w) of at least 4×4 pixels, not {tuple(images.shape)}.")
        maps = torch.relu(self.stage1(self.stem(images)))
        maps = torch.relu(self.stage3(torch.relu(self.stage2(maps))))
        logits: Tensor = self.fc(self.pool(maps))
        return logits


@final
class MLP(nn.Module):
    """Two hidden layers with ReLU on flattened images: a student without convolutions.

    Formula: ``hidden1`` and ``hidden2`` are linear layers with batch normalization, before their ReLU; ``fc`` computes
    the logits.

    Args:
        inputs: Number of values in one image.
        width: Width of both hidden layers.
        classes: Number of classes.
        generator: Random generator of the initial weights; torch's global generator if None.

    Attributes:
        layers: Names of the submodules in network order, as :func:`mikit.capture` takes them.

    Raises:
        InputError: If a size is not positive, or images do not have ``inputs`` values.

    Cost:
        ``width (inputs + width + classes)`` multiply-adds per image and as many parameters.

    Pitfalls:
        As for :class:`ResNet8`: call ``eval()`` before you record activations.

    Source:
        Elementary.

    Example:
        >>> MLP(64, width=32)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    layers: ClassVar[tuple[str, ...]] = ("hidden1", "hidden2", "fc")

    def __init__(
        self, inputs: int, *, width: int = 256, classes: int = 10, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if inputs < 1 or width < 1 or classes < 2:
            raise InputError(
                f"MLP was called with inputs={inputs}, width={width} and classes={classes}; it needs at least 1 input, "
                "width 1 and 2 classes."
            )
        self.inputs = inputs
        self.hidden1 = _hidden(inputs, width)
        self.hidden2 = _hidden(width, width)
        self.fc = _without_weights(nn.Linear(width, classes, device="meta"))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                reach = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -reach, reach, generator=generator)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -reach, reach, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(n, classes)`` of ``images`` ``(n, ...)``."""
        rows = images.flatten(1)
        if rows.shape[1] != self.inputs:
            raise InputError(f"This MLP needs images of {self.inputs} values, not {tuple(images.shape)}.")
        logits: Tensor = self.fc(torch.relu(self.hidden2(torch.relu(self.hidden1(rows)))))
        return logits


def _hidden(d_in: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(_without_weights(nn.Linear(d_in, d_out, bias=False, device="meta")), nn.BatchNorm1d(d_out))


@final
class _BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut, without the last ReLU."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(d_in, d_out, stride),
            nn.BatchNorm2d(d_out),
            nn.ReLU(),
            _convolution(d_out, d_out, 1),
            nn.BatchNorm2d(d_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or d_in != d_out:
            self.shortcut = nn.Sequential(_convolution(d_in, d_out, stride, size=1), nn.BatchNorm2d(d_out))

    def forward(self, maps: Tensor) -> Tensor:
        sum_: Tensor = self.body(maps) + self.shortcut(maps)
        return sum_


def _convolution(d_in: int, d_out: int, stride: int, size: int = 3) -> nn.Conv2d:
    return _without_weights(nn.Conv2d(d_in, d_out, size, stride=stride, padding=size // 2, bias=False, device="meta"))


def _without_weights(module: _M) -> _M:
    """Allocate the weights of a module made on the meta device; this draws no random numbers."""
    return module.to_empty(device="cpu")
