"""LabelHSIC against a naive U-statistic, against the flow vector, and on labels that say nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mikit import InputError, LabelHSIC
from mikit.functional.flow.flow_vectors import flow_vector


def sample(n: int = 30) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    return torch.randn(n, 2, generator=g, dtype=torch.float64) + labels[:, None], labels


def u_statistic(k: Tensor, m: Tensor) -> float:
    """HSIC as the mean over all ordered sets of four different rows, by sums over kernels without diagonals."""
    n = k.shape[0]
    k, m = k - torch.diag(k.diag()), m - torch.diag(m.diag())
    crossed = (k @ m).sum() * 2 / (n - 2)
    return float(((k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - crossed) / (n * (n - 3)))


def test_it_is_the_u_statistic_of_a_kernel_and_the_classes() -> None:
    x, labels = sample()
    k = torch.exp(-torch.cdist(x, x).square() / (2 * 0.9**2))
    m = (labels[:, None] == labels).double()
    bare = LabelHSIC(0.9, normalised=False).estimate(x, labels).item()
    assert bare == pytest.approx(u_statistic(k, m), rel=1e-10)
    size = math.sqrt(u_statistic(k, k) * u_statistic(m, m))
    assert LabelHSIC(0.9).estimate(x, labels).item() == pytest.approx(bare / size, rel=1e-10)


def test_layers_of_a_network_are_the_flow_vector() -> None:
    x, labels = sample()
    layers = [x, x.square() @ torch.ones(2, 5, dtype=torch.float64) + x[:, :1]]
    expected = flow_vector(layers, labels)
    found = torch.stack([LabelHSIC().estimate(layer, 7 * labels + 2) for layer in layers])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_it_is_centered_on_zero_for_random_labels() -> None:
    x, labels = sample()
    g = torch.Generator().manual_seed(1)
    found = torch.stack([LabelHSIC().estimate(x, labels[torch.randperm(30, generator=g)]) for _ in range(200)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(200)
    assert (found < 0).any()
    assert LabelHSIC().estimate(x, torch.zeros(30, dtype=torch.long)) == 0


def test_the_loss_trains_the_student_and_bad_labels_are_refused() -> None:
    x, labels = sample()
    x.requires_grad_()
    loss = LabelHSIC()(x, labels)
    loss.backward()
    assert x.grad is not None
    better = LabelHSIC()(x.detach() - 1e-2 * x.grad / x.grad.norm(), labels)
    assert better < loss
    for wrong in (labels.double(), labels[:-1]):
        with pytest.raises(InputError, match="one integer label per sample"):
            LabelHSIC().estimate(x, wrong)
    with pytest.raises(InputError, match="must be positive"):
        LabelHSIC(0.0)
