"""What is asked of every discrepancy: the teacher against itself, debiasing over splits, and the information beside."""

from __future__ import annotations

from typing import final

import numpy as np
import pytest
import torch
from torch import Tensor

import mikit
from mikit import (
    MMD,
    EnergyDistance,
    GaussianKL,
    GaussianWasserstein,
    SlicedWasserstein,
    Wasserstein,
)
from mikit.core.measurement import Measurement
from mikit.estimators.discrepancy import Discrepancy
from mikit.functional.transport.exact import wasserstein2
from mikit.measuring.checks import discrepancies
from mikit.measuring.subject import Subject


@final
class _Transport(Discrepancy):
    """The squared Wasserstein distance of a batch as it is: badly biased, without a standard error."""

    name = "transport"
    unit = "feature²"

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        return wasserstein2(x, y)


def _sample(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _outcomes(measured: Measurement) -> dict[str, str]:
    return {check.name: check.outcome for check in measured.checks}


@pytest.mark.parametrize("instrument", [MMD(), EnergyDistance(form="biased"), _Transport()])
def test_a_shuffled_teacher_is_at_no_distance_and_of_no_information(instrument: Discrepancy) -> None:
    teacher = _sample(300, 4, 0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    shuffled = mikit.measure(teacher[order], teacher, instrument, permutations=0)
    # The unbiased MMD of equal rows is what leaving their own kernels out makes: no more than 2 / n below 0.
    assert abs(shuffled.value) < (2 / 300 if instrument.unbiased else 1e-4)
    assert abs(shuffled.parts["information beside it"]) < 3 * shuffled.parts["information beside it, standard error"]
    assert shuffled.finding == "No difference between the two distributions was detected."
    assert _outcomes(shuffled)[discrepancies.ABOVE_OWN] == "warn"
    assert _outcomes(shuffled)[discrepancies.BOTH_AXES] == "warn"
    assert shuffled.verdict == "caution"
    printed = str(shuffled)
    assert "Information beside it: " in printed
    assert "the teacher against itself: " in printed
    assert "as if the samples were shuffled" in printed


def test_a_student_that_knows_and_differs_passes_both() -> None:
    teacher = _sample(400, 4, 2)
    student = 0.6 * teacher + 0.3 * _sample(400, 4, 3)
    measured = mikit.measure(student, teacher, _Transport(), permutations=0)
    assert _outcomes(measured)[discrepancies.ABOVE_OWN] == "pass"
    assert _outcomes(measured)[discrepancies.BOTH_AXES] == "pass"
    assert measured.finding == "The two distributions differ."
    truth = 4 * (-0.5 * np.log(1 - 0.8))
    error = measured.parts["information beside it, standard error"]
    assert abs(measured.parts["information beside it"] - truth) < 4 * error  # the copula's scores lag a little
    assert Measurement.from_json(measured.to_json()).finding == measured.finding


@pytest.mark.parametrize(
    "instrument",
    [
        MMD(),
        EnergyDistance(),
        EnergyDistance(form="biased"),
        Wasserstein(),
        Wasserstein(1, squared=False),
        SlicedWasserstein(32),
        GaussianWasserstein(),
        GaussianKL(),
    ],
    ids=lambda instrument: instrument.describe(),
)
def test_two_samples_of_one_law_are_rarely_declared_apart(instrument: Discrepancy) -> None:
    apart = 0
    for seed in range(100):
        halves = discrepancies.halves_apart(
            instrument, Subject(_sample(100, 4, 2 * seed), _sample(100, 4, 2 * seed + 1), seed=seed)
        )
        assert halves is not None
        apart += halves.clear
    # 100 tests at 5 % give more than 10 only once in a hundred times.
    assert apart <= 10


def test_a_shift_of_a_third_is_declared_apart() -> None:
    apart = 0
    for seed in range(20):
        x, y = _sample(200, 4, 2 * seed), _sample(200, 4, 2 * seed + 1) + 1 / 3
        halves = discrepancies.halves_apart(MMD(), Subject(x, y, seed=seed))
        assert halves is not None
        apart += halves.clear
    assert apart >= 18


def test_debiasing_takes_away_what_a_batch_adds() -> None:
    biased, debiased = [], []
    for seed in range(12):
        x, y = _sample(128, 16, 2 * seed), _sample(128, 16, 2 * seed + 1)
        measured = mikit.measure(x, y, _Transport(), permutations=0)
        biased.append(measured.value)
        debiased.append(measured.parts["debiased"])
        assert measured.standard_error is None
        assert _outcomes(measured)["sampling error"] == "not applicable"
        assert measured.parts["debiased, standard error over splits"] > 0
    assert 13 < np.mean(biased) < 16  # two samples of one law in 16 columns, 128 rows: about 14.5
    error = np.std(debiased, ddof=1) / np.sqrt(12)
    assert abs(np.mean(debiased)) < 3 * error < 0.1 * np.mean(biased)


def test_like_is_compared_with_like() -> None:
    x, y = _sample(60, 3, 4), _sample(201, 3, 5)
    halves = discrepancies.halves_apart(_Transport(), Subject(x, y))
    assert halves is not None
    assert halves.rows == 30
    assert len(halves.teacher) == len(halves.across) == 8
    measured = mikit.measure(x, y, _Transport(), permutations=0)
    assert "information beside it" not in measured.parts
    assert _outcomes(measured)[discrepancies.BOTH_AXES] == "not applicable"
    for part, figures in (
        ("teacher against itself", halves.teacher),
        ("student against itself", halves.student),
        ("student against teacher, at that size", halves.across),
    ):
        assert measured.parts[part] == pytest.approx(np.mean(figures))
    unbiased = mikit.measure(x, y, "mmd", permutations=0)
    assert "debiased" not in unbiased.parts
    assert "teacher against itself" in unbiased.parts


def test_all_halves_share_the_bandwidth_of_the_whole() -> None:
    x, y = _sample(80, 3, 14), _sample(80, 3, 15) * 2
    settled = MMD(factors=(0.5, 2.0)).settled(x, y)
    whole = MMD(factors=(0.5, 2.0)).estimate(x, y).item()
    assert settled.estimate(x, y).item() == pytest.approx(whole, rel=1e-5)
    assert settled.settled(x[:9], y[:9]) is settled
    found, fixed = (discrepancies.halves_apart(one, Subject(x, y)) for one in (MMD(factors=(0.5, 2.0)), settled))
    assert found == fixed


def test_groups_stay_in_one_half() -> None:
    teacher = _sample(40, 3, 6).repeat_interleave(5, 0)
    groups = torch.arange(40).repeat_interleave(5)
    alone = discrepancies.halves_apart(_Transport(), Subject(teacher + 0.0, teacher))
    grouped = discrepancies.halves_apart(_Transport(), Subject(teacher + 0.0, teacher, groups))
    assert alone is not None
    assert grouped is not None
    # Copies of one item in both halves bring them together.
    assert np.mean(alone.teacher) < 0.7 * np.mean(grouped.teacher)
    assert (
        discrepancies.halves_apart(_Transport(), Subject(teacher, teacher, torch.zeros(200, dtype=torch.long))) is None
    )


def test_many_columns_are_read_held_out() -> None:
    teacher = _sample(150, 60, 7)
    student = teacher + 0.5 * _sample(150, 60, 8)
    knows = discrepancies.information_beside(Subject(student, teacher))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(9))
    shuffled = discrepancies.information_beside(Subject(teacher[order], teacher))
    assert knows is not None
    assert shuffled is not None
    assert knows.held_out
    assert knows.detected
    assert not shuffled.detected
    same = discrepancies.information_beside(Subject(teacher[:, :3], teacher[:, :3]))
    assert same is not None  # infinite for the copula; shrunk and held out it is a large number
    assert same.held_out
    assert same.value > 1
    assert discrepancies.information_beside(Subject(teacher[:10], teacher[:10])) is None


def test_too_few_rows_say_so() -> None:
    x, y = _sample(6, 2, 10), _sample(6, 2, 11)
    measured = mikit.measure(x, y, _Transport(), permutations=0)
    assert _outcomes(measured)[discrepancies.ABOVE_OWN] == "not applicable"
    assert _outcomes(measured)["sampling error"] == "warn"
    assert measured.finding == "The sampling error is unknown, so there is no conclusion."


def test_information_has_no_such_checks() -> None:
    x, y = _sample(200, 2, 12), _sample(200, 2, 13)
    measured = mikit.measure(x, y, "gaussian", permutations=0)
    assert not {discrepancies.ABOVE_OWN, discrepancies.BOTH_AXES} & set(_outcomes(measured))
    assert not measured.parts


def test_what_compares_partners_is_not_put_to_halves_of_other_inputs() -> None:
    x, y = torch.randn(2, 120, 4, generator=torch.Generator().manual_seed(31))
    measured = mikit.measure(x, x + 0.5 * y, mikit.PKT, permutations=1)
    outcome = next(check.outcome for check in measured.checks if check.name == "above the teacher's own")
    assert outcome == "not applicable"
    assert "teacher against itself" not in measured.parts
