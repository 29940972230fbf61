"""Max-sliced Wasserstein distances against all directions of the plane, POT, closed forms and gradients."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.transport.exact import wasserstein2
from mikit.functional.transport.max_sliced import furthest_line, max_sliced_wasserstein2
from mikit.functional.transport.sliced import sliced_wasserstein2


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _over_all_angles(x: Tensor, y: Tensor, count: int = 4000) -> float:
    angles = torch.arange(count, dtype=torch.float64) * math.pi / count
    lines = torch.stack([angles.cos(), angles.sin()])
    # Copies of the rows make the samples of one size, and do not change their distributions.
    on_x, on_y = (
        (rows.repeat_interleave(times, dim=0) @ lines).sort(dim=0).values for rows, times in ((x, len(y)), (y, len(x)))
    )
    return float((on_x - on_y).square().mean(dim=0).max())


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 17), (1, 9)])
def test_in_the_plane_it_is_the_largest_over_all_angles(n: int, m: int) -> None:
    for seed in range(3):
        x, y = _rows(n, 2, seed), _rows(m, 2, 50 + seed, 0.3)
        found = max_sliced_wasserstein2(x, y, steps=60, generator=_seeded()).item()
        # The grid is fine to a part in ten million of the curvature.
        assert found == pytest.approx(_over_all_angles(x, y), rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25)])
def test_the_value_is_that_of_the_line_and_lies_between_bounds(n: int, m: int) -> None:
    x, y = _rows(n, 6, 0), _rows(m, 6, 1, 0.2)
    line = furthest_line(x, y, generator=_seeded())
    value = max_sliced_wasserstein2(x, y, generator=_seeded()).item()
    on_line = ot.emd2_1d((x @ line.direction).numpy(), (y @ line.direction).numpy())
    assert float(line.direction.norm()) == pytest.approx(1)
    assert value == pytest.approx(on_line, rel=1e-10)
    assert value == pytest.approx(float(line.starts.max()), rel=1e-10)
    drawn = ot.max_sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=2000, seed=0) ** 2
    assert drawn < value <= wasserstein2(x, y).item()
    assert value >= float((x.mean(0) - y.mean(0)).square().sum())


def test_values_known_in_closed_form() -> None:
    x = _rows(50, 5, 0)
    shift = torch.tensor([1.0, 2.0, 0.0, 0.0, -2.0], dtype=torch.float64)
    assert max_sliced_wasserstein2(x, x.flip(0) + shift, generator=_seeded()).item() == pytest.approx(9)
    assert max_sliced_wasserstein2(x, x.flip(0), generator=_seeded()).item() == pytest.approx(0, abs=1e-20)
    # Stretched along one axis: no other line shows more.
    wide = x * torch.tensor([1.0, 4.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    expected = 9 * float(x[:, 1].square().mean())
    found = max_sliced_wasserstein2(x, wide, steps=100, generator=_seeded()).item()
    assert found == pytest.approx(expected, rel=0.02)
    assert found >= expected * (1 - 1e-6)
    column, other = _rows(30, 1, 1), _rows(20, 1, 2)
    assert max_sliced_wasserstein2(column, other).item() == pytest.approx(ot.emd2_1d(column.numpy(), other.numpy()))


def test_every_start_ascends_and_more_starts_help() -> None:
    x, y = _rows(60, 20, 0), _rows(60, 20, 1)
    short, long = (furthest_line(x, y, steps=steps, generator=_seeded(3)).starts for steps in (1, 40))
    assert bool((long > short).all())
    assert float(long.max()) > 2 * sliced_wasserstein2(x, y, generator=_seeded()).item()
    many = furthest_line(x, y, starts=64, generator=_seeded(3)).starts
    assert float(many.max()) >= 0.98 * float(long.max())


@pytest.mark.parametrize(("n", "m", "shift"), [(5, 5, 2.0), (5, 4, 3.0)])
def test_gradients_are_derivatives(n: int, m: int, shift: float) -> None:
    # Far enough apart that the maximum lies within one order of the rows.
    x, y = _rows(n, 2, 0).requires_grad_(), _rows(m, 2, 1, shift).requires_grad_()

    def converged(a: Tensor, b: Tensor) -> Tensor:
        return max_sliced_wasserstein2(a, b, starts=4, steps=120, generator=_seeded())

    assert torch.autograd.gradcheck(converged, (x, y), atol=1e-4)


def test_lines_come_from_the_generator_and_rows_in_any_order() -> None:
    x, y = _rows(30, 8, 0), _rows(30, 8, 1)
    first, again = (furthest_line(x, y, generator=_seeded(5)).direction for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(5)
    assert torch.equal(furthest_line(x, y).direction, first)
    turned = max_sliced_wasserstein2(x.flip(0), y, generator=_seeded(5)).item()
    assert turned == pytest.approx(max_sliced_wasserstein2(x, y, generator=_seeded(5)).item(), rel=1e-6)
    swapped = max_sliced_wasserstein2(y, x, generator=_seeded(5)).item()
    assert swapped == pytest.approx(max_sliced_wasserstein2(x, y, generator=_seeded(5)).item(), rel=1e-6)


def test_dtypes_offsets_and_numbers_that_are_not() -> None:
    x, y = _rows(40, 4, 0).float(), _rows(40, 4, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = max_sliced_wasserstein2(x, y, generator=_seeded())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, max_sliced_wasserstein2(x, y, generator=_seeded()))
    far = max_sliced_wasserstein2(x.double() + 1e6, y.double() + 1e6, generator=_seeded()).item()
    assert far == pytest.approx(inside.item(), rel=1e-3)  # what the steps leave open
    assert max_sliced_wasserstein2(x * float("nan"), y).isnan()
    same = torch.ones(3, 2)
    assert max_sliced_wasserstein2(same, same).item() == 0


def test_what_cannot_be_used_is_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match="0 starts of 45 steps"):
        max_sliced_wasserstein2(x, x, starts=0)
    with pytest.raises(InputError, match="features"):
        max_sliced_wasserstein2(x, torch.zeros(3, 4))
    with pytest.raises(InputError, match="shape"):
        furthest_line(torch.zeros(3), x)
