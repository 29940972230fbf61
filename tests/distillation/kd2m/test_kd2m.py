"""KD²M: naive sums over classes, the weight's meaning, gradients, labels, queue, state, mixed precision, compiler."""

from __future__ import annotations

import copy
import math
import statistics
from collections import deque
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Tensor, nn

import mikit
from mikit.core.errors import InputError
from mikit.distillation import DistillationTerm, FeatureQueue, TrainingPlan, example_features, train_student
from mikit.distillation.kd2m.classes import fewest_rows
from mikit.distillation.kd2m.scale import MatchedProjection
from mikit.estimators import REGISTRY
from mikit.estimators.discrepancy import Discrepancy
from mikit.functional import mmd2, wasserstein2
from mikit.models import ResNet8
from mikit.testing import check_estimator

METRICS = [
    "mmd",
    "energy",
    "wasserstein",
    "sliced_wasserstein",
    "sinkhorn_divergence",
    "gaussian_wasserstein",
    "gaussian_kl",
]
FORMS = [None, "class", "joint"]


@final
class MeanGap(Discrepancy):
    """Squared distance of the means: closed forms for everything around it."""

    name = "mean_gap"
    unit = "feature²"
    weighted = True

    def between_laws(
        self, x: Tensor, y: Tensor, *, weights_x: Tensor | None = None, weights_y: Tensor | None = None
    ) -> Tensor:
        def mean(rows: Tensor, weights: Tensor | None) -> Tensor:
            return rows.mean(0) if weights is None else (rows * (weights / weights.sum()).to(rows)[:, None]).sum(0)

        return (mean(x, weights_x) - mean(y, weights_y)).square().sum()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 96, d: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and labels of one width, with class means in both."""
    g = seeded(seed)
    labels = torch.arange(n) % classes
    means = 2 * torch.randn(classes, d, generator=g)
    teacher = means[labels] + torch.randn(n, d, generator=g)
    student = 0.5 * teacher + torch.randn(n, d, generator=g) + 1
    return student, teacher, labels


def plain(metric: Discrepancy | str, **settings: object) -> mikit.KD2M:
    """A loss on raw features."""
    return mikit.KD2M(metric, scale=None, **settings)


class TestForms:
    def test_marginal_is_the_metric_on_the_teachers_scale(self) -> None:
        x, y, labels = batch()
        kd = mikit.KD2M.between(x, y, metric=mikit.MMD(bandwidth=0.7), scale="spread")
        spread = (y - y.mean(0)).square().sum(1).mean().sqrt()
        expected = mmd2((x - y.mean(0)) / spread, (y - y.mean(0)) / spread, bandwidth=0.7)
        assert kd(x, y).item() == pytest.approx(expected.item(), rel=1e-5)
        assert kd(x, y, labels=labels).item() == kd(x, y).item()

    @pytest.mark.parametrize(
        "metric", [mikit.MMD(bandwidth=2.0), mikit.Wasserstein(), MeanGap(), mikit.SinkhornDivergence()], ids=repr
    )
    def test_by_class_is_the_naive_sum(self, metric: Discrepancy) -> None:
        x, y, _ = batch()
        labels = torch.randint(5, (96,), generator=seeded(3))
        expected = sum(
            (labels == c).double().mean() * metric.estimate(x[labels == c], y[labels == c]).double()
            for c in labels.unique()
        )
        kd = plain(metric, conditional="class", queue=0)
        assert kd(x, y, labels=labels).item() == pytest.approx(float(expected), rel=1e-5)
        order = torch.randperm(96, generator=seeded(4))
        assert kd(x[order], y[order], labels=labels[order]).item() == pytest.approx(float(expected), rel=1e-5)

    def test_a_prior_counts_instead_of_the_batch(self) -> None:
        x, y, labels = batch(classes=3)
        prior = [0.2, 0.7, 0.1, 5.0]  # the last class is not in the batch: the others are scaled up
        gaps = [(x[labels == c].mean(0) - y[labels == c].mean(0)).square().sum().item() for c in range(3)]
        expected = sum(p * gap for p, gap in zip(prior, gaps, strict=False))
        kd = plain(MeanGap(), conditional="class", queue=0, prior=prior)
        assert kd(x, y, labels=labels).item() == pytest.approx(expected, rel=1e-5)

    def test_joint_is_the_metric_of_features_and_labels(self) -> None:
        x, y, labels = batch()
        kd = plain(mikit.Wasserstein(), conditional="joint", label_weight=3.0)
        points = 3.0**0.5 * torch.eye(4)[labels]
        expected = wasserstein2(torch.cat([x, points], 1), torch.cat([y, points], 1))
        assert kd(x, y, labels=labels).item() == pytest.approx(expected.item(), rel=1e-5)
        marginal = plain(mikit.Wasserstein())(x, y)
        assert kd(x, y, labels=labels).item() > marginal.item()

    def test_the_label_weight_is_a_ratio_of_mean_costs(self) -> None:
        x, y, labels = batch(n=24)
        kd = mikit.KD2M.between(x, y, conditional="joint", labels=labels, scale="spread")
        points = torch.eye(4)[labels]
        off = ~torch.eye(24, dtype=torch.bool)
        rows = kd.teacher_scale(y)
        features, costs = torch.cdist(rows, rows).square()[off].mean(), torch.cdist(points, points).square()[off].mean()
        assert kd.label_weight.item() == pytest.approx((features / costs).item(), rel=1e-4)
        later = mikit.KD2M.between(x, y, conditional="joint", scale="spread")
        assert later.label_weight.item() == 0
        later.estimate(x, y, labels=labels)
        assert later.label_weight.item() == 0  # a report leaves no trace
        later(x, y, labels=labels)
        assert later.label_weight.item() == pytest.approx(kd.label_weight.item(), rel=1e-6)
        later(3 * x, 3 * y, labels=labels)
        assert later.label_weight.item() == pytest.approx(kd.label_weight.item(), rel=1e-6)

    @pytest.mark.parametrize("metric", METRICS)
    def test_joint_reads_both_features(self, metric: str) -> None:
        """The released code compared the student with itself: no gradient, and blind to the teacher's features."""
        x, y, _ = batch()
        logits = torch.randn(96, 4, generator=seeded(2))
        kd = mikit.KD2M.between(x, y, metric=metric, conditional="joint", label_weight=0.5)
        features, own = x.clone().requires_grad_(), logits.clone().requires_grad_()
        value = kd(features, y, student_labels=own, teacher_labels=logits + 1)
        value.backward()
        assert features.grad is not None
        assert features.grad.norm() > 1e-4
        assert own.grad is not None
        assert own.grad.norm() > 1e-5
        scaled = kd(x, 1000 * y, student_labels=logits, teacher_labels=logits + 1)
        assert abs(scaled.item() / value.item() - 1) > 0.1

    def test_teacher_and_its_labels_get_no_gradient(self) -> None:
        x, y, labels = batch()
        for form in FORMS:
            kd = mikit.KD2M.between(x, y, conditional=form)
            student, teacher = x.clone().requires_grad_(), y.clone().requires_grad_()
            kd(student, teacher, labels=labels).backward()
            assert teacher.grad is None
            assert student.grad is not None
            assert student.grad.norm() > 0


class TestScale:
    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize(("width", "factor"), [(4, 1.0), (64, 1000.0)])
    def test_a_weight_of_one_means_the_same(self, metric: str, width: int, factor: float) -> None:
        g = seeded()
        y = torch.randn(128, width, generator=g) @ torch.randn(width, width, generator=g)
        y = factor * (y.relu() + 3)
        kd = mikit.KD2M.between(y, y, metric=metric, generator=seeded(1))
        spread = (y - y.mean(0)).square().sum(1).mean().sqrt()
        direction = torch.randn(width, generator=g)
        unrelated = torch.randn(128, width, generator=g) / width**0.5 + direction / direction.norm()
        value = kd.estimate(y.mean(0) + spread * unrelated, y).item()
        assert 0.4 < value < 2.5

    def test_nothing_depends_on_units_and_origin(self) -> None:
        x, y, labels = batch()
        for form in FORMS:
            one, other = (
                mikit.KD2M.between(scale * x + 7, scale * y + 7, metric="energy", conditional=form, labels=labels)(
                    scale * x + 7, scale * y + 7, labels=labels
                ).item()
                for scale in (1.0, 250.0)
            )
            assert one == pytest.approx(other, rel=1e-3)

    def test_dead_units_stay_dead(self) -> None:
        x, y, _ = batch()
        y[:, 2] = 0.0
        kd = mikit.KD2M.between(x, y, metric=MeanGap(), scale="spread")
        assert torch.isfinite(kd(x, y))
        with pytest.raises(InputError, match="are the same in all 96 samples"):
            mikit.KD2M.between(x, torch.ones(96, 6))

    def test_a_blind_metric_has_no_unit(self) -> None:
        @final
        class Blind(Discrepancy):
            name, unit = "blind", "feature²"

            def between_laws(self, x: Tensor, y: Tensor, **_: Tensor | None) -> Tensor:
                return 0 * (x.sum() + y.sum())

        x, y, _ = batch()
        with pytest.raises(InputError, match="is no unit for its values"):
            mikit.KD2M.between(x, y, metric=Blind())

    def test_the_projection_starts_where_the_teacher_is_and_trains(self) -> None:
        g = seeded()
        x, y = 30 + torch.randn(64, 3, generator=g), 5 * torch.randn(64, 8, generator=g) - 2
        kd = mikit.KD2M.between(x, y, metric="energy", generator=seeded(1))
        assert kd.projection is not None
        mapped = kd.projection(x)
        assert torch.allclose(mapped.mean(0), y.mean(0), atol=1e-3)
        spreads = [(rows - rows.mean(0)).square().sum(1).mean().item() for rows in (mapped, y)]
        assert spreads[0] == pytest.approx(spreads[1], rel=1e-4)
        again = mikit.KD2M.between(x, y, metric="energy", generator=seeded(1))
        assert torch.equal(again.projection.linear.weight, kd.projection.linear.weight)
        optimizer = torch.optim.Adam(kd.param_groups(), lr=0.05)
        mikit.check_optimizer(optimizer, kd)
        before = kd.estimate(x, y).item()
        for _ in range(30):
            optimizer.zero_grad()
            kd(x, y).backward()
            optimizer.step()
        assert kd.estimate(x, y).item() < before
        with pytest.raises(InputError, match="lacks 2 trainable parameters of KD2M"):
            mikit.check_optimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), kd)

    @pytest.mark.parametrize("metric", ["energy", "mmd"])
    def test_it_keeps_the_contract(self, metric: str) -> None:
        check_estimator(mikit.KD2M(metric))

    def test_measured_as_an_instrument(self) -> None:
        _, y, _ = batch(n=200)
        close = mikit.measure(y[torch.randperm(200, generator=seeded())], y, mikit.KD2M("energy"), seed=0)
        far = mikit.measure(y + 3, y, mikit.KD2M("energy"), seed=0)
        assert abs(close.value) < 0.05 < far.value
        assert far.unit == "dimensionless"


class TestLabels:
    def test_soft_labels_weigh_rows(self) -> None:
        x, y, labels = batch()
        soft = torch.randn(96, 3, generator=seeded(5)).softmax(1)
        expected = 0.0
        for c in range(3):
            w = soft[:, c] / soft[:, c].sum()
            expected += soft[:, c].mean().item() * ((w @ x) - (w @ y)).square().sum().item()
        kd = plain(MeanGap(), conditional="class")
        assert kd(x, y, labels=soft).item() == pytest.approx(expected, rel=1e-5)
        hard = torch.eye(4)[labels]
        own = plain(mikit.EnergyDistance(form="biased"), conditional="class", queue=0)
        assert own(x, y, labels=hard).item() == pytest.approx(own(x, y, labels=labels).item(), rel=1e-4)

    def test_metrics_without_weights_name_those_with(self) -> None:
        x, y, _ = batch()
        with pytest.raises(InputError, match=r"MMD takes no weights.*EnergyDistance.*Wasserstein"):
            plain("mmd", conditional="class")(x, y, labels=torch.full((96, 2), 0.5))
        with pytest.raises(InputError, match="The queue stores samples of one class"):
            plain(MeanGap(), conditional="class", queue=4)(x, y, labels=torch.full((96, 2), 0.5))
        with pytest.raises(InputError, match="add up to 1"):
            plain(MeanGap(), conditional="class")(x, y, labels=torch.ones(96, 2))
        with pytest.raises(InputError, match="not logits"):
            plain(MeanGap(), conditional="class")(x, y, labels=torch.tensor([[2.0, -1.0]]).expand(96, 2))

    def test_one_class_is_the_marginal(self) -> None:
        x, y, _ = batch()
        labels = torch.full((96,), 7)
        assert plain(MeanGap(), conditional="class")(x, y, labels=labels).item() == pytest.approx(
            plain(MeanGap())(x, y).item(), rel=1e-6
        )
        with pytest.raises(InputError, match="All labels of these samples are alike"):
            plain(MeanGap(), conditional="joint")(x, y, labels=labels)

    def test_single_rows(self) -> None:
        """Without a queue, W₂² of one row and one row is their squared distance."""
        x, y, _ = batch(n=12)
        labels = torch.arange(12)
        kd = plain(mikit.Wasserstein(), conditional="class", queue=0)
        assert kd(x, y, labels=labels).item() == pytest.approx((x - y).square().sum(1).mean().item(), rel=1e-5)
        found = kd.diagnose(x, y, labels=labels)
        assert found.identity_fraction == 1.0
        assert found.pointwise
        assert found.single_row_classes == 1.0
        assert math.isnan(found.debiased)

    def test_classes_below_the_metrics_minimum_are_left_out_and_said(self) -> None:
        x, y, _ = batch(n=9)
        labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 3])
        kd = plain(mikit.MMD(bandwidth=1.0), conditional="class", queue=0)
        with pytest.warns(UserWarning, match="2 of the 4 classes in this batch have fewer samples than the 2"):
            value = kd(x, y, labels=labels)
        expected = (4 * mmd2(x[:4], y[:4], bandwidth=1.0) + 3 * mmd2(x[4:7], y[4:7], bandwidth=1.0)) / 7
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        kd(x, y, labels=labels)  # said once
        terms = kd.terms(x, y, labels=labels)
        assert terms["left_out_classes"].item() == 0.5
        assert terms["single_row_classes"].item() == 0.5
        assert not any(value.requires_grad for value in terms.values())

    def test_the_fewest_rows_are_those_that_rectified_features_need(self) -> None:
        wide = torch.zeros(1, 64)
        asked: list[tuple[Discrepancy, int]] = [
            (mikit.Wasserstein(), 1),
            (mikit.MMD(), 2),
            (mikit.MMD(form="biased", debias=True), 4),
            (mikit.GaussianKL(diagonal=True), 3),
            (mikit.GaussianKL(shrinkage=None), 65),
        ]
        assert [fewest_rows(metric, wide) for metric, _ in asked] == [fewest for _, fewest in asked]

    def test_at_128_rows_of_100_classes_half_of_those_present_have_one_row(self) -> None:
        kd = plain(MeanGap(), conditional="class")
        x, y, _ = batch(n=128)
        shares = [
            kd.terms(x, y, labels=torch.randint(100, (128,), generator=seeded(seed)))["single_row_classes"].item()
            for seed in range(40)
        ]
        # By the binomial law: 128 rows, each in a class with probability 1 / 100.
        expected = 128 * 0.01 * 0.99**127 / (1 - 0.99**128)
        assert expected == pytest.approx(0.49, abs=0.01)
        assert statistics.mean(shares) == pytest.approx(expected, abs=4 * statistics.stdev(shares) / 40**0.5)

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            (None, "The labels of the batch are missing"),
            (torch.zeros(95, dtype=torch.long), r"labels has shape \(95,\), but there are 96 samples"),
            (torch.zeros(96), "class indices are whole numbers"),
            (torch.full((96,), -1), "A label is -1"),
            (torch.full((96,), 4), "A label is 4, but there are 4 classes"),
            (torch.zeros(96, 2, dtype=torch.long), "must be floating point"),
        ],
    )
    @pytest.mark.parametrize("form", ["class", "joint"])
    def test_labels_that_cannot_be_used(self, form: str, labels: Tensor | None, said: str) -> None:
        x, y, _ = batch()
        with pytest.raises(InputError, match=said):
            plain(MeanGap(), conditional=form, classes=4)(x, y, labels=labels)

    def test_settings_that_do_not_go_together(self) -> None:
        x, y, labels = batch()
        for settings, said in (
            ({"conditional": "classes"}, 'must be None, "class" or "joint"'),
            ({"queue": 3}, 'queue belongs to conditional="class"'),
            ({"label_weight": 1.0}, 'label_weight belongs to conditional="joint"'),
            ({"conditional": "joint", "label_weight": 0.0}, "must be positive and finite"),
            ({"conditional": "class", "prior": [0.0, 0.0]}, "not all 0"),
            ({"conditional": "class", "prior": [0.5, 0.5], "classes": 3}, "prior has 2 classes"),
            ({"scale": "columns"}, 'must be "standard", "spread" or None'),
            ({"metric": mikit.MMD(paired=True), "conditional": "class", "queue": 2}, "compares paired samples"),
            ({"metric": "ksg"}, "does not compare the distributions of two samples"),
            ({"metric": "nothing"}, "There is no estimator"),
        ):
            with pytest.raises(InputError, match=said):
                mikit.KD2M(**settings)
        with pytest.raises(InputError, match="has not seen the teacher's features"):
            mikit.KD2M("mmd")(x, y)
        with pytest.raises(InputError, match=r"Build the loss with KD2M\.between"):
            plain("mmd")(x[:, :3], y)
        with pytest.raises(InputError, match='go with conditional="joint"'):
            plain("mmd", conditional="class")(x, y, labels=labels, student_labels=x)
        with pytest.raises(InputError, match="The student's labels have 4 coordinates and the teacher's 6"):
            plain("mmd", conditional="joint")(x, y, student_labels=x[:, :4], teacher_labels=y)
        with pytest.raises(InputError, match="No class of this batch has the 2 samples"):
            plain("mmd", conditional="class")(x[:4], y[:4], labels=torch.arange(4))
        with pytest.raises(InputError, match="at least 2"):
            plain("mmd")(x[:1], y[:1])


class TestQueue:
    def test_it_is_a_ring_for_each_class(self) -> None:
        g = seeded()
        queue, naive = FeatureQueue(5, 2), [deque(maxlen=5) for _ in range(3)]
        for _ in range(6):
            rows, labels = torch.randn(13, 2, generator=g), torch.randint(3, (13,), generator=g)
            queue.push(rows, labels)
            for row, label in zip(rows, labels, strict=True):
                naive[int(label)].append(tuple(row.tolist()))
            kept, of = queue.contents()
            for label, rows_of in enumerate(naive):
                assert {tuple(row.tolist()) for row in kept[of == label]} == set(rows_of)
        assert queue.rows.shape == (3, 5, 2)  # bounded, however much is pushed

    def test_teacher_rows_of_earlier_batches_are_compared(self) -> None:
        x, y, labels = batch(n=16, classes=2)
        earlier_x, earlier_y, earlier = batch(n=12, classes=3, seed=1)
        kd = plain(MeanGap(), conditional="class", queue=8)
        kd(earlier_x, earlier_y, labels=earlier)  # the third class is empty afterwards, and counts nothing
        expected = 0.0
        for c in range(2):
            teacher = torch.cat([y[labels == c], earlier_y[earlier == c]])
            expected += 0.5 * (x[labels == c].mean(0) - teacher.mean(0)).square().sum().item()
        own = kd.estimate(x, y, labels=labels).item()
        student = x.clone().requires_grad_()
        value = kd(student, y, labels=labels)
        assert value.item() == pytest.approx(expected, rel=1e-5)
        assert own == pytest.approx(plain(MeanGap(), conditional="class", queue=0)(x, y, labels=labels).item())
        value.backward()  # the queue has moved on meanwhile
        assert student.grad is not None
        kd.eval()
        state = copy.deepcopy(kd.state_dict())
        kd(x, y, labels=labels)
        kd.estimate(x, y, labels=labels)
        kd.terms(x, y, labels=labels)
        kd.diagnose(x, y, labels=labels)
        assert all(torch.equal(state[name], now) for name, now in kd.state_dict().items())

    @pytest.mark.parametrize("metric", METRICS)
    def test_every_metric_takes_a_queue_and_single_rows_or_says_so(self, metric: str) -> None:
        x, y, labels = batch(n=60, classes=12)
        kd = mikit.KD2M.between(x, y, metric=metric, conditional="class")
        for _ in range(2):
            kd(x, y, labels=labels)
        labels = labels.clone()
        labels[0] = 50  # one row of a class never seen
        student = x.clone().requires_grad_()
        if metric in ("mmd", "energy", "gaussian_kl"):
            with pytest.warns(UserWarning, match="1 of the 13 classes"):
                value = kd(student, y, labels=labels)
        else:
            value = kd(student, y, labels=labels)
        value.backward()
        assert torch.isfinite(value)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()

    def test_the_state_dict_holds_everything(self) -> None:
        g = seeded()
        x, y, labels = torch.randn(40, 3, generator=g), torch.randn(40, 5, generator=g), torch.arange(40) % 4
        kd = mikit.KD2M.between(x, y, metric="energy", conditional="class", queue=4, generator=seeded(1))
        kd(x, y, labels=labels)
        state = kd.state_dict()
        assert {"queue.rows", "queue.pushed", "label_weight", "projection.linear.weight"} <= set(state)
        other = mikit.KD2M.between(x + 1, 2 * y, metric="energy", conditional="class", queue=4, generator=seeded(2))
        assert other.queue.rows.shape[0] == 0
        other.load_state_dict(state)
        bare = mikit.KD2M("energy", conditional="class", queue=4, projection=MatchedProjection(3, 5))
        bare.load_state_dict(state)
        kd.eval()
        for one in (other.eval(), bare.eval()):
            assert one(x, y, labels=labels).item() == kd(x, y, labels=labels).item()
        joint = mikit.KD2M.between(x, y, conditional="joint", labels=labels, generator=seeded(1))
        again = mikit.KD2M.between(x, y, conditional="joint", generator=seeded(2))
        again.load_state_dict(joint.state_dict())
        again(x, y, labels=labels % 2)
        assert again.label_weight.item() == joint.label_weight.item()

    def test_labels_that_do_not_fit(self) -> None:
        with pytest.raises(InputError, match="A label is -1"):
            FeatureQueue(2, 3).push(torch.zeros(1, 3), torch.tensor([-1]))
        with pytest.raises(InputError, match="samples of 3 features"):
            FeatureQueue(2, 3).push(torch.zeros(1, 2), torch.tensor([0]))
        with pytest.raises(InputError, match="must be at least 1"):
            FeatureQueue(0, 3)


class TestDiagnosis:
    def test_exact_transport_is_debiased(self) -> None:
        """Two samples of one law, 128 rows in 64 columns: the gap is all bias."""
        values, debiased = [], []
        for seed in range(12):
            x, y = torch.randn(2, 128, 64, generator=seeded(seed))
            found = mikit.KD2M("wasserstein", scale=None).diagnose(x, y)
            values.append(found.value)
            debiased.append(found.debiased)
        assert statistics.mean(values) == pytest.approx(89.9, rel=0.05)
        assert abs(statistics.mean(debiased)) < 3 * statistics.stdev(debiased) / 12**0.5

    def test_a_shuffled_teacher_is_no_gap_and_no_knowledge(self) -> None:
        y = torch.randn(128, 16, generator=seeded())
        x = y[torch.randperm(128, generator=seeded(1))]
        found = mikit.KD2M("wasserstein", scale=None).diagnose(x, y)
        assert found.value == pytest.approx(0, abs=1e-5)
        assert found.partners == pytest.approx(1, abs=0.05)
        assert found.identity_fraction is not None
        assert found.identity_fraction < 0.1
        assert not found.pointwise

    def test_correlated_pairs_of_many_columns_are_matched_with_themselves(self) -> None:
        g = seeded()
        y = torch.randn(128, 512, generator=g)
        x = 0.2 * y + 0.96**0.5 * torch.randn(128, 512, generator=g)
        kd = mikit.KD2M.between(x, y, metric="wasserstein")
        found = kd.diagnose(x, y)
        assert found.identity_fraction == pytest.approx(1, abs=0.02)
        assert "acts as regression on partners" in str(found)
        assert kd.terms(x, y)["identity_fraction"].item() == found.identity_fraction
        assert "identity_fraction" not in mikit.KD2M.between(x, y).terms(x, y)

    def test_by_class_it_is_the_table_summed(self) -> None:
        x, y, _ = batch(n=120)
        labels = torch.randint(5, (120,), generator=seeded(9))
        kd = mikit.KD2M.between(x, y, metric="energy", conditional="class")
        found = kd.diagnose(x, y, labels=labels)
        assert len(found.classes) == 5
        assert sum(line.share for line in found.classes) == pytest.approx(1)
        assert found.value == pytest.approx(sum(line.share * line.value for line in found.classes), rel=1e-6)
        assert found.value == pytest.approx(kd.estimate(x, y, labels=labels).item(), rel=1e-5)
        assert found.null == pytest.approx(sum(line.share * line.null for line in found.classes), rel=1e-6)
        assert abs(found.null) < 0.1 < found.debiased
        assert found.to_dict()["classes"][0]["rows"] == int((labels == 0).sum())
        assert "Of 5 classes" in str(found)

    def test_partners_by_hand(self) -> None:
        x, y = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[1.0], [3.0], [4.0]])
        own = torch.tensor([1.0, 4.0, 0.0]).mean()
        strangers = torch.tensor([9.0, 16.0, 0.0, 9.0, 9.0, 1.0]).mean()
        found = plain(MeanGap()).diagnose(x, y)
        assert found.partners == pytest.approx(float(own / strangers), rel=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("metric", METRICS)
    def test_every_metric_in_every_form(self, metric: str, form: str | None) -> None:
        x, y, labels = batch(n=80)
        kd = mikit.KD2M.between(x, y, metric=metric, conditional=form)
        found = kd.diagnose(x, y, labels=labels, halvings=2)
        assert all(math.isfinite(one) for one in (found.value, found.apart, found.null, found.debiased, found.partners))
        assert (found.identity_fraction is not None) == (metric in ("wasserstein", "sinkhorn_divergence"))


class TestTraining:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_far_from_the_origin(self, metric: str, form: str | None, dtype: torch.dtype) -> None:
        g = seeded()
        labels = torch.arange(64) % 4
        x, y = ((10 + torch.randn(64, 16, generator=g)).relu().to(dtype) for _ in range(2))
        kd = mikit.KD2M.between(x, y, metric=metric, conditional=form, label_weight=1.0 if form == "joint" else None)
        full = copy.deepcopy(kd)
        student = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            value = kd(student, y, labels=labels)
        assert value.dtype == torch.float32
        value.backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
        exact = x.float().requires_grad_()
        wanted = full(exact, y.float(), labels=labels)
        wanted.backward()
        if metric != "sliced_wasserstein":  # which draws new lines each time
            assert value.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)
            assert exact.grad is not None
            error = (student.grad.float() - exact.grad).norm() / exact.grad.norm()
            assert error < 4 * torch.finfo(dtype).eps

    # Where a graph breaks, torch looks at the gradient of what it carries across.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("metric", [*METRICS, pytest.param("gromov_wasserstein", marks=pytest.mark.slow)])
    def test_compiled(self, metric: str, form: str | None) -> None:
        torch.compiler.reset()
        x, y, labels = batch(n=40)
        kd = mikit.KD2M.between(x[:, :3], y, metric=metric, conditional=form, labels=labels if form else None)
        eager = copy.deepcopy(kd)
        compiled = torch.compile(kd, backend="aot_eager")
        for _ in range(2):
            value, wanted = (loss(x[:, :3], y, labels=labels) for loss in (compiled, eager))
            if metric != "sliced_wasserstein":
                assert value.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6)
        value.backward()
        assert kd.projection is not None
        assert torch.isfinite(kd.projection.linear.weight.grad).all()

    def test_a_student_comes_closer(self) -> None:
        g = seeded()
        images, labels = torch.randn(256, 10, generator=g), torch.arange(256) % 4
        teacher = nn.Sequential(nn.Linear(10, 24), nn.ReLU()).requires_grad_(False)
        student = nn.Sequential(nn.Linear(10, 12), nn.ReLU())
        for form in FORMS:
            kd = mikit.KD2M.between(student(images), teacher(images), metric="energy", conditional=form, generator=g)
            own = copy.deepcopy(student)
            optimizer = torch.optim.Adam([{"params": own.parameters()}, *kd.param_groups()], lr=0.01)
            before = kd.estimate(own(images), teacher(images), labels=labels).item()
            for _ in range(40):
                optimizer.zero_grad()
                kd(own(images), teacher(images), labels=labels).backward()
                optimizer.step()
            assert kd.estimate(own(images), teacher(images), labels=labels).item() < before / 2

    @pytest.mark.parametrize("form", ["class", "joint"])
    def test_an_interrupted_run_goes_on_with_queue_and_label_weight(self, form: str, tmp_path: Path) -> None:
        part = mikit.datasets.digits().train.per_class(5, seed=0)
        plan = TrainingPlan(epochs=4, batch=50, rate=0.1, evaluate_every=4)
        teacher = ResNet8(width=0.25, generator=seeded(1)).eval()

        def run(folder: Path, stop_after: int | None) -> list[float]:
            def stopping(epoch: int, network: nn.Module) -> None:
                if epoch == stop_after:
                    raise KeyboardInterrupt

            student = ResNet8(width=0.125, generator=seeded(2))
            f_s, f_t = example_features(student, teacher, part.images, "pool")
            kd = mikit.KD2M.between(f_s, f_t, metric="energy", conditional=form, generator=seeded(3))
            terms = {"kd": DistillationTerm(loss=kd, layer="pool", labels=True)}
            curve = train_student(
                student, teacher, terms, part.images, part.labels, plan, folder=folder, on_epoch=stopping
            )
            return [record.terms["kd"] for record in curve.records]

        whole = run(tmp_path / "whole", None)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", 3)
        assert run(tmp_path / "cut", None) == whole

    def test_sizes_may_differ_without_labels(self) -> None:
        x, y, _ = batch()
        assert plain("energy")(x[:50], y).item() == pytest.approx(
            mikit.EnergyDistance().estimate(x[:50], y).item(), rel=1e-5
        )


def test_all_discrepancies_of_the_registry_are_covered() -> None:
    names = {name for name, cls in REGISTRY.items() if issubclass(cls, Discrepancy)}
    assert names - {"gromov_wasserstein"} == set(METRICS)
