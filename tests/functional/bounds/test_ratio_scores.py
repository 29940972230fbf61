"""Ratio objectives for any critic: from given scores, and each sample's influence, against loops and the jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional import anchored_infonce, dv, jsd, nwj, smile
from mikit.functional.bounds.infonce_scores import anchored_infonce_from_scores
from mikit.functional.bounds.ratio_scores import (
    dv_from_scores,
    dv_influence,
    jsd_from_scores,
    log_mean_ratios,
    nwj_from_scores,
    nwj_influence,
    smile_from_scores,
    smile_influence,
)

FROM_SCORES = {
    jsd: jsd_from_scores,
    nwj: nwj_from_scores,
    dv: dv_from_scores,
    smile: smile_from_scores,
    anchored_infonce: anchored_infonce_from_scores,
}
INFLUENCE = {nwj_influence: nwj_from_scores, dv_influence: dv_from_scores, smile_influence: smile_from_scores}


def embeddings(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return x, 0.5 * x + 0.5 * torch.randn(n, 3, generator=g, dtype=torch.float64)


def rows_of(scores: Tensor) -> Callable[[int, int], Tensor]:
    return lambda start, stop: scores[start:stop].clone()


@pytest.mark.parametrize("n", [3, 4, 17])
@pytest.mark.parametrize("streamed", FROM_SCORES)
def test_scores_and_embeddings_give_the_same(streamed: Callable[..., Tensor], n: int) -> None:
    x, y = embeddings(n)
    option = {smile: {"clip": 0.7}, anchored_infonce: {"anchor": 2.5}}.get(streamed, {})
    scores = (x @ y.T).requires_grad_()
    value = FROM_SCORES[streamed](scores, **option)
    torch.testing.assert_close(value.detach(), streamed(x, y, **option), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda s: FROM_SCORES[streamed](s, **option), (scores,))


@pytest.mark.parametrize("strip", [1, 3, 8, 50])
@pytest.mark.parametrize("clip", [None, 0.4])
def test_both_roles_of_a_sample_equal_the_loop(strip: int, clip: float | None) -> None:
    x, y = embeddings(8)
    scores = x @ y.T
    positives, of_rows, of_columns = log_mean_ratios(rows_of(scores), 8, clip=clip, strip=strip)
    clipped = scores.tolist() if clip is None else scores.clamp(-clip, clip).tolist()
    for k in range(8):
        row = sum(math.exp(clipped[k][j]) for j in range(8) if j != k) / 7
        column = sum(math.exp(clipped[i][k]) for i in range(8) if i != k) / 7
        assert float(positives[k]) == float(scores[k, k])
        assert float(of_rows[k]) == pytest.approx(math.log(row), abs=1e-12)
        assert float(of_columns[k]) == pytest.approx(math.log(column), abs=1e-12)


@pytest.mark.parametrize("influence", INFLUENCE)
def test_influence_has_the_value_as_mean_and_the_jackknife_as_spread(influence: Callable[..., Tensor]) -> None:
    n = 300
    x, y = embeddings(n)
    scores, value_of = x @ y.T, INFLUENCE[influence]
    terms = influence(rows_of(scores), n, strip=70)
    torch.testing.assert_close(terms.mean(), value_of(scores), atol=1e-10, rtol=0)
    left_out = []
    for k in range(n):
        keep = torch.arange(n) != k
        left_out.append(value_of(scores[keep][:, keep]))
    values = torch.stack(left_out)
    jackknife = math.sqrt((n - 1) / n * float((values - values.mean()).square().sum()))
    # The two differ by terms of order 1/n.
    assert float(terms.std()) / math.sqrt(n) == pytest.approx(jackknife, rel=0.03)


def test_float32_scores_far_beyond_the_range_of_exp() -> None:
    scores = torch.full((40, 40), 300.0)
    scores[0] = -300.0
    assert bool(nwj_influence(rows_of(scores), 40).isfinite().all())
    assert bool(dv_influence(rows_of(10 * scores), 40).isfinite().all())
    assert bool(smile_influence(rows_of(10 * scores), 40).isfinite().all())
    assert bool((nwj_influence(rows_of(10 * scores), 40) == -math.inf).all())
    wide = (10 * scores).requires_grad_()
    for value_of in (jsd_from_scores, dv_from_scores, smile_from_scores, anchored_infonce_from_scores):
        value = value_of(wide)
        assert bool(value.isfinite())
        assert bool(torch.autograd.grad(value, wide)[0].isfinite().all())


def test_scores_are_left_alone_where_they_are_given_whole() -> None:
    x, y = embeddings(6)
    scores = x @ y.T
    before = scores.clone()
    for value_of in FROM_SCORES.values():
        value_of(scores)
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jsd_from_scores(torch.ones(4, 3)), "one score for every pair"),
        (lambda: nwj_from_scores(torch.ones(1, 1)), "at least 2"),
        (lambda: dv_from_scores(torch.ones(4)), "one score for every pair"),
        (lambda: smile_from_scores(torch.ones(4, 4), clip=0.0), "clip is 0.0"),
        (lambda: smile_influence(rows_of(torch.ones(4, 4)), 4, clip=-1.0), "clip is -1.0"),
        (lambda: anchored_infonce_from_scores(torch.ones(2, 2)), "at least 3"),
        (lambda: anchored_infonce_from_scores(torch.ones(4, 4), anchor=0.0), "anchor is 0"),
        (lambda: dv_influence(rows_of(torch.ones(1, 1)), 1), "at least 2"),
    ],
)
def test_unusable_scores_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
