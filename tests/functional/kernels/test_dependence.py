"""HSIC, CKA and quadratic mutual information: definitions, gradients, invariances and sampling distributions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.kernels.bandwidth import linear_cka, median_bandwidth
from mikit.functional.kernels.dependence import cka, hsic, label_qmi, qmi

STRIPS = [None, 1, 3, 9]


def _rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pair(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = _rows(n, 3, seed)
    y = torch.cat([x[:, :2].tanh(), _rows(n, 3, seed + 1)], dim=1)
    x[1], y[1] = x[0], y[2]  # rows that occur twice, on each side
    return x, y


def _gaussian(rows: Tensor, sigma: float) -> list[list[float]]:
    points = rows.tolist()
    return [[math.exp(-(math.dist(a, b) ** 2) / (2 * sigma**2)) for b in points] for a in points]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _quadratic(k: list[list[float]], l: list[list[float]]) -> float:  # noqa: E741
    """Return V_IN + V_ALL - 2 V_BTW of two kernels."""
    n = range(len(k))
    within = _mean([k[i][j] * l[i][j] for i in n for j in n])
    everywhere = _mean([k[i][j] for i in n for j in n]) * _mean([l[i][j] for i in n for j in n])
    between = _mean([_mean(k[i]) * _mean(l[i]) for i in n])
    return within + everywhere - 2 * between


def _distinct(k: list[list[float]], l: list[list[float]]) -> float:  # noqa: E741
    """Return the U-statistic by its definition: the mean over four distinct rows."""
    return _mean(
        [
            k[i][j] * l[i][j] + k[i][j] * l[q][r] - 2 * k[i][j] * l[i][q]
            for i, j, q, r in itertools.permutations(range(len(k)), 4)
        ]
    )


def _gaussian_of(rows: Tensor, sigma: float) -> Tensor:
    rows = rows.double()
    return torch.exp(-(rows[:, None] - rows[None]).square().sum(dim=-1) / (2 * sigma**2))


def _by_matrices(x: Tensor, y: Tensor, sigma_x: float, sigma_y: float, *, unbiased: bool, normalized: bool) -> Tensor:
    """Return HSIC or CKA in plain float64 operations on whole matrices."""
    n = x.shape[0]
    k, l = _gaussian_of(x, sigma_x), _gaussian_of(y, sigma_y)  # noqa: E741

    def inner(a: Tensor, b: Tensor) -> Tensor:
        if unbiased:
            a, b = (m * (1 - torch.eye(n, dtype=m.dtype)) for m in (a, b))
            mixed = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()
            return ((a * b).sum() + mixed) / (n * (n - 3))
        centring = torch.eye(n, dtype=a.dtype) - 1 / n
        return torch.trace(a @ centring @ b @ centring) / n**2

    value = inner(k, l)
    return value / (inner(k, k) * inner(l, l)).sqrt() if normalized else value


@pytest.mark.parametrize("strip", STRIPS)
def test_hsic_equals_its_definition(strip: int | None) -> None:
    x, y = _pair(7)
    k, l = _gaussian(x, 1.3), _gaussian(y, 0.7)  # noqa: E741
    biased = hsic(x, y, bandwidth_x=1.3, bandwidth_y=0.7, strip=strip)
    unbiased = hsic(x, y, bandwidth_x=1.3, bandwidth_y=0.7, unbiased=True, strip=strip)
    assert biased.item() == pytest.approx(_quadratic(k, l), abs=1e-12)
    assert unbiased.item() == pytest.approx(_distinct(k, l), abs=1e-12)


@pytest.mark.parametrize("strip", STRIPS)
def test_quadratic_information_equals_its_definition_and_hsic(strip: int | None) -> None:
    x, y = _pair(9)
    value = qmi(x, y, bandwidth_x=1.1, bandwidth_y=0.6, strip=strip)
    wide = math.sqrt(2)
    expected = _quadratic(_gaussian(x, wide * 1.1), _gaussian(y, wide * 0.6))
    assert value.item() == pytest.approx(expected, abs=1e-10)
    assert value.item() == pytest.approx(hsic(x, y, bandwidth_x=wide * 1.1, bandwidth_y=wide * 0.6).item(), abs=1e-10)


@pytest.mark.parametrize("strip", STRIPS)
@pytest.mark.parametrize("coding", [torch.int64, torch.uint8, torch.bool])
def test_quadratic_information_about_labels_equals_its_definition(strip: int | None, coding: torch.dtype) -> None:
    x, _ = _pair(9)
    labels = torch.tensor([4, 0, 4, 4, 0, 9, 4, 9, 0]).to(coding)
    k = _gaussian(x, math.sqrt(2) * 0.8)
    n, codes = len(k), labels.tolist()
    members = {c: [i for i in range(n) if codes[i] == c] for c in set(codes)}
    within = sum(k[i][j] for rows in members.values() for i in rows for j in rows) / n**2
    everywhere = sum((len(rows) / n) ** 2 for rows in members.values()) * sum(map(sum, k)) / n**2
    between = sum(len(rows) / n * sum(sum(k[i]) for i in rows) for rows in members.values()) / n**2
    value = label_qmi(x, labels, bandwidth=0.8, strip=strip)
    assert value.item() == pytest.approx(within + everywhere - 2 * between, abs=1e-10)
    same = [[float(a == b) for a in codes] for b in codes]
    assert value.item() == pytest.approx(_quadratic(k, same), abs=1e-10)


def test_quadratic_information_is_an_integral_of_squared_densities() -> None:
    x, y, sigma_x, sigma_y = _rows(8, 1, 2), _rows(8, 1, 3), 0.5, 0.7
    grid_x, grid_y = (torch.linspace(-8, 8, 801, dtype=torch.float64) for _ in range(2))

    def bumps(grid: Tensor, rows: Tensor, sigma: float) -> Tensor:
        return torch.exp(-((grid[:, None] - rows[:, 0]) ** 2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)

    on_x, on_y = bumps(grid_x, x, sigma_x), bumps(grid_y, y, sigma_y)
    difference = on_x @ on_y.T / 8 - on_x.mean(dim=1)[:, None] * on_y.mean(dim=1)
    step = float(grid_x[1] - grid_x[0])
    integral = difference.square().sum().item() * step**2
    unit = (4 * math.pi * sigma_x**2) ** -0.5 * (4 * math.pi * sigma_y**2) ** -0.5
    assert unit * qmi(x, y, bandwidth_x=sigma_x, bandwidth_y=sigma_y).item() == pytest.approx(integral, rel=1e-9)


def test_the_largest_value_about_labels() -> None:
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    shares = np.array([0.5, 0.3, 0.2])
    most = (shares**2).sum() - 2 * (shares**3).sum() + (shares**2).sum() ** 2
    apart = 100.0 * torch.eye(3, dtype=torch.float64)[labels]
    assert label_qmi(apart, labels, bandwidth=1.0).item() == pytest.approx(most, abs=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("strip", STRIPS)
def test_alignment_equals_the_whole_matrices(strip: int | None, unbiased: bool) -> None:
    x, y = _pair(30)
    value = cka(x, y, bandwidth_x=1.3, bandwidth_y=0.9, unbiased=unbiased, strip=strip)
    expected = _by_matrices(x, y, 1.3, 0.9, unbiased=unbiased, normalized=True)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(
    ("offset", "sigmas"), [(0.0, (9.0, 7.0)), (1e4, (9.0, 7.0)), (0.0, (90.0, 0.9)), (0.0, (1.5, 1.2))]
)
def test_single_precision(offset: float, sigmas: tuple[float, float], unbiased: bool, normalized: bool) -> None:
    x, noise = _rows(300, 40, 4), _rows(300, 20, 5)
    samples = (x + offset).float(), (0.5 * x[:, :20] + noise - offset).float()
    exact = [rows.double().requires_grad_() for rows in samples]
    expected = _by_matrices(*exact, *sigmas, unbiased=unbiased, normalized=normalized)
    expected.backward()
    rows = [each.clone().requires_grad_() for each in samples]
    measure = cka if normalized else hsic
    value = measure(rows[0], rows[1], bandwidth_x=sigmas[0], bandwidth_y=sigmas[1], unbiased=unbiased)
    value.backward()
    assert value.dtype == torch.float32
    # A rounding of 6e-8 an entry averages out. Alignment divides by numbers that are smaller than kernels by 1e-2.
    means = [float(_gaussian_of(rows, sigma).mean()) for rows, sigma in zip(samples, sigmas, strict=True)]
    scale = 1e-5 if normalized else 1e-6 * means[0] * means[1]
    assert value.item() == pytest.approx(expected.item(), abs=scale, rel=1e-7)
    for each, known in zip(rows, exact, strict=True):
        assert each.grad is not None
        assert known.grad is not None
        assert (each.grad - known.grad).norm() < 1e-4 * known.grad.norm()


def test_half_precision_is_computed_in_single() -> None:
    x, y = (rows.bfloat16() for rows in _pair(50))
    assert hsic(x, y).dtype == torch.float32
    exact = hsic(x.double(), y.double(), bandwidth_x=1.0, bandwidth_y=1.0).item()
    assert hsic(x, y, bandwidth_x=1.0, bandwidth_y=1.0).item() == pytest.approx(exact, abs=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hsic(x.float(), y.float(), bandwidth_x=1.0, bandwidth_y=1.0)
    assert inside.item() == pytest.approx(exact, abs=1e-7)
    labels = torch.arange(50) % 3
    assert label_qmi(x.half(), labels, bandwidth=1.0).dtype == torch.float32
    leaf = x.clone().requires_grad_()
    hsic(leaf, y).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("measure", [hsic, cka, qmi])
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients(measure: object, unbiased: bool) -> None:
    if measure is qmi and unbiased:
        return
    extra = {"unbiased": unbiased} if measure is not qmi else {}
    x, y = _pair(6)
    inputs = x.requires_grad_(), y.requires_grad_()

    def of(a: Tensor, b: Tensor, strip: int | None = 4) -> Tensor:
        value = measure(a, b, bandwidth_x=1.2, bandwidth_y=0.8, strip=strip, **extra)
        assert isinstance(value, Tensor)
        return value

    fixed_x, fixed_y = x.detach(), y.detach()
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradcheck(lambda a: of(a, fixed_y), inputs[:1])
    assert torch.autograd.gradcheck(lambda b: of(fixed_x, b), inputs[1:])
    assert torch.autograd.gradcheck(lambda a: of(a, a.sin()), inputs[:1])
    both = torch.autograd.grad(of(*inputs), inputs)
    for strip in (None, 1, 5):
        for one, other in zip(torch.autograd.grad(of(*inputs, strip), inputs), both, strict=True):
            assert torch.allclose(one, other, atol=1e-13)
    # One side alone is computed by another way round.
    torch.testing.assert_close(torch.autograd.grad(of(x, fixed_y), x)[0], both[0], atol=1e-13, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(of(fixed_x, y), y)[0], both[1], atol=1e-13, rtol=0)
    values = [of(x, y), of(x, fixed_y), of(fixed_x, y), of(fixed_x, fixed_y)]
    assert torch.stack(values).std().item() < 1e-14


def test_gradients_about_labels() -> None:
    x, _ = _pair(6)
    labels = torch.tensor([1, 0, 2, 2, 0, 1])
    for strip in (None, 1, 4):
        assert torch.autograd.gradcheck(
            lambda a, strip=strip: label_qmi(a, labels, bandwidth=0.8, strip=strip), (x.requires_grad_(),)
        )


def test_the_median_bandwidth_is_a_constant_for_the_gradient() -> None:
    x, y = _pair(20)
    x.requires_grad_()
    sigmas = {"bandwidth_x": median_bandwidth(x), "bandwidth_y": median_bandwidth(y)}
    for measure in (hsic, cka, qmi):
        automatic, given = (torch.autograd.grad(value, x)[0] for value in (measure(x, y), measure(x, y, **sigmas)))
        assert torch.allclose(automatic, given, rtol=1e-9)
    labels = torch.arange(20) % 2
    assert torch.allclose(label_qmi(x, labels), label_qmi(x, labels, bandwidth=sigmas["bandwidth_x"]), rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_rows(n: int) -> None:
    x, y = _rows(n, 2, 6), _rows(n, 4, 7)
    k, l = _gaussian(x, 1.0), _gaussian(y, 1.5)  # noqa: E741
    sigmas = {"bandwidth_x": 1.0, "bandwidth_y": 1.5}
    assert hsic(x, y, **sigmas).item() == pytest.approx(_quadratic(k, l), abs=1e-14)
    assert 0 < cka(x, y, **sigmas).item() <= 1 + 1e-12
    if n >= 4:
        assert hsic(x, y, unbiased=True, **sigmas).item() == pytest.approx(_distinct(k, l), abs=1e-14)
        assert abs(cka(x, y, unbiased=True, **sigmas).item()) <= 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_does_not_vary_aligns_with_nothing(dtype: torch.dtype) -> None:
    for n in range(20, 30):  # whose mean may miss a constant by its rounding
        same, varied = ((scale * _rows(n, 40, n)).to(dtype) for scale in (1e3, 1.0))
        assert cka(same[:1].repeat(n, 1), varied, bandwidth_x=0.7).item() == 0
    constant = (1e3 * _rows(1, 40, 12)).to(dtype).repeat(50, 1).requires_grad_()
    other = _rows(50, 3, 8).to(dtype).requires_grad_()
    for unbiased in (False, True):
        for bandwidth in (None, 0.7):
            value = cka(constant, other, bandwidth_x=bandwidth, unbiased=unbiased)
            value.backward()
            assert value.item() == 0
            assert hsic(constant, other, bandwidth_x=bandwidth, unbiased=unbiased).item() == 0
    assert constant.grad is not None
    assert other.grad is not None
    assert not constant.grad.any()
    assert not other.grad.any()
    for n in range(5, 40):
        simplex = torch.eye(n, dtype=dtype)  # rows equally far apart
        assert cka(simplex, other[:n], unbiased=True).item() == 0
    assert cka(simplex, simplex.flip(1)).item() == pytest.approx(1, abs=1e-6)


def test_the_order_of_the_pairs_does_not_matter_and_their_pairing_does() -> None:
    x, y = _pair(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long()
    sigmas = {"bandwidth_x": 1.0, "bandwidth_y": 1.0}
    for measure in (hsic, cka, qmi):
        value = measure(x, y, **sigmas).item()
        assert measure(x[order], y[order], **sigmas).item() == pytest.approx(value, abs=1e-14)
        assert measure(x[order], y, **sigmas).item() < 0.7 * value
        assert measure(y, x, **sigmas).item() == pytest.approx(value, abs=1e-14)
    value = label_qmi(x, labels, bandwidth=1.0).item()
    assert label_qmi(x[order], labels[order], bandwidth=1.0).item() == pytest.approx(value, abs=1e-14)
    assert label_qmi(x, 7 - 3 * labels, bandwidth=1.0).item() == pytest.approx(value, abs=1e-14)
    assert label_qmi(x[order], labels, bandwidth=1.0).item() < 0.7 * value


def test_invariances() -> None:
    x, y = _pair(40)
    turn = torch.linalg.qr(_rows(3, 3, 9)).Q
    for measure in (hsic, cka, qmi):
        value = measure(x, y).item()
        assert measure(5 * x @ turn + 3, y).item() == pytest.approx(value, abs=1e-12)
        assert measure(x * torch.tensor([1.0, 5.0, 0.2], dtype=x.dtype), y).item() != pytest.approx(value, rel=1e-2)
    assert cka(x, 2 * x @ turn - 1).item() == pytest.approx(1, abs=1e-12)
    assert cka(x, 2 * x @ turn - 1, unbiased=True).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_kernels_give_the_linear_alignment(dtype: torch.dtype) -> None:
    x, y = (rows.to(dtype) for rows in _pair(80))
    wide = cka(x, y, bandwidth_x=3e3, bandwidth_y=3e3).item()
    # The next term of the exponential is smaller by |x - y|² / 4 sigma², about 1e-6.
    assert wide == pytest.approx(linear_cka(x, y).item(), abs=1e-5)


def test_the_unbiased_form_is_unbiased_and_the_biased_one_says_by_how_much() -> None:
    n, sigmas = 20, {"bandwidth_x": 1.5, "bandwidth_y": 1.5}
    samples = [(_rows(n, 2, 2 * seed), _rows(n, 2, 2 * seed + 1)) for seed in range(600)]
    values = np.array([hsic(x, y, unbiased=True, **sigmas).item() for x, y in samples])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean()) < 3 * error
    assert 0.3 < (values < 0).mean() < 0.8
    biased = np.array([hsic(x, y, **sigmas).item() for x, y in samples])
    assert biased.min() >= 0
    between = (1.5**2 / (1.5**2 + 2)) ** (2 / 2)  # the mean kernel of two different rows
    assert biased.mean() == pytest.approx((1 - between) ** 2 / n, rel=0.15)


def test_distances_that_are_all_alike_make_the_biased_alignment_useless() -> None:
    x, y = _rows(30, 3000, 10), _rows(30, 3000, 11)
    assert cka(x, y).item() > 0.95
    assert abs(cka(x, y, unbiased=True).item()) < 0.3


def test_bad_input_is_refused() -> None:
    x, y = _pair(6)
    labels = torch.zeros(6, dtype=torch.long)
    for measure in (hsic, cka, qmi):
        with pytest.raises(InputError, match=r"x has shape \(6,\)"):
            measure(x[:, 0], y)
        with pytest.raises(InputError, match="x has 6 samples and y has 5"):
            measure(x, y[:5])
        with pytest.raises(InputError, match="at least 2"):
            measure(x[:1], y[:1])
        for wrong in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(InputError, match="bandwidth_y is"):
                measure(x, y, bandwidth_y=wrong)
        with pytest.raises(InputError, match="strip is 0"):
            measure(x, y, strip=0)
    for measure in (hsic, cka):
        with pytest.raises(InputError, match="at least 4"):
            measure(x[:3], y[:3], unbiased=True)
    with pytest.raises(InputError, match=r"labels has shape \(5,\), but x has 6 samples"):
        label_qmi(x, labels[:5])
    with pytest.raises(InputError, match="pass classes as integers"):
        label_qmi(x, labels.double())
    with pytest.raises(InputError, match="bandwidth is -1"):
        label_qmi(x, labels, bandwidth=-1)


@pytest.mark.slow
def test_the_compiler_takes_them_whole() -> None:
    x, y = _pair(40)
    x.requires_grad_()
    y.requires_grad_()
    labels = torch.arange(40) % 3

    def total(a: Tensor, b: Tensor) -> Tensor:
        sigmas = {"bandwidth_x": 1.0, "bandwidth_y": 1.0}
        return hsic(a, b, **sigmas) + cka(a, b, unbiased=True, **sigmas) + label_qmi(a, labels, bandwidth=1.0)

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert compiled(x, y).item() == pytest.approx(total(x, y).item(), abs=1e-14)
    for one, other in zip(*(torch.autograd.grad(f(x, y), (x, y)) for f in (compiled, total)), strict=True):
        assert torch.allclose(one, other, atol=1e-14)
