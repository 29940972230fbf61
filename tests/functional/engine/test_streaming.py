"""Every streamed quantity against the same quantity written plainly, for any block size, dtype and data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from mikit.core.errors import ConvergenceWarning, InputError
from mikit.functional import (
    anchored_infonce,
    bures2,
    cka,
    dv,
    gaussian_wasserstein2,
    hsic,
    infonce,
    jsd,
    label_qmi,
    mmd2,
    nwj,
    pkt,
    polynomial_mmd2,
    qmi,
    sinkhorn_divergence,
    sliced_wasserstein2,
    smile,
)

Streamed = Callable[[Tensor, Tensor, int | None], Tensor]
Whole = Callable[[Tensor, Tensor], Tensor]


class Quantity(NamedTuple):
    """A streamed function, the same written with whole matrices, and what must hold for it."""

    streamed: Streamed
    whole: Whole
    shift_invariant: bool = False  # whether a common offset of both samples changes nothing


def _without_own(values: Tensor) -> Tensor:
    n = values.shape[0]
    return values[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)


def _infonce(x: Tensor, y: Tensor) -> Tensor:
    scores = x @ y.T
    return (scores.diagonal() - scores.logsumexp(dim=1)).mean() + math.log(x.shape[0])


def _anchored_infonce(x: Tensor, y: Tensor) -> Tensor:
    n, anchor = x.shape[0], 1.7
    scores = x @ y.T
    terms = []
    for i in range(n):
        following = (i + 1) % n
        unpaired = scores.new_tensor(anchor).log()
        positives = torch.stack([scores[i, j] for j in range(n) if j != following] + [unpaired])
        negatives = torch.stack([scores[i, j] for j in range(n) if j != i] + [unpaired])
        found = scores[i, i] - positives.logsumexp(0)
        absent = math.log(anchor) - negatives.logsumexp(0)
        terms.append(((n - 1) * found + anchor * absent) / (n - 1 + anchor))
    return torch.stack(terms).mean()


def _jsd(x: Tensor, y: Tensor) -> Tensor:
    scores = x @ y.T
    return -softplus(-scores.diagonal()).mean() - softplus(_without_own(scores)).mean() + 2 * math.log(2)


def _nwj(x: Tensor, y: Tensor) -> Tensor:
    scores = x @ y.T
    return scores.diagonal().mean() - (_without_own(scores) - 1).exp().mean()


def _dv(x: Tensor, y: Tensor) -> Tensor:
    scores = x @ y.T
    return scores.diagonal().mean() - _without_own(scores).exp().mean().log()


def _smile(x: Tensor, y: Tensor) -> Tensor:
    scores = x @ y.T
    return scores.diagonal().mean() - _without_own(scores).clamp(-1.5, 1.5).exp().mean().log()


def _mmd2(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], unbiased: bool, paired: bool) -> Tensor:
    if not unbiased:
        return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()
    across = _without_own(kernel(x, y)) if paired else kernel(x, y)
    return _without_own(kernel(x, x)).mean() + _without_own(kernel(y, y)).mean() - 2 * across.mean()


def _gaussian(*bandwidths: float) -> Callable[[Tensor, Tensor], Tensor]:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b).square().sum(dim=2)
        return torch.stack([(-squared / (2 * sigma**2)).exp() for sigma in bandwidths]).sum(dim=0)

    return kernel


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


QUANTITIES = {
    "infonce": Quantity(lambda x, y, s: infonce(x, y, strip=s), _infonce),
    "infonce at a temperature": Quantity(
        lambda x, y, s: infonce(x, y, temperature=0.5, strip=s), lambda x, y: _infonce(x, 2 * y)
    ),
    "infonce in both directions": Quantity(
        lambda x, y, s: infonce(x, y, both_directions=True, strip=s), lambda x, y: (_infonce(x, y) + _infonce(y, x)) / 2
    ),
    "anchored infonce": Quantity(lambda x, y, s: anchored_infonce(x, y, anchor=1.7, strip=s), _anchored_infonce),
    "jsd": Quantity(lambda x, y, s: jsd(x, y, strip=s), _jsd),
    "nwj": Quantity(lambda x, y, s: nwj(x, y, strip=s), _nwj),
    "dv": Quantity(lambda x, y, s: dv(x, y, strip=s), _dv),
    "smile": Quantity(lambda x, y, s: smile(x, y, clip=1.5, strip=s), _smile),
    "mmd2": Quantity(
        lambda x, y, s: mmd2(x, y, bandwidth=1.3, strip=s),
        lambda x, y: _mmd2(x, y, _gaussian(1.3), True, False),
        shift_invariant=True,
    ),
    "mmd2 of pairs": Quantity(
        lambda x, y, s: mmd2(x, y, bandwidth=1.3, paired=True, strip=s),
        lambda x, y: _mmd2(x, y, _gaussian(1.3), True, True),
        shift_invariant=True,
    ),
    "mmd2, biased": Quantity(
        lambda x, y, s: mmd2(x, y, bandwidth=1.3, unbiased=False, strip=s),
        lambda x, y: _mmd2(x, y, _gaussian(1.3), False, False),
        shift_invariant=True,
    ),
    "mmd2 of several bandwidths": Quantity(
        lambda x, y, s: mmd2(x, y, bandwidth=[0.7, 1.3, 4.0], strip=s),
        lambda x, y: _mmd2(x, y, _gaussian(0.7, 1.3, 4.0), True, False),
        shift_invariant=True,
    ),
    "polynomial mmd2": Quantity(
        lambda x, y, s: polynomial_mmd2(x, y, strip=s), lambda x, y: _mmd2(x, y, _cubic, True, False)
    ),
}
# Each has a test file of its own; the tests for all come here.
TESTED_ELSEWHERE: dict[str, Streamed] = {
    "mmd2 at the median bandwidth": lambda x, y, s: mmd2(x, y, strip=s),
    "hsic at the median bandwidths": lambda x, y, s: hsic(x, y, strip=s),
    "hsic": lambda x, y, s: hsic(x, y, bandwidth_x=1.0, bandwidth_y=2.0, strip=s),
    "unbiased hsic": lambda x, y, s: hsic(x, y, bandwidth_x=1.0, bandwidth_y=2.0, unbiased=True, strip=s),
    "cka": lambda x, y, s: cka(x, y, bandwidth_x=1.0, bandwidth_y=2.0, strip=s),
    "qmi": lambda x, y, s: qmi(x, y, bandwidth_x=1.0, bandwidth_y=2.0, strip=s),
    "label qmi": lambda x, y, s: label_qmi(x, (y[:, 0] > 0).long(), bandwidth=1.0, strip=s) + 0 * y.sum(),
    "pkt": lambda x, y, s: pkt(x, y, strip=s),
    "pkt, combined": lambda x, y, s: pkt(x, y, kernel="combined", divergence="jeffreys", strip=s),
    "sinkhorn divergence": lambda x, y, s: sinkhorn_divergence(x, y, epsilon=2.0, strip=s),
    "sinkhorn divergence, streamed": lambda x, y, s: sinkhorn_divergence(x, y, epsilon=2.0, held_entries=0, strip=s),
    "bures2": lambda x, y, s: bures2(x, y),
    "gaussian wasserstein2": lambda x, y, s: gaussian_wasserstein2(x, y),
    "sliced wasserstein2": lambda x, y, s: sliced_wasserstein2(x, y, directions=torch.eye(x.shape[1])),
}
# These keep their kernel while it is small, or up to 2,048 rows' distances for the median.
HELD = ("sinkhorn divergence", "mmd2 at the median bandwidth", "hsic at the median bandwidths")
every_quantity = pytest.mark.parametrize("name", QUANTITIES)


def sample(n: int = 13, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return dependent float64 rows, among them some that occur twice and one that both samples hold."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = 0.7 * x + 0.7 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    if n > 4:
        x[2] = x[1]
        y[3] = y[0]
        y[4] = x[4]
    return x, y


def with_gradients(function: Whole, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = function(a, b)
    return value.detach(), *torch.autograd.grad(value, (a, b))


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    """Compare values, relative to the expected one or to 1 if that is larger, and gradients, relative to their norm."""
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        size = theirs.double().norm().clamp(min=1.0 if index == 0 else 1e-300)
        error = (mine.double() - theirs.double()).norm() / size
        assert error <= tolerance, (("value", "gradient in x", "gradient in y")[index], float(error))


@every_quantity
@pytest.mark.parametrize("n", [3, 13])
def test_in_float64_every_strip_gives_the_whole_matrix_s_value_and_gradients(name: str, n: int) -> None:
    quantity = QUANTITIES[name]
    x, y = sample(n)
    expected = with_gradients(quantity.whole, x, y)
    for strip in (1, 2, 5, n - 1, n, n + 3, None):
        assert_equal(with_gradients(lambda a, b, s=strip: quantity.streamed(a, b, s), x, y), expected, 1e-12)


@every_quantity
def test_in_float32_strips_do_not_matter(name: str) -> None:
    quantity = QUANTITIES[name]
    x, y = (rows.float() for rows in sample(120, 8, seed=1))
    at_once = with_gradients(lambda a, b: quantity.streamed(a, b, 120), x, y)
    for strip in (1, 7, 64):
        assert_equal(with_gradients(lambda a, b, s=strip: quantity.streamed(a, b, s), x, y), at_once, 1e-6)


@every_quantity
def test_float32_is_as_good_as_its_rounding(name: str) -> None:
    # The rounding of one number is 6e-8, and a gradient is a difference of sums some ten times as large as itself.
    quantity = QUANTITIES[name]
    x, y = sample(120, 8, seed=1)
    exact = with_gradients(quantity.whole, x.float().double(), y.float().double())
    assert_equal(with_gradients(lambda a, b: quantity.streamed(a, b, None), x.float(), y.float()), exact, 2e-6)


@every_quantity
def test_gradients_agree_with_finite_differences(name: str) -> None:
    quantity = QUANTITIES[name]
    x, y = sample(6, 3, seed=2)
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: quantity.streamed(a, b, 4), inputs)
    other = y.detach()
    assert torch.autograd.gradcheck(lambda a: quantity.streamed(a, other, 4), inputs[:1])


@pytest.mark.parametrize("name", [name for name, quantity in QUANTITIES.items() if quantity.shift_invariant])
def test_an_offset_of_ten_thousand_standard_deviations_changes_nothing(name: str) -> None:
    quantity = QUANTITIES[name]
    x, y = (rows.float() + 1e4 for rows in sample(90, 6, seed=3))  # rounded on the way: both sides see the same rows
    expected = with_gradients(quantity.whole, x.double(), y.double())
    found = with_gradients(lambda a, b: quantity.streamed(a, b, 16), x, y)
    assert_equal(found[:1], expected[:1], 1e-6)
    assert_equal(found, expected, 2e-6)


@every_quantity
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_lose_no_thousandth(name: str, dtype: torch.dtype) -> None:
    # Behind a ReLU, with a mean of ten standard deviations; rows of length 4 make scores of the usual size.
    quantity = QUANTITIES[name]
    x, y = ((rows + 10).relu() / 7 for rows in sample(200, 8, seed=4))
    x, y = x.to(dtype), y.to(dtype)
    exact = quantity.whole(x.double(), y.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = quantity.streamed(x.requires_grad_(), y, None)
    assert value.dtype == torch.float32
    assert abs(value.item() - exact.item()) <= 1e-3 * max(1.0, abs(exact.item()))
    value.backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("name", [*QUANTITIES, *TESTED_ELSEWHERE])
def test_a_second_derivative_is_refused(name: str) -> None:
    streamed = QUANTITIES[name].streamed if name in QUANTITIES else TESTED_ELSEWHERE[name]
    x, y = sample(12, 3)
    value = streamed(x.requires_grad_(), y, None)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    penalty = gradient.square().sum()
    with pytest.raises(NotImplementedError, match="differentiated again"):
        penalty.backward(retain_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated again"):
        (value + penalty).backward(inputs=[x], retain_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated again"):
        torch.autograd.grad(value + penalty, x)
    with pytest.raises(NotImplementedError, match="differentiated again"):
        torch.autograd.functional.hessian(lambda a: streamed(a, y, None), x.detach())


@pytest.mark.parametrize("name", [name for name in (*QUANTITIES, *TESTED_ELSEWHERE) if name not in HELD])
def test_no_whole_matrix_is_held(name: str) -> None:
    streamed = QUANTITIES[name].streamed if name in QUANTITIES else TESTED_ELSEWHERE[name]
    n = 800  # A whole matrix is three times the limit below.
    x, y = (rows.float() for rows in sample(n, 4, seed=5))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        with_gradients(lambda a, b: streamed(a, b, 64), x, y)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    # Four blocks of scratch, or the samples with a few columns more, whatever is larger.
    assert 0 < largest <= 4 * max(4 * 64 * n, 10 * n)


@every_quantity
def test_gradients_scale_with_what_comes_in(name: str) -> None:
    quantity = QUANTITIES[name]
    x, y = sample(7, 3)
    (once,) = torch.autograd.grad(quantity.streamed(x.requires_grad_(), y, None), x)
    (thrice,) = torch.autograd.grad(-3 * quantity.streamed(x, y, None), x)
    assert torch.allclose(thrice, -3 * once, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by the compiler's own code
@pytest.mark.parametrize("name", [*QUANTITIES, *TESTED_ELSEWHERE])
def test_the_compiler_keeps_the_loss_in_one_graph(name: str) -> None:
    streamed = QUANTITIES[name].streamed if name in QUANTITIES else TESTED_ELSEWHERE[name]

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return -2 * streamed(a.tanh(), b, None)

    torch.compiler.reset()

    compiled = torch.compile(loss, fullgraph=True)
    for n in (12, 20):  # the second size is traced with a symbolic one
        x, y = (rows.float() for rows in sample(n, 5))
        assert_equal(with_gradients(compiled, x, y), with_gradients(loss, x, y), 1e-5)


@every_quantity
def test_nothing_is_hidden_by_autocast(name: str) -> None:
    streamed = QUANTITIES[name].streamed
    x, y = (rows.float() for rows in sample(40, 5, seed=7))
    plain = with_gradients(lambda a, b: streamed(a, b, None), x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = with_gradients(lambda a, b: streamed(a, b, None), x, y)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


@pytest.mark.parametrize("name", [*QUANTITIES, *TESTED_ELSEWHERE])
def test_a_nan_is_not_swallowed(name: str) -> None:
    streamed = QUANTITIES[name].streamed if name in QUANTITIES else TESTED_ELSEWHERE[name]
    x, y = sample(12, 3)
    x[3, 1] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert streamed(x, y, None).isnan()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by torch's own forward mode
@pytest.mark.parametrize("name", [*QUANTITIES, *TESTED_ELSEWHERE])
def test_first_derivatives_are_functional_too(name: str) -> None:
    streamed = QUANTITIES[name].streamed if name in QUANTITIES else TESTED_ELSEWHERE[name]
    x, y = sample(12, 3)
    (expected,) = torch.autograd.grad(streamed(x.requires_grad_(), y, None), x)
    assert torch.allclose(torch.func.grad(lambda a: streamed(a, y, None))(x.detach()), expected, rtol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        with pytest.raises((RuntimeError, NotImplementedError), match=r"forward AD|forward mode"):
            streamed(dual, y, None)


@pytest.mark.parametrize("both_directions", [False, True])
def test_infonce_far_from_the_origin(both_directions: bool) -> None:
    x, y = (rows.float() for rows in sample(90, 6, seed=3))
    for shift_x, shift_y in ((0.0, 1e4), (1e3, 0.0), (1e2, 1e2)):
        a, b = x + shift_x, y + shift_y
        whole = QUANTITIES["infonce in both directions" if both_directions else "infonce"].whole
        expected = with_gradients(whole, a.double(), b.double())
        found = with_gradients(lambda u, v: infonce(u, v, both_directions=both_directions, strip=16), a, b)
        # What candidates share cancels: the offset of y for a row's, that of x for a column's. The other offset makes
        # scores of its size, of which float32 keeps seven digits.
        assert_equal(found, expected, 2e-6 * max(1.0, shift_x, shift_y if both_directions else 0.0))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*QUANTITIES, *TESTED_ELSEWHERE])
def test_a_gpu_gives_the_same(name: str) -> None:
    streamed = QUANTITIES[name].streamed if name in QUANTITIES else TESTED_ELSEWHERE[name]
    x, y = (rows.float() for rows in sample(700, 32, seed=6))
    expected = with_gradients(lambda a, b: streamed(a, b, None), x.double(), y.double())
    found = with_gradients(lambda a, b: streamed(a, b, None), x.cuda(), y.cuda())
    assert_equal(tuple(part.cpu() for part in found), expected, 2e-5)


def test_one_row_is_a_sample_where_the_quantity_exists() -> None:
    x, y = sample(1, 4)
    expected = with_gradients(QUANTITIES["mmd2, biased"].whole, x, y)
    assert_equal(with_gradients(lambda a, b: mmd2(a, b, bandwidth=1.3, unbiased=False), x, y), expected, 1e-12)
    with pytest.raises(InputError, match="needs at least 2"):
        mmd2(x, y, bandwidth=1.3)
    squared = (x - y).square().sum()
    assert torch.allclose(sinkhorn_divergence(x, y, epsilon=0.5), squared / 2)
    axes = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(sliced_wasserstein2(x, y, directions=axes), squared / 4)
    for contrast in (infonce, jsd, nwj, dv, smile, anchored_infonce):
        with pytest.raises(InputError, match="1 pair of samples"):
            contrast(x, y)
