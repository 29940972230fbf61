"""Transport discrepancies as losses and as estimators, against POT, GeomLoss, closed forms and repeated samples."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from geomloss import SamplesLoss
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mikit import (
    GaussianKL,
    GaussianWasserstein,
    GromovWasserstein,
    SinkhornDivergence,
    SlicedWasserstein,
    Wasserstein,
    measure,
)
from mikit.core.errors import InputError
from mikit.estimators.discrepancy import Discrepancy
from mikit.estimators.jackknife import jackknife_standard_error

BLIND = (
    Wasserstein(),
    Wasserstein(1, squared=False),
    SlicedWasserstein(32),
    SinkhornDivergence(0.5),
    GaussianWasserstein(),
    GaussianKL("symmetric"),
    GromovWasserstein(),
)


def _rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _pairs(n: int, d: int, seed: int, rho: float = 0.8, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    x, noise = _rows(n, d, seed), _rows(n, d, 10_000 + seed)
    return x, rho * x + math.sqrt(1 - rho**2) * noise + shift


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 20)])
def test_wasserstein_is_that_of_pot(n: int, m: int, p: float, squared: bool) -> None:
    x, y = _rows(n, 4, 0), _rows(m, 4, 1, 0.5)
    costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").pow(p).numpy()
    distance = ot.emd2([], [], costs) ** (1 / p)
    estimator = Wasserstein(p, squared=squared)
    assert estimator.unit == ("feature²" if squared else "feature")
    assert estimator.estimate(x, y).item() == pytest.approx(distance**2 if squared else distance, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "weighted"), [(40, 40, False), (40, 30, False), (30, 25, True)])
def test_sinkhorn_value_and_gradient_equal_those_of_geomloss(n: int, m: int, weighted: bool) -> None:
    epsilon = 0.5
    x, y = _rows(n, 3, 0).requires_grad_(), _rows(m, 3, 1, 0.5).requires_grad_()
    a, b = (torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) for size in (n, m))
    a, b = ((w + 0.1) / (w + 0.1).sum() if weighted else torch.full_like(w, 1 / len(w)) for w in (a, b))
    # Their cost is half of the squared distance, as here, and their blur the root of epsilon. Their schedule ends when
    # it reaches epsilon: with a scaling of 0.999 their gradient is off by 1.4e-3, at 0.99 by ten times that.
    theirs = SamplesLoss("sinkhorn", p=2, blur=epsilon**0.5, scaling=0.999, debias=True, backend="tensorized")(
        a, x, b, y
    )
    ours = SinkhornDivergence(epsilon).estimate(x, y, weights_x=a, weights_y=b)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    for own, other in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        assert float((own - other).norm() / other.norm()) < 2e-3


def test_sinkhorn_takes_a_share_of_the_mean_cost() -> None:
    x, y = _rows(30, 3, 0), _rows(20, 3, 1, 0.5)
    mean = float(torch.cdist(x, y).square().mean()) / 2
    expected = SinkhornDivergence(0.1 * mean).estimate(x, y).item()
    assert SinkhornDivergence(share=0.1).estimate(x, y).item() == pytest.approx(expected, rel=1e-6)
    weights = torch.arange(1.0, 31.0)
    weighted = float((weights / weights.sum()).double() @ torch.cdist(x, y).square().mean(dim=1)) / 2
    expected = SinkhornDivergence(0.1 * weighted).estimate(x, y, weights_x=weights).item()
    found = SinkhornDivergence(share=0.1).estimate(x, y, weights_x=weights).item()
    assert found == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="pass epsilon"):
        SinkhornDivergence().estimate(torch.ones(4, 2), torch.ones(5, 2))


def test_debiased_sinkhorn_uses_one_epsilon() -> None:
    x, y = _rows(40, 3, 0), _rows(40, 3, 1, 3.0)
    mean = float(torch.cdist(x, y).square().mean()) / 2
    fixed = SinkhornDivergence(0.05 * mean, debias=True).estimate(x, y).item()
    assert SinkhornDivergence(debias=True).estimate(x, y).item() == pytest.approx(fixed, rel=1e-6)


@pytest.mark.parametrize("estimator", BLIND, ids=lambda one: one.name)
def test_equal_samples_in_any_order_are_at_distance_zero(estimator: Discrepancy) -> None:
    x = _rows(24, 3, 0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert estimator.estimate(x, x[order]).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("estimator", BLIND, ids=lambda one: one.name)
def test_they_are_symmetric_blind_to_order_and_take_other_sizes(estimator: Discrepancy) -> None:
    x, y = _rows(24, 3, 0), _rows(17, 3, 1, 0.5)
    value = estimator.estimate(x, y).item()
    assert value > 0
    assert estimator.estimate(y, x).item() == pytest.approx(value, rel=1e-6)
    assert estimator.estimate(x.flip(0), y).item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("estimator", [Wasserstein(), SinkhornDivergence(0.5), GromovWasserstein()], ids=repr)
def test_weights_count_as_copies(estimator: Discrepancy) -> None:
    x, y = _rows(8, 3, 0), _rows(11, 3, 1, 0.3)
    counts = torch.tensor([1, 2, 1, 3, 1, 1, 2, 1])
    copied = estimator.estimate(x.repeat_interleave(counts, 0), y).item()
    # Copies may lead Gromov-Wasserstein to another local minimum; here they do not.
    assert estimator.estimate(x, y, weights_x=counts).item() == pytest.approx(copied, rel=1e-4)
    with pytest.raises(InputError, match="takes no weights"):
        SlicedWasserstein().estimate(x, y, weights_x=counts)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_triangle_inequality_holds_for_the_distances(seed: int) -> None:
    x, y, z = (_rows(8, 3, 3 * seed + i, i / 2) for i in range(3))
    for distance in (Wasserstein(squared=False), Wasserstein(1, squared=False), SlicedWasserstein(16, squared=False)):
        direct = distance.estimate(x, y).item()
        assert direct <= distance.estimate(x, z).item() + distance.estimate(z, y).item() + 1e-9


@pytest.mark.parametrize(("d", "plain"), [(2, 0.17), (16, 14.5), (64, 89.9), (512, 911)])
def test_debiasing_removes_what_finite_samples_add(d: int, plain: float) -> None:
    seeds = 100 if d <= 16 else 20
    biased, debiased, errors = [], [], []
    for seed in range(seeds):
        x, y = _rows(128, d, seed), _rows(128, d, 10_000 + seed)
        biased.append(Wasserstein().estimate(x, y).item())
        estimator = Wasserstein(debias=True)
        debiased.append(estimator.estimate(x, y).item())
        if seed < 20:
            errors.append(estimator.standard_error(x, y))
    values = torch.tensor(debiased)
    # The stated figures are single draws, which spread by 24 % of the mean in two columns and by 2 % and less above.
    assert abs(sum(biased) / seeds - plain) < max(0.05 * plain, float(torch.tensor(biased).std()))
    spread = float(values.std())
    assert abs(float(values.mean())) < 3 * spread / math.sqrt(seeds)
    assert min(debiased) < 0
    # One sample is within three of its own errors of 0, which are up to 1.7 times too large for equal distributions.
    assert abs(debiased[0]) < 3 * errors[0]
    assert 0.7 < sum(errors) / len(errors) / spread < 2.2


@pytest.mark.parametrize(
    "estimator",
    [
        Wasserstein(),
        Wasserstein(1, squared=False),
        Wasserstein(3, squared=True),
        Wasserstein(debias=True),
        Wasserstein(squared=False, debias=True),
        SlicedWasserstein(16),
        SlicedWasserstein(16, squared=False, debias=True),
        SinkhornDivergence(1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("n", "m"), [(80, 80), (80, 60)])
def test_standard_errors_match_the_spread(estimator: Discrepancy, n: int, m: int) -> None:
    repetitions = 40
    values, squares = [], []
    for seed in range(repetitions):
        x, y = _pairs(n, 3, seed, shift=1.0)
        values.append(estimator.estimate(x, y[:m] if n != m else y).item())
        if seed < 12:
            error = estimator.standard_error(x, y[:m] if n != m else y)
            assert error is not None
            squares.append(error**2)
    spread = torch.tensor(values).std().item()
    stated = math.sqrt(sum(squares) / len(squares))
    # A spread of 40 values is known to 11 %, a mean error of 12 to about as much. Samples of different sizes are taken
    # to be independent; these are not, so that the stated error may be larger.
    assert 0.6 * spread < stated < (1.6 if n == m else 3.0) * spread


def test_groups_of_copies_count_once() -> None:
    x, y = _pairs(60, 3, 0, shift=1.0)
    groups = torch.arange(60).repeat_interleave(3)
    for estimator in (Wasserstein(), SlicedWasserstein(16)):
        own = estimator.standard_error(x, y)
        copied = estimator.standard_error(x.repeat_interleave(3, 0), y.repeat_interleave(3, 0), groups=groups)
        assert own is not None
        # A jackknife of other blocks of sixty rows gives an error that is off by a sixth.
        assert copied == pytest.approx(own, rel=0.35)
        with pytest.raises(InputError, match="groups belong"):
            estimator.standard_error(x, y[:50], groups=torch.arange(60))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x, y = _pairs(2000, 1, 0)

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return a.mean() - b.mean()

    # Twenty blocks know a variance to a third of it.
    assert jackknife_standard_error(difference, x, y) == pytest.approx(float((x - y).std()) / 2000**0.5, rel=0.5)
    independent = jackknife_standard_error(difference, x, y[:1000])
    assert independent == pytest.approx(math.sqrt(float(x.var()) / 2000 + float(y[:1000].var()) / 1000), rel=0.5)
    assert jackknife_standard_error(difference, x[:3], y[:3]) is None
    assert jackknife_standard_error(difference, x[:20], y[:20], fewest=19) is None
    assert jackknife_standard_error(difference, x[:20], y[:20], fewest=18) is not None
    assert jackknife_standard_error(difference, x[:4], y[:4], groups=torch.zeros(4, dtype=torch.int64)) == math.inf


def test_the_check_says_where_the_plan_is_paired_regression() -> None:
    x, y = _pairs(128, 64, 0, rho=0.5)
    (check,) = Wasserstein().checks(x, y)
    assert (check.name, check.outcome, check.threshold) == ("pointwise in disguise", "warn", 0.5)
    assert check.figure == pytest.approx(1.0, abs=0.05)
    assert "paired regression in disguise" in check.sentence
    (apart,) = Wasserstein().checks(x, _rows(128, 64, 7))
    assert apart.outcome == "pass"
    assert apart.figure < 0.1
    assert Wasserstein().checks(x, y[:100])[0].outcome == "not applicable"
    assert Wasserstein(debias=True).checks(x, y)[0].outcome == "not applicable"
    measured = measure(x.numpy(), y.numpy(), "wasserstein")
    assert "pointwise in disguise" in [one.name for one in measured.checks]
    assert measured.verdict != "trustworthy"


def test_the_teacher_is_detached_and_the_student_moves() -> None:
    for estimator in (*BLIND, Wasserstein(debias=True), SlicedWasserstein(8, maximum=True)):
        x, y = _rows(12, 3, 0).requires_grad_(), _rows(12, 3, 1, 1.0).requires_grad_()
        estimator(x, y).backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
        assert y.grad is None


@pytest.mark.parametrize("estimator", [Wasserstein(), SlicedWasserstein(32), SinkhornDivergence(0.5)], ids=repr)
def test_as_a_loss_it_moves_the_student_onto_the_teacher(estimator: Discrepancy) -> None:
    x, y = _rows(128, 3, 0), _rows(128, 3, 1, 2.0)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        estimator(x + shift, y).backward()
        optimizer.step()
    # The means of both samples are known to about 0.12 together.
    assert torch.allclose(shift.detach(), torch.full((3,), 2.0, dtype=torch.float64), atol=0.4)


def test_sliced_losses_draw_new_lines_and_estimates_the_same() -> None:
    x, y = _rows(20, 8, 0), _rows(20, 8, 1, 0.5)
    sliced = SlicedWasserstein(4, seed=3)
    assert sliced.estimate(x, y).item() == sliced.estimate(x, y).item()
    first, second = sliced(x, y).item(), sliced(x, y).item()
    assert first != second
    assert int(sliced.draws) == 2
    resumed = SlicedWasserstein(4, seed=3)
    resumed.load_state_dict({"draws": torch.tensor(1)})
    assert resumed(x, y).item() == second
    assert sliced.eval()(x, y).item() == sliced.estimate(x, y).item()
    assert int(sliced.draws) == 2
    # Over many draws the mean over all lines is the mean squared cosine times the distance; estimates are unbiased.
    many = SlicedWasserstein(4000).estimate(x, x + 1).item()
    assert many == pytest.approx(1.0, abs=0.1)  # four standard errors of 4,000 lines


def test_a_maximum_lies_between_the_mean_and_the_exact_distance() -> None:
    x, y = _rows(60, 6, 0), _rows(60, 6, 1, 0.3)
    furthest = SlicedWasserstein(8, maximum=True)
    assert SlicedWasserstein().estimate(x, y) < furthest.estimate(x, y) < Wasserstein().estimate(x, y)
    rooted = SlicedWasserstein(8, maximum=True, squared=False)
    assert rooted.unit == "feature"
    assert rooted.estimate(x, y).item() == pytest.approx(furthest.estimate(x, y).item() ** 0.5)
    same = torch.ones(4, 2, requires_grad=True)
    rooted(same, torch.ones(4, 2)).backward()
    assert same.grad is not None
    assert same.grad.abs().max() == 0


def test_gromov_takes_two_widths_and_names_its_units() -> None:
    x, y = _rows(20, 3, 0), _rows(15, 5, 1)
    units = {"euclidean": "feature²", "squared euclidean": "feature⁴", "cosine": "dimensionless"}
    for cost, unit in units.items():
        estimator = GromovWasserstein(cost)
        assert estimator.unit == unit
        assert estimator.estimate(x, y).item() > 0
        assert estimator.standard_error(x, y) is None
    with pytest.raises(InputError, match="3 features and y has 5"):
        Wasserstein().estimate(x, y)


def test_what_cannot_be_used_is_refused() -> None:
    x = _rows(10, 3, 0)
    with pytest.raises(InputError, match=r"p is 0\.5"):
        Wasserstein(0.5)
    with pytest.raises(InputError, match="epsilon is -1"):
        SinkhornDivergence(-1.0)
    with pytest.raises(InputError, match="share is 0"):
        SinkhornDivergence(share=0)
    with pytest.raises(InputError, match="projections is 0"):
        SlicedWasserstein(0)
    with pytest.raises(InputError, match='cost is "manhattan"'):
        GromovWasserstein("manhattan")
    with pytest.raises(InputError, match="needs 4"):
        Wasserstein(debias=True).estimate(x[:3], x)
