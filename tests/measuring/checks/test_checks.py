"""The checks of the rows and of a value: each fires on the data it is for, and keeps quiet on honest ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import mikit
from mikit import InputError, Training, measure
from mikit.bench.distributions.suites import task_named, tasks_of
from mikit.core.measurement import Check
from mikit.estimators import KSG, GaussianMI, InfoNCE, WeightedKL
from mikit.measuring.checks import rows as sample_checks, second_readings as value_checks
from mikit.measuring.checks.values import data_processing
from mikit.measuring.subject import Subject, copula_reading, nearest_readings, normal_scores

TRAPS = [law.name for law in tasks_of("traps")]
FLAGGED_BY = {
    "duplicates-independent": "duplicated rows",
    "duplicates-dependent": "duplicated rows",
    "views-of-items": "rows apart",
    "deterministic": "noise between the sides",
    "copied-column": "well-posed",
    "misaligned-half": "rows in step",
    "scaling-turned": "one scale",
}
HONEST = [
    ("bmi", "1v1-normal-0.75"),
    ("bmi", "multinormal-dense-5-5-0.5"),
    ("bmi", "student-identity-2-2-1"),
    ("bmi", "spiral-multinormal-sparse-3-3-2-2.0"),
    ("bmi2", "2v1-waves-12-5.0-3.0"),
    ("bmi2", "3v1-concentric_gaussians-5"),
    ("own", "clusters-8"),
    ("own", "circles-3"),
    ("transfer", "gaussian-5-strong"),
    ("transfer", "additive-uniform-2"),
    ("networks", "8d-4-pairs-0.9-2-layers"),
    ("channel", "bits-1-kept-0.5"),
]


def _draw(suite: str, name: str, n: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = task_named(suite, name).draw(n, seed)
    return torch.from_numpy(x), torch.from_numpy(y)


def _pair(n: int, d: int, rho: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=generator, dtype=torch.float64)


def _scores(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return normal_scores(x), normal_scores(y)


def _relation(x: Tensor, y: Tensor) -> Check:
    return sample_checks.functional_relation(Subject(x, y))


def _of_rows(x: Tensor, y: Tensor) -> list[Check]:
    scores = _scores(x, y)
    return [
        sample_checks.misalignment(*scores),
        sample_checks.near_copies(*scores),
        sample_checks.functional_relation(Subject(x, y)),
        sample_checks.hidden_directions(0.0, x, y),
    ]


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize("estimator", ["gaussian", "ksg"])
def test_every_trap_is_flagged_refused_or_read_right(name: str, estimator: str) -> None:
    law = task_named("traps", name)
    try:
        measured = measure(*law.draw(2000, 0), estimator, permutations=1)
    except InputError:
        assert (name, estimator) == ("copied-column", "gaussian")
        return
    right = law.right_suffices and abs(measured.value - law.information) < 0.1
    assert measured.verdict != "trustworthy" or right
    if name in FLAGGED_BY:
        told = {check.name: check.outcome for check in measured.checks}
        assert told[FLAGGED_BY[name]] in ("warn", "fail")


@pytest.mark.parametrize(("suite", "name"), HONEST)
def test_honest_rows_pass(suite: str, name: str) -> None:
    for seed in range(2):
        for check in _of_rows(*_draw(suite, name, seed=seed)):
            assert check.outcome in ("pass", "not applicable"), check.sentence


@pytest.mark.parametrize("at", [0, 700, 1500])
@pytest.mark.parametrize("shift", [-2, 1, 3])
def test_a_shift_is_found_wherever_it_starts(at: int, shift: int) -> None:
    x, y = _pair(2000, 2, 0.7)
    moved = torch.cat([y[:at], torch.roll(y[at:], -shift, dims=0)])
    check = sample_checks.misalignment(*_scores(x, moved))
    assert check.outcome == "fail"
    assert f"shifted by {-shift:+d}" in check.sentence


def test_a_series_with_a_memory_is_not_taken_for_a_shift() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(4001, 2, generator=generator, dtype=torch.float64)
    x = noise[1:] + 0.9 * noise[:-1]
    y = 0.7 * x + torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    assert sample_checks.misalignment(*_scores(x, y)).outcome == "pass"


def test_shifted_labels_are_found() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, 2000)
    x = 2 * np.eye(4)[labels] + rng.standard_normal((2000, 4))
    moved = measure(x, labels=np.roll(labels, 1), permutations=0)
    assert any("shifted by -1" in reason or "shifted by +1" in reason for reason in moved.reasons)
    assert not any("shifted by" in reason for reason in measure(x, labels=labels, permutations=0).reasons)


@pytest.mark.parametrize("views", [3, 8, 30])
@pytest.mark.parametrize("varying", [False, True])
def test_views_of_items_are_found(views: int, varying: bool) -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(max(views // 2, 2), 2 * views, 3000) if varying else np.full(3000, views)
    items = np.repeat(np.arange(3000), sizes)[:3000]
    x, y = (rng.standard_normal((3000, 4))[items] + 0.03 * rng.standard_normal((3000, 4)) for _ in range(2))
    rows = rng.permutation(3000)
    assert sample_checks.near_copies(*_scores(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))).outcome == "fail"


def test_groups_answer_for_views() -> None:
    x, y = task_named("traps", "views-of-items").draw(2000, 0)
    items = np.random.default_rng(0).integers(0, 100, 2000)
    assert all(check.name != "rows apart" for check in measure(x, y, "gaussian", groups=items, permutations=0).checks)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_bent_function_without_noise_is_found(columns: int) -> None:
    x, _ = _pair(3000, columns, 0.0)
    y = torch.sin(2 * x) + 0.3 * x.square()
    found = _relation(x, y)
    assert found.outcome in ("warn", "fail")
    assert "mikit.noise_sweep" in found.sentence
    assert "labels=" in found.sentence
    assert "augmentations" in found.sentence
    noisy = y + 0.2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert _relation(x, noisy).outcome == "pass"


def test_classes_shown_as_vectors_are_no_function_without_noise() -> None:
    x, _ = _pair(2000, 3, 0.0)
    classes = torch.nn.functional.one_hot(x.argmax(dim=1)).double()
    assert _relation(x, classes).outcome == "not applicable"


def test_hidden_directions_are_named_only_where_the_value_lacks_them() -> None:
    x, y = _draw("traps", "scaling-turned")
    assert sample_checks.hidden_directions(0.0, x, y).outcome == "fail"
    assert sample_checks.hidden_directions(1.0, x, y).outcome == "pass"
    assert sample_checks.hidden_directions(0.0, *_pair(2000, 4, 0.8)).outcome == "pass"


def test_tails_set_the_gaussian_apart_from_its_copula() -> None:
    x, y = task_named("own", "clusters-8").draw(2000, 0)
    measured = measure(x, y, "gaussian", permutations=0)
    assert measured.value > 2, "the truth is 1.275"
    assert any("heavy tails, nonlinear dependence or clusters" in reason for reason in measured.reasons)
    for seed in range(20):
        x, y = _pair(1000, 3, 0.6, seed)
        nearest = nearest_readings(*_scores(x, y))
        copula = copula_reading(x, y)
        assert value_checks.tails(float(GaussianMI().estimate(x, y)), copula, nearest).outcome == "pass"


def test_one_wild_row_does_not_pass_for_information() -> None:
    x, y = _pair(1000, 2, 0.3)
    x[0], y[0] = 3e3, 3e3
    assert any("heavy tails" in reason for reason in measure(x, y, "gaussian", permutations=0).reasons)


def test_dependence_that_leaves_no_linear_trace_is_told() -> None:
    x, noise = _pair(2000, 1, 0.0)
    measured = measure(x, x.abs() + 0.3 * noise, "gaussian", permutations=0)
    assert measured.verdict == "unreliable"
    assert any("misses dependence" in reason for reason in measured.reasons)
    assert measure(x, noise, "gaussian", permutations=0).verdict == "trustworthy"


def test_ties_warn_only_those_whom_they_hurt() -> None:
    x, y = _draw("traps", "relu-atoms")
    assert sample_checks.ties(x, y, needs_density=True).outcome == "warn"
    assert sample_checks.ties(x, y, needs_density=False).outcome == "pass"
    share, value = sample_checks.largest_atom(x)
    assert value == 0.0
    assert share == pytest.approx(max((x[:, i] == 0).double().mean().item() for i in range(3)))
    assert sample_checks.largest_atom(torch.ones(50, 2)) == (0.0, 0.0)


def test_the_copula_is_no_floor_where_ties_raise_it() -> None:
    x, y = _draw("traps", "relu-atoms")
    assert value_checks.gaussian_floor(0.95, 0.02, Subject(x, y)).outcome == "not applicable"


def test_a_discrete_side_bounds_the_value() -> None:
    x = torch.arange(1000)[:, None] % 4
    y = x.double() + torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert value_checks.entropy_bound(math.log(4), 0.01, x.double(), y).outcome == "pass"
    assert value_checks.entropy_bound(math.log(4) + 0.2, 0.01, x.double(), y).outcome == "fail"
    assert value_checks.entropy_bound(math.log(4) + 0.2, 0.01, y, x.double()).outcome == "fail"
    assert value_checks.entropy_bound(9.0, 0.01, y, y).outcome == "not applicable"


@pytest.mark.parametrize("prototype", [GaussianMI(), GaussianMI(copula=True), KSG(), WeightedKL()])
def test_a_constant_says_nothing(prototype: mikit.Estimator) -> None:
    assert value_checks.negative_control(prototype, *_pair(400, 2, 0.5)).outcome in ("pass", "not applicable")


def test_an_instrument_that_reads_something_in_nothing_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KSG, "estimate", lambda self, x, y: torch.tensor(0.3))
    assert value_checks.negative_control(KSG(), *_pair(400, 2, 0.5)).outcome == "fail"


def test_too_few_candidates_are_told() -> None:
    x, y = _pair(640, 4, 0.98)
    x, y = x.float(), y.float()
    generator = torch.Generator().manual_seed(0)
    critic = InfoNCE.between(x, y, generator=generator)
    critic.fit(x[:400], y[:400], generator=generator, training=Training(steps=300, batch=200))
    critic.eval()
    found = value_checks.candidates(critic, x[400:], y[400:], float(critic.estimate(x[400:], y[400:])), 0.02)
    assert found is not None
    assert found.outcome == "fail"
    assert value_checks.candidates(GaussianMI(), x, y, 1.0, 0.1) is None


def test_candidates_are_asked_of_infonce_by_default() -> None:
    x, y = _pair(1500, 2, 0.6)
    measured = measure(x, y, "infonce", training=Training(steps=150, batch=256), permutations=0)
    assert next(check for check in measured.checks if check.name == "candidates enough").outcome == "pass"


def test_processing_cannot_add_information() -> None:
    errors = [0.02, 0.02, 0.02]
    assert data_processing([1.0, 0.8, 0.81], errors).outcome == "pass"
    grown = data_processing([1.0, 0.8, 1.2], errors)
    assert grown.outcome == "warn"
    assert "Layer 3 has 0.400 more than layer 2" in grown.sentence
    assert data_processing([1.0, 1.2], [0.2, None]).outcome == "pass", "within two combined errors"
    assert data_processing([0.5, 1.2], [0.01, 0.01], kind="V-information").outcome == "not applicable"
    assert data_processing([0.5], [0.01]).outcome == "not applicable"
    with pytest.raises(InputError, match="2 values and 1 standard errors"):
        data_processing([0.5, 0.4], [0.01])


def test_declared_noise_makes_a_function_measurable() -> None:
    x, _ = _pair(2000, 2, 0.0)
    measured = measure(x, 2 * x, "gaussian", noise=0.5, permutations=1)
    assert measured.noise == 0.5
    assert abs(measured.value - math.log(1 + 1 / 0.25)) < 4 * measured.standard_error
    assert mikit.Measurement.from_json(measured.to_json()) == measured
    assert "noise 0.5" in str(measured)
    assert measure(x, 2 * x, "gaussian", noise=0.5, permutations=1).value == measured.value
    with pytest.raises(InputError, match="three ways to proceed"):
        measure(x, 2 * x, "gaussian")
    with pytest.raises(InputError, match="noise is 0"):
        measure(x, x, "gaussian", noise=0)
    with pytest.raises(InputError, match="labels were given"):
        measure(x, labels=torch.arange(2000) % 2, noise=0.1)


def test_measurements_stored_before_noise_was_declared_are_read() -> None:
    stored = measure(*_pair(300, 1, 0.5), "gaussian", permutations=0).to_dict()
    del stored["noise"]
    assert mikit.Measurement.from_dict(stored).noise is None


def test_a_sweep_says_whether_every_size_agrees() -> None:
    x, other = _pair(1500, 2, 0.3)
    sweep = mikit.noise_sweep(x, torch.tanh(x), "ksg", permutations=1)
    assert sweep.holds
    assert [m.noise for m in sweep.measurements] == [0.1, 0.3, 1.0]
    values = [m.value for m in sweep.measurements]
    assert values == sorted(values, reverse=True)
    weaker = mikit.noise_sweep(x, torch.tanh(x) + 0.5 * other, "ksg", permutations=1)
    assert sweep.order_against(weaker).outcome == "pass"
    with pytest.raises(InputError, match="same noise levels"):
        sweep.order_against(mikit.noise_sweep(x, x.tanh(), "ksg", noises=(0.2, 0.3, 1.0), permutations=0))
    with pytest.raises(InputError, match="at least three"):
        mikit.noise_sweep(x, x, "ksg", noises=(0.1, 1.0))


def test_what_depends_on_the_noise_is_not_believed() -> None:
    x, y = _pair(1000, 1, 0.0)
    faint = mikit.noise_sweep(x, x + 3 * y, "gaussian", noises=(0.1, 1.0, 100.0), permutations=0)
    assert not faint.holds
    assert faint.finding.startswith("Noise-dependent")
    assert faint.verdict != "trustworthy"
