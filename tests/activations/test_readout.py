from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, strategies as st

from mikit import InputError
from mikit.activations import (
    READOUT_NAMES,
    FirstToken,
    Flatten,
    Grid,
    Pool,
    Projection,
    Readout,
    Tokens,
    Whole,
    parse_readout,
)

EVERY = [Pool(), Flatten(), Tokens(), FirstToken(), Whole(), Grid(4), Projection(5), Projection(5, seed=3)]


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("readout", EVERY, ids=lambda readout: readout.name)
def test_the_name_leads_back_to_an_equal_readout(readout: Readout) -> None:
    assert parse_readout(readout.name) == readout
    assert parse_readout(readout) is readout


@given(st.integers(1, 10**6), st.integers(0, 2**63 - 1))
def test_every_projection_has_a_name_of_its_own(width: int, seed: int) -> None:
    assert parse_readout(Projection(width, seed).name) == Projection(width, seed)


@given(st.integers(1, 1024))
def test_every_grid_has_a_name_of_its_own(cells: int) -> None:
    assert parse_readout(Grid(cells).name) == Grid(cells)


@pytest.mark.parametrize(
    "name", ["", "Pool", "pool0", "pool-4", "pool04", "projection", "projection:0", "projection:8@", "mean", None, 4]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(InputError, match=r"There is no readout.*pool, flatten"):
        parse_readout(name)


def test_the_published_names_are_those_that_are_parsed() -> None:
    for pattern in READOUT_NAMES:
        parse_readout(pattern.replace("<g>", "2").replace("<width>", "8").replace("<seed>", "1"))


def test_readouts_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Grid(4).cells = 2


def test_pool_is_the_mean_over_space_or_tokens() -> None:
    image = maps(3, 5, 4, 6)
    expected = torch.stack([torch.stack([image[i, c].mean() for c in range(5)]) for i in range(3)])
    torch.testing.assert_close(Pool()(image), expected)
    tokens = maps(3, 7, 5)
    torch.testing.assert_close(Pool()(tokens), tokens.sum(1) / 7)
    torch.testing.assert_close(Pool()(maps(2, 3, 4, 5, 6)), maps(2, 3, 4, 5, 6).flatten(2).mean(2))
    assert Pool()(maps(3, 5)).equal(maps(3, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("readout", [Pool(), Grid(1)], ids=["pool", "pool1"])
def test_half_precision_sums_do_not_overflow(readout: Readout, dtype: torch.dtype) -> None:
    # 16,384 values of 100 add up to 25 times what float16 can hold.
    pooled = readout(torch.full((1, 1, 128, 128), 100.0, dtype=dtype))
    assert pooled.dtype == dtype
    assert pooled.item() == 100.0


def test_flatten_and_whole() -> None:
    image = maps(3, 5, 4, 6)
    assert Flatten()(image).equal(image.reshape(3, -1))
    assert Whole()(image) is image


def test_tokens_are_kept_and_locations_become_tokens() -> None:
    assert Tokens()(maps(3, 7, 5)).equal(maps(3, 7, 5))
    image = maps(3, 5, 4, 6)
    tokens = Tokens()(image)
    assert tokens.shape == (3, 24, 5)
    assert tokens[1, 2 * 6 + 3].equal(image[1, :, 2, 3])
    with pytest.raises(InputError, match="no tokens"):
        Tokens()(maps(3, 5))


def test_first_token() -> None:
    assert FirstToken()(maps(3, 7, 5)).equal(maps(3, 7, 5)[:, 0])
    with pytest.raises(InputError, match=r"needs tokens \(n, t, d\)"):
        FirstToken()(maps(3, 5, 4, 6))


def test_grid_is_the_mean_of_each_field() -> None:
    image = maps(2, 3, 8, 12)
    expected = [image[:, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean((2, 3)) for i in range(4) for j in range(4)]
    torch.testing.assert_close(Grid(4)(image).reshape(2, 3, 16), torch.stack(expected, dim=2))
    assert Grid(4)(maps(2, 3, 2, 5)).shape == (2, 3 * 2 * 4)
    assert Grid(4)(maps(2, 3)).equal(maps(2, 3))
    with pytest.raises(InputError, match="feature maps"):
        Grid(4)(maps(2, 3, 4))


def test_projection_depends_on_its_seed_alone() -> None:
    image = maps(6, 5, 4, 6)
    before = torch.random.get_rng_state()
    first = Projection(16)(image)
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(99)
    assert Projection(16)(image).equal(first)
    assert not Projection(16, seed=1)(image).equal(first)


def test_projection_keeps_squared_distances_on_average() -> None:
    rows = maps(2, 400, dtype=torch.float64)
    distance = (rows[0] - rows[1]).square().sum()
    ratios = torch.stack(
        [(p[0] - p[1]).square().sum() / distance for seed in range(200) for p in [Projection(32, seed)(rows)]]
    )
    # Each ratio is chi-squared with 32 degrees of freedom over 32: standard deviation sqrt(2 / 32).
    assert abs(ratios.mean() - 1) < 4 * math.sqrt(2 / 32 / 200)
    assert 0.7 < ratios.std() / math.sqrt(2 / 32) < 1.3


def test_projection_in_blocks_is_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    image = maps(3, 50, 4, 6, dtype=torch.float64)
    whole = Projection(16)(image)
    monkeypatch.setattr("mikit.activations.readout._PROJECTION_BLOCK", 16 * 112)
    torch.testing.assert_close(Projection(16)(image), whole, rtol=1e-12, atol=1e-12)


def test_projection_refuses_to_widen() -> None:
    with pytest.raises(InputError, match=r"has only\s+5"):
        Projection(5)(maps(3, 5))


@pytest.mark.parametrize("readout", [r for r in EVERY if r.name not in ("cls",)], ids=lambda readout: readout.name)
def test_gradients_pass_through(readout: Readout) -> None:
    image = maps(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(readout, (image,))


@pytest.mark.parametrize("readout", EVERY, ids=lambda readout: readout.name)
def test_what_is_no_activation_is_refused(readout: Readout) -> None:
    with pytest.raises(InputError, match="floating-point"):
        readout(torch.ones(3, 8, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="samples along the first axis"):
        readout(torch.ones(3))


@pytest.mark.parametrize(("kind", "arguments"), [(Grid, (0,)), (Projection, (0,)), (Projection, (4, -1))])
def test_impossible_settings_are_refused(kind: type, arguments: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        kind(*arguments)
