"""measure: joins, splits, fits a fresh copy, reports on other rows, checks, and refuses what cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mikit
from mikit import InputError, Training, measure

QUICK = Training(steps=100, batch=128, every=20, patience=3)


def _pair(n: int, d: int, nats: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rho = math.sqrt(1 - math.exp(-2 * nats / d))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((n, d))


def test_a_gaussian_pair_is_measured_and_believed() -> None:
    x, y = _pair(10_000, 5, 2.0)
    measured = measure(x, y, "gaussian")
    assert abs(measured.value - 2.0) < 0.05
    assert measured.interval[0] < 2.0 < measured.interval[1]
    assert measured.verdict == "trustworthy"
    assert measured.sizes == {"fit": 0, "select": 0, "report": 10_000, "d_x": 5, "d_y": 5}


@pytest.mark.usefixtures("short_critic_training")
@pytest.mark.parametrize(("estimator", "n"), [("gaussian", 1500), ("auto", 200), ("ksg", 1500)])
def test_independent_data_claim_nothing(estimator: str, n: int) -> None:
    rng = np.random.default_rng(1)
    measured = measure(rng.standard_normal((n, 2)), rng.standard_normal((n, 2)), estimator)
    assert measured.interval[0] <= 0 <= measured.interval[1]
    assert measured.finding.startswith("No information was detected")


def test_the_parts_are_disjoint_and_add_up() -> None:
    x, y = _pair(500, 3, 1.0)
    measured = measure(x, y, "infonce", training=QUICK)
    assert (measured.sizes["fit"], measured.sizes["select"], measured.sizes["report"]) == (300, 100, 100)
    every_row = measure(x, y, "infonce", training=QUICK, rotations=5)
    assert every_row.sizes["report"] == 500
    assert every_row.standard_error < measured.standard_error


def test_the_instrument_passed_in_is_not_fitted() -> None:
    x, y = _pair(400, 3, 1.0)
    instrument = mikit.VID.between(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    before = {name: value.clone() for name, value in instrument.state_dict().items()}
    measure(x, y, instrument, training=QUICK)
    assert all(torch.equal(value, before[name]) for name, value in instrument.state_dict().items())


def test_rows_are_joined_by_id() -> None:
    x, y = _pair(800, 3, 1.5)
    ids = np.array([f"image-{i:04d}" for i in range(800)])
    order = np.random.default_rng(2).permutation(800)
    straight = measure(x, y, "gaussian")
    stored = SimpleNamespace(values=y[order], ids=ids[order])
    joined = measure(SimpleNamespace(values=x, ids=ids), stored, "gaussian")
    assert joined.value == straight.value
    assert joined.data_hash == straight.data_hash
    assert measure(x, y[order], "gaussian", x_ids=ids, y_ids=ids[order]).value == straight.value
    without = SimpleNamespace(values=y[order], ids=None)
    assert measure(x, without, "gaussian", x_ids=ids, y_ids=ids[order]).value == straight.value
    with pytest.raises(InputError, match="y carries its own sample ids"):
        measure(x, stored, "gaussian", x_ids=ids, y_ids=ids[order])
    with pytest.raises(InputError, match="1 of the 800 sample ids of x are not in y"):
        measure(x, y[1:], "gaussian", x_ids=ids, y_ids=ids[1:])


def test_mismatched_rows_are_never_truncated() -> None:
    x, y = _pair(100, 2, 1.0)
    with pytest.raises(InputError, match="x has 100 samples and y has 99"):
        measure(x, y[:-1], "gaussian")


def test_duplicated_rows_warn_and_groups_silence_them() -> None:
    x, y = _pair(200, 2, 1.0)
    doubled_x, doubled_y = np.concatenate([x, x]), np.concatenate([y, y])
    groups = np.tile(np.arange(200), 2)
    naive = measure(doubled_x, doubled_y, "gaussian")
    assert naive.verdict == "caution"
    assert "repeat another one" in " ".join(naive.reasons)
    grouped = measure(doubled_x, doubled_y, "gaussian", groups=groups)
    assert grouped.standard_error == pytest.approx(naive.standard_error * math.sqrt(2), rel=0.02)
    assert not any("repeat another one" in reason for reason in grouped.reasons)


def test_pseudo_replicates_are_unmasked_by_permuting_groups() -> None:
    rng = np.random.default_rng(3)
    items_x, items_y = rng.standard_normal((40, 2)), rng.standard_normal((40, 2))
    groups = np.repeat(np.arange(40), 20)
    x = items_x[groups] + 0.05 * rng.standard_normal((800, 2))
    y = items_y[groups] + 0.05 * rng.standard_normal((800, 2))
    by_row = measure(x, y, "ksg")
    assert by_row.value > 1.0
    assert by_row.value > max(by_row.null.values) + 1.0, "permuting rows looks overwhelmingly significant"
    by_item = measure(x, y, "ksg", groups=groups)
    assert by_item.verdict == "unreliable"
    assert max(by_item.null.values) > 0.5 * by_item.value


def test_copies_across_the_split_are_leakage() -> None:
    x, y = _pair(300, 2, 1.0)
    measured = measure(np.tile(x, (3, 1)), np.tile(y, (3, 1)), "infonce", training=QUICK)
    leak = next(check for check in measured.checks if check.name == "leakage")
    assert leak.outcome == "fail"
    apart = measure(
        np.tile(x, (3, 1)), np.tile(y, (3, 1)), "infonce", training=QUICK, groups=np.tile(np.arange(300), 3)
    )
    assert next(check for check in apart.checks if check.name == "leakage").outcome == "pass"


def test_a_saturated_value_is_not_believed() -> None:
    x, y = _pair(600, 4, 12.0)
    measured = measure(x, y, "infonce", training=Training(steps=300, batch=128))
    assert measured.value <= measured.ceiling
    assert next(check for check in measured.checks if check.name == "saturation").outcome in ("warn", "fail")
    assert measured.verdict == "unreliable" or measured.verdict == "caution"


def test_constant_columns_warn_and_add_nothing() -> None:
    x, y = _pair(500, 3, 1.0)
    with_dead = np.concatenate([x, np.full((500, 2), 4.0)], axis=1)
    measured = measure(with_dead, y, "gaussian")
    assert measured.value == pytest.approx(measure(x, y, "gaussian").value, abs=1e-9)
    assert any("Constant features: 2 in x, 0 in y" in reason for reason in measured.reasons)


def test_an_exact_relation_is_unreliable_or_refused() -> None:
    x, _ = _pair(500, 3, 1.0)
    y = x @ np.random.default_rng(0).standard_normal((3, 3))
    with pytest.raises(InputError, match="infinite"):
        measure(x, y, "gaussian")
    assert measure(x, y, "ksg").verdict == "unreliable"


@pytest.mark.usefixtures("short_critic_training")
@pytest.mark.parametrize("estimator", ["gaussian", "auto", "ksg", "vid", "infonce"])
def test_the_scale_of_a_column_does_not_matter(estimator: str) -> None:
    x, y = _pair(200 if estimator == "auto" else 1200, 2, 1.0)
    scaled = x * np.array([1000.0, 1.0])
    one = measure(x, y, estimator, permutations=0, training=QUICK)
    other = measure(scaled, y, estimator, permutations=0, training=QUICK)
    assert abs(one.value - other.value) < one.interval[1] - one.value


def test_labels_are_explained_by_name_or_keyword() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 900)
    x = rng.standard_normal((900, 4)) + 1.5 * np.eye(4)[labels]
    measured = measure(x, labels=labels)
    assert measured.kind == "V-information"
    assert 0.3 < measured.value < math.log(3)
    assert measure(x, labels, "label_information").value == measured.value
    with pytest.raises(InputError, match='"gaussian" explains vectors'):
        measure(x, estimator="gaussian", labels=labels)
    with pytest.raises(InputError, match="either y"):
        measure(x, labels, labels=labels)
    with pytest.raises(InputError, match="either y"):
        measure(x)


def test_discrepancies_get_a_two_sample_null() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 3))
    different = measure(x, x[:300] + 1.0, "mmd")
    assert different.finding == "The two distributions differ."
    same = measure(x, rng.standard_normal((300, 3)), "mmd")
    assert same.finding.startswith("No difference")
    assert abs(same.null.mean) < 3 * same.standard_error


def test_the_global_generators_are_left_alone() -> None:
    x, y = _pair(300, 2, 1.0)
    state = torch.random.get_rng_state()
    measure(x, y, "infonce", training=QUICK)
    assert torch.equal(state, torch.random.get_rng_state())


def test_memory_maps_tensors_and_half_precision_agree(tmp_path: Path) -> None:
    x, y = _pair(500, 3, 1.0)
    np.save(tmp_path / "x.npy", x)
    reference = measure(x, y, "gaussian").value
    assert measure(np.load(tmp_path / "x.npy", mmap_mode="r"), torch.from_numpy(y), "gaussian").value == reference
    assert measure(x.astype(np.float16), y, "gaussian").value == pytest.approx(reference, abs=1e-2)
    whole = np.round(10 * x).astype(np.int32)
    assert measure(whole, y, "gaussian").value == measure(whole.astype(float), y, "gaussian").value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"estimator": "kgs"}, 'no estimator "kgs"'),
        ({"folds": 2}, "folds is 2"),
        ({"rotations": 9}, "rotations is 9"),
        ({"permutations": -1}, "permutations is -1"),
        ({"groups": [0, 1]}, "groups has 2 entries"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], said: str) -> None:
    x, y = _pair(50, 2, 1.0)
    with pytest.raises(InputError, match=said):
        measure(x, y, **{"estimator": "gaussian", **arguments})


def test_a_handful_of_rows_is_refused_with_the_number_needed() -> None:
    x, y = _pair(12, 5, 1.0)
    with pytest.raises(InputError, match=r"There are 12 samples\..*5 folds need at least 20 samples"):
        measure(x, y)
    with pytest.raises(InputError, match="11 samples, but GaussianMI needs at least 12"):
        measure(x[:11], y[:11], "gaussian")


def test_images_are_refused_where_rows_are_read() -> None:
    with pytest.raises(InputError, match=r"x has shape \(20, 3, 4, 4\), but GaussianMI takes \(n, d\)"):
        measure(np.ones((20, 3, 4, 4)), np.ones((20, 2)), "gaussian")


def test_auto_says_what_it_chose_and_why() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2000, 1))
    bent = measure(x, np.abs(x) + 0.3 * rng.standard_normal((2000, 1)))
    assert bent.estimator.startswith("KSG")
    assert "not Gaussian" in bent.chosen
    few = measure(rng.standard_normal((60, 10)), rng.standard_normal((60, 10)))
    assert "shrinkage='ledoit-wolf'" in few.estimator
    assert "fewer than 5 for each" in few.chosen


@pytest.mark.parametrize(("n", "d"), [(300, 2), pytest.param(3000, 4, marks=pytest.mark.slow)])
def test_auto_finds_dependence_that_no_correlation_shows(n: int, d: int) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((n, d))
    measured = measure(x, np.abs(x) + 0.3 * rng.standard_normal((n, d)), permutations=0)
    assert measured.estimator.startswith("CopulaCritic")
    assert "critic adds" in measured.chosen
    assert measured.value > 1.0
    assert measured.value < 0.760 * d + 0.2, "0.760 nats a column by quadrature"


def test_correlated_teacher_channels_are_not_believed() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2000, 1))
    y = np.repeat(0.8 * x + 0.6 * rng.standard_normal((2000, 1)), 20, axis=1) + 0.3 * rng.standard_normal((2000, 20))
    measured = measure(x, y, "vid", permutations=0)
    assert measured.value > 5, "the truth is about 0.5 nats"
    assert measured.verdict == "unreliable"
    assert "counted as if independent" in " ".join(measured.reasons)


@pytest.mark.usefixtures("short_critic_training")
def test_neighbours_that_cannot_see_the_value_are_not_believed() -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((300, 2))
    y = np.stack([x[:, 0] + 1e-3 * rng.standard_normal(300), rng.standard_normal(300)], axis=1)
    assert measure(x, y, "ksg", permutations=0).verdict == "unreliable"
    measured = measure(x, y, permutations=0)
    copula = measure(x, y, mikit.GaussianMI(copula=True), permutations=0)
    assert measured.value == pytest.approx(copula.value, abs=1e-9), "the copula cannot exceed the truth"
    assert "neighbours" not in measured.chosen


def test_a_value_below_the_gaussian_copula_is_not_believed() -> None:
    rng = np.random.default_rng(10)
    x = rng.standard_normal((2000, 2))
    measured = measure(np.exp(3 * x), x + 0.5 * rng.standard_normal((2000, 2)), "ksg", permutations=0)
    assert any("usually not above the truth" in reason for reason in measured.reasons)
    assert measured.verdict == "unreliable"


def test_the_positive_control_does_not_toss_a_coin() -> None:
    outcomes = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((60, 1))
        measured = measure(x, 0.9 * x + 0.4 * rng.standard_normal((60, 1)), "gaussian", permutations=0, seed=seed)
        outcomes.append(next(check.outcome for check in measured.checks if check.name == "positive control"))
    assert outcomes.count("pass") >= 9


@pytest.mark.usefixtures("short_critic_training")
def test_auto_heeds_groups_when_it_chooses() -> None:
    rng = np.random.default_rng(11)
    groups = np.repeat(np.arange(60), 10)
    x = rng.standard_normal((60, 2))[groups] + 0.05 * rng.standard_normal((600, 2))
    y = rng.standard_normal((60, 2))[groups] + 0.05 * rng.standard_normal((600, 2))
    measured = measure(x, y, groups=groups, permutations=0)
    assert measured.estimator.startswith("CopulaCritic")
    assert "a critic adds nothing" in measured.chosen, "it would learn copies by heart, had they come on both sides"
    assert measured.interval[0] <= 0 <= measured.interval[1]


def test_few_independent_groups_widen_the_interval_and_warn() -> None:
    x, y = _pair(300, 2, 1.0)
    groups = np.repeat(np.arange(10), 30)
    measured = measure(x, y, "vid", groups=groups, permutations=0)
    assert measured.verdict == "unreliable"
    reach = (measured.interval[1] - measured.interval[0]) / 2
    assert reach == pytest.approx(12.706 * measured.standard_error, rel=1e-3), "two groups report: t with 1 degree"


def test_ids_are_checked_even_on_one_side() -> None:
    x, y = _pair(300, 2, 1.0)
    with pytest.raises(InputError, match=r"ids of x have shape \(5,\), but it has 300 samples"):
        measure(x, y, "gaussian", x_ids=np.arange(5))
    with pytest.raises(InputError, match="occurs 300 times in x"):
        measure(x, y, "gaussian", x_ids=np.zeros(300))
    one_sided = measure(x, y, "gaussian", x_ids=np.arange(300), permutations=0)
    assert any("paired by position" in reason for reason in one_sided.reasons)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e20, 1e-25])
def test_the_scale_of_the_data_does_not_matter_to_the_gaussian(scale: float) -> None:
    x, y = _pair(500, 3, 1.0)
    assert measure(x * scale, y, "gaussian", permutations=0).value == pytest.approx(
        measure(x, y, "gaussian", permutations=0).value, rel=1e-6
    )
    with pytest.raises(InputError, match="float32 cannot square"):
        measure(x * scale, y, "vid", permutations=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"estimator": 3}, "estimator is 3"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"x": np.ma.masked_array(np.ones((50, 2)), mask=np.eye(50, 2))}, "2 masked entries"),
        ({"x": torch.eye(50, 2).to_sparse()}, "sparse"),
        ({"y": None, "labels": np.zeros(50), "estimator": "auto"}, "single class"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: dict[str, object], said: str) -> None:
    x, y = _pair(50, 2, 1.0)
    with pytest.raises(InputError, match=said):
        measure(**{"x": x, "y": y, "estimator": "gaussian", **arguments})


def test_more_than_the_rows_can_show_rests_on_the_model() -> None:
    x, y = _pair(1000, 20, 24.0)
    measured = measure(x, y, "gaussian", permutations=0)
    assert abs(measured.value - 24.0) < 1.0
    assert measured.verdict == "caution"
    assert any("above log N = 6.91" in reason for reason in measured.reasons)
    assert measure(*_pair(1000, 20, 6.0), "gaussian", permutations=0).verdict == "trustworthy"
