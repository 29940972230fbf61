"""Outputs and accuracy of a network on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["accuracy_on", "device_of", "logits_on"]

_BATCH_TO_EVALUATE = 500


def logits_on(network: nn.Module, images: Tensor, *, autocast: bool = False) -> Tensor:
    """Return the outputs of ``network`` for ``images`` in evaluation mode, on the CPU; its mode is restored.

    Example:
        >>> logits_on(nn.Dropout(), torch.ones(3, 2)).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    was_training = network.training
    network.eval()
    device = device_of(network)
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return torch.cat([network(some.to(device)).cpu() for some in torch.split(images, _BATCH_TO_EVALUATE)])
    finally:
        network.train(was_training)


def accuracy_on(network: nn.Module, images: Tensor, labels: Tensor, *, autocast: bool = False) -> float:
    """Return the fraction of ``images`` that ``network`` classifies correctly, in evaluation mode.

    Example:
        >>> accuracy_on(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]))
        0.75
    """
    guesses = logits_on(network, images, autocast=autocast).argmax(1)
    return float((guesses == labels.cpu()).double().mean())


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the parameters; the CPU if there are none."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device
