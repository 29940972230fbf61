"""The contrastive bounds against a naive loop, finite differences, and any size of block."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional.bounds.infonce import infonce
from mikit.functional.bounds.infonce_scores import infonce_from_scores, infonce_influence


def naive(scores: list[list[float]]) -> list[float]:
    n = len(scores)
    return [scores[i][i] - math.log(sum(math.exp(scores[i][j]) for j in range(n)) / n) for i in range(n)]


def embeddings(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=dtype)
    return x, 0.7 * x + torch.randn(n, d, generator=g, dtype=dtype)


@pytest.mark.parametrize("both_directions", [False, True])
def test_every_form_equals_the_naive_loop(both_directions: bool) -> None:
    x, y = embeddings(13, 4)
    scores = x @ y.T / 0.5
    terms = torch.tensor(naive(scores.tolist()), dtype=torch.float64)
    if both_directions:
        terms = 0.5 * (terms + torch.tensor(naive(scores.T.tolist()), dtype=torch.float64))
    kind = {"both_directions": both_directions}
    exact = {"atol": 1e-12, "rtol": 0.0}
    torch.testing.assert_close(infonce(x, y, temperature=0.5, **kind), terms.mean(), **exact)
    torch.testing.assert_close(infonce_from_scores(scores, **kind), terms.mean(), **exact)
    with_gradient = infonce(x.requires_grad_(), y, temperature=0.5, **kind)
    torch.testing.assert_close(with_gradient.detach(), terms.mean(), **exact)


@pytest.mark.parametrize("both_directions", [False, True])
@pytest.mark.parametrize("strip", [1, 2, 5, 11, 12, 100])
def test_strips_change_neither_value_nor_gradient(strip: int, both_directions: bool) -> None:
    x, y = embeddings(12, 3)
    x.requires_grad_()
    y.requires_grad_()
    whole = infonce_from_scores(x @ y.T, both_directions=both_directions)
    expected = torch.autograd.grad(whole, (x, y))
    streamed = infonce(x, y, strip=strip, both_directions=both_directions)
    torch.testing.assert_close(streamed, whole, atol=1e-13, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(streamed, (x, y)), expected, atol=1e-13, rtol=0)


def test_gradcheck_includes_duplicates_identical_sides_and_a_learned_temperature() -> None:
    x, y = embeddings(6, 3)
    x[1] = x[0]
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for a, b in ((x, y), (x, x.clone())):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        for both in (False, True):
            assert torch.autograd.gradcheck(
                lambda p, q, t, both=both: infonce(p, q, temperature=t, both_directions=both, strip=4),
                (a, b, temperature),
            )
    scores = (x @ y.T).requires_grad_()
    assert torch.autograd.gradcheck(infonce_from_scores, (scores,))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 6), st.floats(1e-3, 100.0), st.integers(0, 10_000), st.booleans())
def test_the_bound_is_at_most_log_n_and_blind_to_row_order(
    n: int, d: int, scale: float, seed: int, both_directions: bool
) -> None:
    x, y = embeddings(n, d, seed)
    value = float(infonce(x * scale, y, both_directions=both_directions))
    assert value <= math.log(n) + 1e-12
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = float(infonce(x[order] * scale, y[order], both_directions=both_directions))
    assert shuffled == pytest.approx(value, abs=1e-9 * max(1.0, abs(value)))


def test_a_perfect_critic_reaches_the_ceiling_and_an_offset_per_row_changes_nothing() -> None:
    assert float(infonce_from_scores(500 * torch.eye(7))) == pytest.approx(math.log(7), abs=1e-6)
    x, y = embeddings(7, 3)
    scores = x @ y.T
    shifted = scores + torch.arange(7.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(infonce_from_scores(shifted), infonce_from_scores(scores))


def test_influence_has_the_bound_as_mean_and_the_jackknife_as_spread() -> None:
    x, y = embeddings(400, 2)
    scores = 0.5 * x @ y.T
    for both in (False, True):
        terms = infonce_influence(lambda s, e: scores[s:e], 400, both_directions=both, strip=64)
        torch.testing.assert_close(terms.mean(), infonce_from_scores(scores, both_directions=both))
        left_out = []
        for k in range(400):
            keep = torch.arange(400) != k
            left_out.append(infonce_from_scores(scores[keep][:, keep], both_directions=both))
        jackknife = math.sqrt(399 / 400 * float((torch.stack(left_out) - torch.stack(left_out).mean()).square().sum()))
        influence = float(terms.std()) / math.sqrt(400)
        assert influence == pytest.approx(jackknife, rel=0.02)
        # The plain row terms ignore the shared negatives, which shows here.
        plain = scores.diagonal() - scores.logsumexp(dim=1)
        assert abs(float(plain.std()) / 20 / jackknife - 1) > 0.1


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-3)])
def test_half_inputs_and_autocast_stay_close_to_float64(dtype: torch.dtype, bar: float) -> None:
    x, y = embeddings(64, 16, dtype=torch.float32)
    x, y = (7 * x).to(dtype), y.to(dtype)  # scores up to about 100, given exactly
    exact = float(infonce(x.double(), y.double()))
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = infonce(x, y)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(exact, abs=bar)
    value.backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert bool(torch.isfinite(x.grad).all())


def test_nothing_of_size_n_by_n_is_kept() -> None:
    x, y = embeddings(3000, 2, dtype=torch.float32)
    x.requires_grad_()
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        infonce(x, y, both_directions=True).backward()
    assert max(sizes) <= 3000 * 2


def test_inputs_are_not_written_to() -> None:
    x, y = embeddings(5, 2)
    before = x.clone(), y.clone()
    infonce(x, y)
    infonce_from_scores(x @ y.T)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: infonce(torch.ones(1, 2), torch.ones(1, 2)), "1 pair of samples; a contrast needs at least 2"),
        (lambda: infonce(torch.ones(4, 2), torch.ones(4, 3)), "two equal"),
        (lambda: infonce(torch.ones(4, 2), torch.ones(3, 2)), "two equal"),
        (lambda: infonce(torch.ones(4, 2), torch.ones(4, 2), temperature=0.0), "must be positive"),
        (lambda: infonce(torch.ones(4, 2), torch.ones(4, 2), strip=0), "strip is 0; it must be at least 1"),
        (lambda: infonce_from_scores(torch.ones(4, 3)), "one score for every pair"),
        (lambda: infonce_influence(lambda s, e: torch.ones(e - s, 1), 1), "at least 2"),
    ],
)
def test_unusable_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
