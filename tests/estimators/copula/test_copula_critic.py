"""CopulaCritic: the copula where nothing else is found, a critic's reading where there is more, and its own checks."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from mikit import InputError
from mikit.core.measurement import Check
from mikit.estimators import REGISTRY, CopulaCritic, GaussianMI
from mikit.estimators.base import Reading
from mikit.estimators.copula.copula_critic import _agreement_checks
from mikit.estimators.copula.cross_fitting import cross_fit
from mikit.functional.copula.residual import Residual


def _gaussian(n: int, d: int, rho: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=g)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def _folded(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """y = |x| + 0.3 noise: 0.760 nats a column by quadrature, and no correlation."""
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=g)
    return x, x.abs() + 0.3 * noise


@cache
def _gaussian_reading() -> Reading:
    return CopulaCritic().read(*_gaussian(300, 2, 0.7))


def test_gaussian_data_read_as_the_gaussian_copula() -> None:
    reading = _gaussian_reading()
    x, y = _gaussian(300, 2, 0.7)
    instrument = GaussianMI(copula=True)
    assert "a critic adds nothing on held-out samples" in reading.note
    assert reading.value == pytest.approx(float(instrument.estimate(x, y)), abs=1e-9)
    assert reading.standard_error == pytest.approx(instrument.standard_error(x, y), rel=0.1)
    assert reading.parts["gaussian copula"] == pytest.approx(reading.value, abs=1e-9)
    assert {check.outcome for check in reading.checks} == {"pass"}
    assert len(reading.checks) == 4


@pytest.mark.slow
def test_a_bent_side_is_told_where_the_value_rests_on_the_copula() -> None:
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(600, 1, generator=generator)
    bent = torch.cat([first, first.square() + 0.3 * torch.randn(600, 1, generator=generator)], dim=1)
    reading = CopulaCritic().read(bent, torch.randn(600, 2, generator=generator))
    assert "a critic adds nothing" in reading.note
    told = next(check for check in reading.checks if check.name == "sides are Gaussian")
    assert told.outcome == "warn"
    assert told.threshold is not None
    assert told.figure is not None
    assert told.figure > 2 * told.threshold


@pytest.mark.slow
@pytest.mark.usefixtures("short_critic_training")
def test_estimate_and_standard_error_are_those_of_the_reading() -> None:
    x, y = _gaussian(40, 1, 0.7)
    reading = CopulaCritic().read(x, y)
    value = CopulaCritic().estimate(x, y)
    assert value.dtype == torch.float64
    assert value.ndim == 0
    assert float(value) == reading.value
    assert CopulaCritic().standard_error(x, y) == reading.standard_error


@pytest.mark.slow
def test_a_mixture_in_one_of_many_pairs_is_found_by_neighbours() -> None:
    """Half of the rows are correlated by 0.95 in one of five pairs, half not at all: 0.290 nats by quadrature."""
    g = torch.Generator().manual_seed(21)
    x, y = torch.randn(2, 3000, 5, generator=g, dtype=torch.float64)
    y[:1500, 0] = 0.95 * x[:1500, 0] + math.sqrt(1 - 0.95**2) * y[:1500, 0]
    reading = CopulaCritic().read(x, y)
    assert reading.parts["gaussian copula"] < 0.18
    assert reading.parts["with neighbours"] == pytest.approx(0.29, abs=0.08)


def test_a_fold_in_one_column_is_found() -> None:
    reading = CopulaCritic().read(*_folded(400, 1))
    assert abs(reading.parts["gaussian copula"]) < 0.05
    assert "critic adds" in reading.note
    assert reading.standard_error is not None
    # A budget of 0.1 nats for the bias of 320 rows to learn from.
    assert abs(reading.value - 0.760) < 2 * reading.standard_error + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_folds_in_two_columns_are_found(seed: int) -> None:
    reading = CopulaCritic().read(*_folded(1200, 2, seed))
    assert abs(reading.parts["gaussian copula"]) < 0.02
    assert reading.standard_error is not None
    assert reading.standard_error < 0.1
    # A budget of 0.1 nats for the bias, 7 % of the truth.
    assert abs(reading.value - 1.521) < 2 * reading.standard_error + 0.1
    outcomes = {check.name: check.outcome for check in reading.checks}
    assert outcomes.pop("sides are Gaussian") == "not applicable", "the value does not rest on them"
    assert set(outcomes.values()) == {"pass"}


@pytest.mark.slow
def test_a_value_above_what_a_fold_can_show_is_left_to_the_copula() -> None:
    x, y = _gaussian(150, 1, math.sqrt(1 - 1e-5))
    reading = CopulaCritic().read(x, y)
    copula = float(GaussianMI(copula=True).estimate(x, y))
    assert copula > math.log(30) - 2, "otherwise a fold of 30 rows could show it"
    assert reading.value == pytest.approx(copula, abs=1e-9), "a pairing drawn from too low ratios pulls it down"
    assert "with neighbours" not in reading.parts


@pytest.mark.parametrize("side", ["x", "y", "both"])
def test_a_constant_side_gives_0(side: str) -> None:
    x, y = _gaussian(50, 2, 0.7)
    x = torch.full_like(x, 3.0) if side != "y" else x
    y = torch.full_like(y, -1.0) if side != "x" else y
    reading = CopulaCritic().read(x, y)
    assert (reading.value, reading.standard_error) == (0.0, 0.0)
    assert reading.note == "a side is constant"


@pytest.mark.usefixtures("short_critic_training")
def test_constant_columns_change_nothing() -> None:
    x, y = _gaussian(40, 1, 0.7)
    wider = torch.cat([torch.ones(40, 2), x], 1)
    assert CopulaCritic().read(wider, y) == CopulaCritic().read(x, y)


@pytest.mark.usefixtures("short_critic_training")
def test_the_same_twice_and_the_global_generator_is_left_alone() -> None:
    x, y = _gaussian(40, 1, 0.7)
    before = x.clone(), y.clone()
    first, state = CopulaCritic().read(x, y), torch.random.get_rng_state()
    torch.manual_seed(1234)
    other = torch.random.get_rng_state()
    again = CopulaCritic().read(x, y)
    left_alone = torch.equal(other, torch.random.get_rng_state())
    torch.random.set_rng_state(state)
    assert left_alone
    assert again == first
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert CopulaCritic(seed=1).read(x, y).parts["held"] != first.parts["held"], "the seed decides about the folds"


@pytest.mark.slow
def test_repeats_count_once_where_their_groups_are_named() -> None:
    x, y = (side.repeat_interleave(8, 0) for side in _gaussian(50, 1, 0.7, seed=2))
    g = torch.Generator().manual_seed(3)
    x, y = (side + 0.05 * torch.randn(side.shape, generator=g) for side in (x, y))
    reading = CopulaCritic().read(x, y, groups=torch.arange(50).repeat_interleave(8))
    assert "a critic adds nothing" in reading.note, "it would learn copies by heart, had they come on both sides"
    assert "with neighbours" not in reading.parts, "repeats are each other's neighbours"
    assert len(reading.checks) == 3
    assert reading.standard_error is not None
    assert reading.standard_error > 1.5 * GaussianMI(copula=True).standard_error(x, y), "as if rows were independent"
    assert abs(reading.value - 0.337) < 3 * reading.standard_error


@pytest.mark.usefixtures("short_critic_training")
def test_copies_of_rows_are_not_put_to_neighbours() -> None:
    x, y = _gaussian(60, 1, 0.0)
    reading = CopulaCritic().read(x.repeat(2, 1), y.repeat(2, 1))
    assert "with neighbours" not in reading.parts
    assert reading.value < 1.0


@pytest.mark.usefixtures("short_critic_training")
def test_every_row_reports_once_and_groups_stay_whole() -> None:
    x, y = (side.double() for side in _gaussian(120, 1, 0.7))
    groups = torch.arange(40).repeat(3)
    pieces = cross_fit(x, y, groups=groups, generator=torch.Generator().manual_seed(0))
    assert pieces.rows.sort().values.tolist() == list(range(120))
    assert all(drawn.sort().values.tolist() == list(range(120)) for drawn in pieces.partners.T)
    for name in ("held", "anchor", "drawn"):
        assert getattr(pieces, name).shape == (120,)
    # A partner comes from the fold of its row, and no group is in two folds.
    folds: list[set[int]] = []
    for row, partners in zip(pieces.rows.tolist(), pieces.partners.tolist(), strict=True):
        pair = {int(groups[row]), *(int(groups[partner]) for partner in partners)}
        homes = [fold for fold in folds if fold & pair]
        folds = [fold for fold in folds if fold not in homes]
        folds.append(pair.union(*homes))
    assert len(folds) >= 5


def test_it_is_no_loss() -> None:
    x, y = _gaussian(50, 1, 0.7)
    with pytest.raises(TypeError, match=r"CopulaCritic has no gradient: .* Train with InfoNCE, JSD or VID instead"):
        CopulaCritic()(x, y)


def test_it_holds_no_state_and_so_no_device() -> None:
    instrument = CopulaCritic(seed=3)
    assert not instrument.state_dict()
    assert not list(instrument.parameters())
    assert not list(instrument.buffers())
    assert repr(copy.deepcopy(instrument)) == repr(instrument) == "CopulaCritic(seed=3)"
    fresh = instrument.fresh(*_gaussian(50, 1, 0.7), generator=torch.Generator().manual_seed(0))
    assert fresh is not instrument
    assert isinstance(fresh, CopulaCritic)
    assert fresh.seed == 3
    assert REGISTRY["copula_critic"] is CopulaCritic


@pytest.mark.parametrize(("n", "d", "needed"), [(39, 1, 40), (59, 14, 60)])
def test_too_few_rows_are_refused_with_the_number_needed(n: int, d: int, needed: int) -> None:
    assert CopulaCritic().minimum_rows(d, d) == needed
    with pytest.raises(InputError, match=str(needed)):
        CopulaCritic().read(*_gaussian(n, d, 0.5))


def test_an_exact_relation_is_refused() -> None:
    x, _ = _gaussian(200, 2, 0.5)
    with pytest.raises(InputError, match="infinite"):
        CopulaCritic().read(x, x)


PARTS = {"fit": 1.05, "held": 0.95, "coordinates": 1.0, "gaussian copula": 0.95, "with neighbours": 1.05}
QUIET = Residual(value=0.0, error=0.02, method="ksg")


def _check(name: str, value: float = 1.0, residual: Residual | None = QUIET, **parts: float) -> Check:
    given = PARTS | {key.replace("_", " "): part for key, part in parts.items()}
    return next(check for check in _agreement_checks(value, given, residual) if check.name == name)


def test_agreement_checks_stay_quiet_where_all_agree() -> None:
    checks = _agreement_checks(1.0, PARTS, QUIET)
    assert [check.name for check in checks] == [
        "fit and held-out rows agree",
        "coordinates",
        "neighbours and critic agree",
    ]
    assert {check.outcome for check in checks} == {"pass"}
    assert all(check.sentence.endswith(".") for check in checks)
    assert len(_agreement_checks(1.0, PARTS, None)) == 2, "nearest neighbors that were not used cannot disagree"


@pytest.mark.parametrize(
    ("name", "parts", "said"),
    [
        ("fit and held-out rows agree", {"fit": 1.2, "held": 0.9}, "1.200 on the samples it was fitted to and 0.900"),
        ("coordinates", {"coordinates": 1.3}, "gives 0.950 in the original features and 1.300"),
        (
            "neighbours and critic agree",
            {"with_neighbours": 1.3},
            "With nearest neighbors the value is 1.300, from the critic alone 1.000",
        ),
        (
            "neighbours and critic agree",
            {"with_neighbours": 0.7},
            "With nearest neighbors the value is 0.700, from the critic alone 1.000",
        ),
    ],
)
def test_each_own_check_fires_alone(name: str, parts: dict[str, float], said: str) -> None:
    fired = _check(name, **parts)
    assert fired.outcome == "warn"
    assert said in fired.sentence
    given = PARTS | {key.replace("_", " "): part for key, part in parts.items()}
    assert sum(check.outcome == "warn" for check in _agreement_checks(1.0, given, QUIET)) == 1


def test_agreement_checks_allow_a_tenth_of_a_nat_or_a_fifth() -> None:
    name = "fit and held-out rows agree"
    for value, fit, outcome in [(0.1, 1.04, "pass"), (0.1, 1.06, "warn"), (1.0, 1.14, "pass"), (1.0, 1.16, "warn")]:
        assert _check(name, value, fit=fit).outcome == outcome
    assert _check(name, fit=0.2).outcome == "pass", "held-out rows that do better are no sign of too much fitting"
    noisy = Residual(value=0.0, error=0.2, method="ksg")
    assert _check("neighbours and critic agree", residual=noisy, with_neighbours=1.5).outcome == "pass"
