"""The Gram matrix of wide rows against plain products, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.engine import gram as module
from mikit.functional.engine.gram import gram


def _rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2


@pytest.fixture(params=[None, 12])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(module, "_CACHED_ENTRIES", request.param)


def _plainly(rows: Tensor, over: Tensor | None, center: bool) -> Tensor:
    rows = rows if over is None else rows / over
    rows = rows - rows.mean(dim=0) if center else rows
    return rows @ rows.T


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_products_and_their_gradient(center: bool, scaled: bool) -> None:
    rows = _rows(4, 11).requires_grad_()
    over = torch.tensor([[1.0], [2.0], [0.5], [3.0]], dtype=torch.float64) if scaled else None
    found, expected = gram(rows, over=over, center=center), _plainly(rows, over, center)
    assert torch.allclose(found, expected, rtol=1e-13)
    weights = _rows(4, 4, seed=1)  # not symmetric
    (one,), (other,) = (torch.autograd.grad((matrix * weights).sum(), rows) for matrix in (found, expected))
    assert torch.allclose(one, other, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda r: gram(r, over=over, center=center), rows)
    torch.library.opcheck(module._products, (rows, over, center))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_and_half_precision(dtype: torch.dtype) -> None:
    rows = _rows(8, 5000).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gram(rows, center=True)
    exact = rows.detach().double().requires_grad_()
    expected = _plainly(exact, None, True)
    assert found.dtype == torch.float64
    assert (found - expected).norm() < 1e-6 * expected.norm()
    found.square().sum().backward()
    expected.square().sum().backward()
    assert rows.grad is not None
    assert exact.grad is not None
    assert rows.grad.dtype == dtype
    assert (rows.grad.double() - exact.grad).norm() < (1e-6 if dtype == torch.float32 else 4e-3) * exact.grad.norm()


def test_maps_in_any_layout() -> None:
    maps = _rows(3, 24).view(3, 2, 3, 4).to(memory_format=torch.channels_last)
    assert torch.allclose(gram(maps.flatten(1)), _plainly(maps.flatten(1), None, False))
    wide = _rows(24, 3).T
    assert torch.allclose(gram(wide), wide @ wide.T)


def test_refusals() -> None:
    rows = _rows(3, 5).requires_grad_()
    with pytest.raises(InputError, match=r"rows has shape \(15,\)"):
        gram(rows.flatten())
    with pytest.raises(InputError, match=r"over has shape \(3,\); pass one number per row, \(3, 1\)"):
        gram(rows, over=torch.ones(3))
    (slope,) = torch.autograd.grad(gram(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient of gram was differentiated again"):
        slope.sum().backward()
