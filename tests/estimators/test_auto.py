"""Auto: which instrument is chosen for which rows, and the sentence that says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mikit import InputError
from mikit.estimators import KSG, Auto, CopulaCritic, Estimator, GaussianMI, ReducedKSG


def _rows(n: int, d_x: int, d_y: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_x, generator=g), torch.randn(n, d_y, generator=g)


def _choice(x: Tensor, y: Tensor, groups: Tensor | None = None) -> tuple[Estimator, str]:
    return Auto().choose(x, y, groups=groups, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("n", "d_x", "d_y", "cls", "said"),
    [
        (40, 2, 2, CopulaCritic, ""),
        (39, 2, 2, GaussianMI, "39 samples are too few to train a critic"),
        (3000, 20, 20, CopulaCritic, ""),
        (2560, 64, 64, CopulaCritic, ""),
        (640, 64, 64, CopulaCritic, ""),
        (639, 64, 64, ReducedKSG, "639 samples are fewer than 5 for each of the 128 features, so they are reduced"),
        (2579, 65, 64, ReducedKSG, "2579 samples are fewer than 20 for each of the 129 features, so they are reduced"),
        (2580, 65, 64, CopulaCritic, ""),
        (200, 300, 10, ReducedKSG, "200 samples are fewer than 20 for each of the 310 features"),
        (
            199,
            300,
            10,
            GaussianMI,
            "199 samples are fewer than 20 for each of the 310 features, so the",
        ),
        (
            60,
            10,
            10,
            GaussianMI,
            "60 samples are fewer than 5 for each of the 20 features, so the correlations",
        ),
    ],
)
def test_counts_decide(n: int, d_x: int, d_y: int, cls: type[Estimator], said: str) -> None:
    chosen, why = _choice(*_rows(n, d_x, d_y))
    assert type(chosen) is cls
    assert said in why
    assert bool(why) == bool(said)


def test_where_rows_are_few_the_correlations_are_shrunk_and_held_out() -> None:
    chosen, _ = _choice(*_rows(60, 10, 10))
    assert isinstance(chosen, GaussianMI)
    assert (chosen.copula, chosen.shrinkage, chosen.held_out) == (True, "ledoit-wolf", True)
    plain, _ = _choice(*_rows(39, 2, 2))
    assert isinstance(plain, GaussianMI)
    assert (plain.copula, plain.held_out) == (True, False)


@pytest.mark.parametrize(("d_x", "d_y"), [(1, 1), (2, 1), (1, 2)])
def test_few_columns_that_bend_go_to_neighbours_of_normal_scores(d_x: int, d_y: int) -> None:
    x, noise = _rows(1000, d_x, d_y)
    chosen, why = _choice(x, x[:, :1].abs() + 0.3 * noise)
    assert isinstance(chosen, KSG)
    assert chosen.copula
    assert why.startswith("nearest neighbors give ")
    assert why.endswith("nats, so the dependence is not Gaussian")


@pytest.mark.parametrize("slope", [0.3, 1.0])
def test_few_columns_that_are_gaussian_stay_with_the_copula(slope: float) -> None:
    for seed in range(10):
        x, noise = _rows(800, 1, 2, seed)
        chosen, why = _choice(x, slope * x + noise)
        assert isinstance(chosen, GaussianMI)
        assert chosen.copula
        assert why.endswith("nats, so there is no sign of other dependence")


def test_independent_few_columns_claim_nothing_whatever_is_chosen() -> None:
    for seed in range(20):
        x, y = _rows(800, 1, 2, seed)
        chosen, _ = _choice(x, y)
        error = chosen.standard_error(x, y)
        assert error is not None
        assert float(chosen.estimate(x, y)) < 3 * error + 0.01


def test_monotone_maps_of_columns_do_not_change_the_choice_or_the_sentence() -> None:
    x, noise = _rows(800, 1, 1)
    y = x.abs() + 0.3 * noise
    chosen, why = _choice(x, y)
    other, said = _choice(x.double() ** 3, y.double().exp())
    assert type(other) is type(chosen) is KSG
    assert said == why


def test_groups_count_as_one_row() -> None:
    x, y = _rows(400, 2, 2)
    assert isinstance(_choice(x, y)[0], CopulaCritic)
    chosen, why = _choice(x, y, torch.arange(20).repeat_interleave(20))
    assert isinstance(chosen, GaussianMI)
    assert "20 groups are too few to train a critic" in why
    few, why = _choice(x, y, torch.arange(10).repeat_interleave(40))
    assert isinstance(few, GaussianMI)
    assert few.held_out
    assert why.startswith("10 groups are fewer than 5 for each of the 4 features")


def test_copies_of_a_row_do_not_look_like_dependence() -> None:
    x, y = _rows(60, 1, 1)
    copies = torch.arange(60).repeat_interleave(20)
    g = torch.Generator().manual_seed(1)
    wobble = 0.01 * torch.randn(2, 1200, 1, generator=g)
    chosen, _ = _choice(x[copies] + wobble[0], y[copies] + wobble[1], copies)
    assert isinstance(chosen, GaussianMI)
    assert isinstance(_choice(x[copies] + wobble[0], y[copies] + wobble[1])[0], KSG), "without groups they do"


def test_a_choice_draws_nothing_and_repeats() -> None:
    x, noise = _rows(500, 1, 1)
    state = torch.random.get_rng_state()
    first, second = _choice(x, x.abs() + noise), _choice(x, x.abs() + noise)
    assert first[1] == second[1]
    assert torch.equal(state, torch.random.get_rng_state())


def test_fit_takes_the_choice_over() -> None:
    x, noise = _rows(600, 1, 1)
    y = x.abs() + 0.3 * noise
    instrument = Auto()
    assert instrument.ceiling(600) is None
    with pytest.raises(InputError, match="has not chosen yet"):
        instrument.estimate(x, y)
    instrument.fit(x[:300], y[:300], select=(x[300:], y[300:]), generator=torch.Generator().manual_seed(0))
    expected = KSG(copula=True)
    assert float(instrument.estimate(x, y)) == float(expected.estimate(x, y))
    assert instrument.standard_error(x, y) == expected.standard_error(x, y)
    assert instrument.ceiling(600) == pytest.approx(expected.ceiling(600))
    assert abs(float(instrument.estimate(x, y)) - 0.760) < 2 * expected.standard_error(x, y) + 0.05


def test_it_is_no_loss() -> None:
    with pytest.raises(TypeError, match="Auto has no gradient: it chooses an estimator"):
        Auto()(*_rows(50, 1, 1))
