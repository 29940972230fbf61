"""Flow vectors: hand-computed matchings and divergences, all monotone paths by enumeration, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.functional import cka
from mikit.functional.flow.flow_vectors import (
    depth_matching,
    flow_divergence,
    flow_vector,
    monotone_matching,
    nearest_matching,
)


def vector(*values: float) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("student", "teacher", "nearest", "monotone"),
    [
        ((0.1, 0.5, 0.9), (0.1, 0.5, 0.9), (0, 1, 2), (0, 1, 2)),
        ((0.5, 0.1, 0.9), (0.0, 0.6, 1.0), (1, 0, 2), (0, 0, 2)),  # 0.25 + 0.01 against 0.01 + 0.25: the earlier
        ((0.7, 0.3, 0.2), (0.2, 0.7), (1, 0, 1), (1, 1, 1)),  # 0 + 0.16, against 0.25 + 0.01
        ((0.2,), (0.2, 0.9), (1,), (1,)),  # the last goes with the last
        ((0.4, 0.8), (0.5,), (0, 0), (0, 0)),
        ((0.5, 0.9), (0.4, 0.6, 1.0), (0, 2), (0, 2)),  # 0.1 either way: the first
    ],
)
def test_matchings_by_hand(
    student: tuple[float, ...], teacher: tuple[float, ...], nearest: tuple[int, ...], monotone: tuple[int, ...]
) -> None:
    # In hundredths, so that ties are exact.
    own, aim = (torch.tensor(one, dtype=torch.float64).mul(100).round() for one in (student, teacher))
    assert nearest_matching(own, aim) == nearest
    assert monotone_matching(own, aim) == monotone


@pytest.mark.parametrize("seed", range(20))
def test_no_monotone_path_is_better(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    own, aim = torch.rand(4, generator=g), torch.rand(5, generator=g)
    paths = [(*path, 4) for path in itertools.combinations_with_replacement(range(5), 3)]
    least = min(flow_divergence(own, aim, path).total for path in paths)
    found = monotone_matching(own, aim)
    assert list(found) == sorted(found)
    assert flow_divergence(own, aim, found).total == pytest.approx(least, rel=1e-12)
    assert flow_divergence(own, aim, nearest_matching(own, aim)).intermediate <= least


def test_divergence_by_hand() -> None:
    found = flow_divergence(vector(0.5, 0.25, 1.0), vector(0.0, 0.75), (1, 0, 1))
    assert found.intermediate == 0.0625 + 0.0625
    assert found.last == 0.0625
    assert found.total == 0.1875


def test_depths() -> None:
    assert depth_matching(4, 4) == (0, 1, 2, 3)
    assert depth_matching(3, 6) == (1, 3, 5)
    assert depth_matching(6, 3) == (0, 0, 1, 1, 2, 2)
    assert depth_matching(1, 5) == (4,)


def test_flow_is_the_alignment_with_the_labels() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    noise = torch.randn(90, 2, 3, 3, generator=g, dtype=torch.float64)
    signal = 4 * torch.eye(3, 7, dtype=torch.float64)[labels] + torch.randn(90, 7, generator=g, dtype=torch.float64)
    points = torch.eye(3, dtype=torch.float64)[labels]
    flow = flow_vector([noise, signal, points], 10 * labels + 5)
    assert abs(flow[0]) < 0.05 < flow[1] < flow[2]
    assert flow[2].item() == pytest.approx(1, abs=1e-9)
    # Any kernel with one value within classes and another between them gives the same alignment.
    wide = cka(signal, points, bandwidth_y=3.0, unbiased=True)
    assert flow[1].item() == pytest.approx(wide.item(), rel=1e-9)
    assert flow_vector([3 * signal + 1], labels).item() == pytest.approx(flow[1].item(), rel=1e-9)


def test_shuffled_labels_say_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=g)
    values = torch.stack([flow_vector([x], torch.randint(3, (60,), generator=g))[0] for _ in range(40)])
    assert abs(values.mean()) <= 4 * values.std() / 40**0.5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: flow_vector([], torch.zeros(3, dtype=torch.long)), "no layers"),
        (lambda: flow_vector([torch.zeros(5, 2)], torch.zeros(5)), "one class index per sample"),
        (lambda: flow_vector([torch.zeros(5, 2)], torch.zeros(5, dtype=torch.long)), "one class"),
        (lambda: flow_vector([torch.zeros(6, 2)], torch.arange(5)), "samples"),
        (lambda: nearest_matching(torch.zeros(2, 2), torch.zeros(2)), "student's flow has shape"),
        (lambda: monotone_matching(torch.zeros(2), vector(float("nan"))), "finite"),
        (lambda: flow_divergence(torch.zeros(2), torch.zeros(2), (0,)), "The matching is"),
        (lambda: flow_divergence(torch.zeros(2), torch.zeros(2), (0, 2)), "The matching is"),
        (lambda: depth_matching(0, 2), "0 student"),
    ],
)
def test_refusals(call: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()
