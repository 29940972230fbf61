"""MIMKD: naive loops for every term, negatives, read-out, training, mixed precision, compiler, sentences."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

import mikit
from mikit.core.errors import InputError
from mikit.distillation.mimkd.contrast import Contrast, ContrastSettings
from mikit.distillation.mimkd.critics import BoundedJoint, Cosine
from mikit.distillation.mimkd.information import read_information
from mikit.functional.bounds.kept_negatives import (
    anchored_infonce_with_kept,
    jsd_of_partners,
    kept_negatives,
    shifted_partners,
)

N = 8
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
CRITICS = ["dot", "concat"]
OBJECTIVES = ["jsd", "infonce", "anchored"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(
    n: int = N, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Student and teacher of other widths and map sizes, which know something of each other."""
    g = seeded(seed)
    deep = torch.randn(n, 6, 4, 4, generator=g)
    student = {
        "early": torch.randn(n, 3, 8, 8, generator=g),
        "late": deep[:, :4] + 0.3 * torch.randn(n, 4, 4, 4, generator=g),
        "pool": deep[:, :5].mean((2, 3)) + 0.1 * torch.randn(n, 5, generator=g),
    }
    teacher = {"early": torch.randn(n, 4, 6, 4, generator=g), "late": deep, "logits": deep.mean((2, 3))}
    return {k: v.to(dtype) for k, v in student.items()}, {k: v.to(dtype) for k, v in teacher.items()}


def built(**settings: object) -> tuple[mikit.MIMKD, dict[str, Tensor], dict[str, Tensor]]:
    student, teacher = features()
    kd = mikit.MIMKD.between(student, teacher, width=8, grid=2, generator=seeded(), **settings)
    # Away from the start, where all scores are nearly alike and many mistakes would not show.
    with torch.no_grad():
        for p in kd.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(p.numel())))
    return kd.double(), student, teacher


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def naive_objective(objective: str, score: Callable[[int, int], float], negatives: list[list[int]]) -> float:
    """The objective at one position, from the score of each pair, with the negatives of each row by name."""
    n = len(negatives)
    if objective == "jsd":
        found = statistics.fmean(-softplus(-score(i, i)) for i in range(n))
        missed = statistics.fmean(softplus(score(i, j)) for i in range(n) for j in negatives[i])
        return found - missed + 2 * math.log(2)
    if objective == "infonce":
        terms = []
        for i, others in enumerate(negatives):
            own = math.exp(score(i, i))
            rows = (own + sum(math.exp(score(i, j)) for j in others)) / (1 + len(others))
            columns = (own + sum(math.exp(score(j, i)) for j in others)) / (1 + len(others))
            terms.append(score(i, i) - (math.log(rows) + math.log(columns)) / 2)
        return statistics.fmean(terms)
    terms = []
    for i, others in enumerate(negatives):
        anchor = 4.0 * len(others)
        left_out = next((i + m) % n for m in range(1, n) if (i + m) % n in others)
        own, total = math.exp(score(i, i)), sum(math.exp(score(i, j)) for j in others)
        share = len(others) / (len(others) + anchor)
        with_positive = anchor + own + total - math.exp(score(i, left_out))
        terms.append(share * math.log(own / with_positive) + (1 - share) * math.log(anchor / (anchor + total)))
    return statistics.fmean(terms)


def naive_loss(
    kd: mikit.MIMKD,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    negatives: list[list[int]],
    objective: str = "jsd",
) -> float:
    """Every term, map, position and pair in loops, with nothing of the loss but its critics."""
    weights = {"global": kd.weights["global"], "local": kd.weights["local"], "feature": kd.weights["feature"] / 2}
    total = 0.0
    for name, contrast in zip(kd.names, kd.contrasts, strict=True):
        term, _, map_name = name.partition(" ")
        x = student["pool"][:, :, None, None] if term == "global" else adaptive_avg_pool2d(student[map_name], 2)
        y = adaptive_avg_pool2d(teacher[map_name], 2) if term == "feature" else teacher["logits"][:, :, None, None]
        values = []
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                there = (row, column) if term == "feature" else (0, 0)
                own, told = x[:, :, row, column], y[:, :, there[0], there[1]]

                def score(i: int, j: int, own: Tensor = own, told: Tensor = told, c: nn.Module = contrast) -> float:
                    with torch.no_grad():
                        return float(c.critic.pair_scores(own[i : i + 1], told[j : j + 1]))

                values.append(naive_objective(objective, score, negatives))
        total -= weights[term] * statistics.fmean(values)
    return total


def all_negatives(labels: Tensor | None = None) -> list[list[int]]:
    same = torch.eye(N, dtype=torch.bool) if labels is None else labels[:, None] == labels[None, :]
    return [[j for j in range(N) if not same[i, j]] for i in range(N)]


class TestFormulas:
    @pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "labels"])
    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize("critic", CRITICS)
    def test_all_negatives(self, critic: str, objective: str, labels: Tensor | None) -> None:
        kd, student, teacher = built(
            critic=critic, objective=objective, negatives="all", global_weight=0.5, local_weight=2.0, feature_weight=3.0
        )
        assert kd.names == ("global", "local late", "feature early", "feature late")
        wanted = naive_loss(kd, student, teacher, all_negatives(labels), objective)
        assert kd(student, teacher, labels=labels).item() == pytest.approx(wanted, abs=1e-5)

    @pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "labels"])
    @pytest.mark.parametrize("critic", CRITICS)
    def test_one_negative(self, critic: str, labels: Tensor | None) -> None:
        kd, student, teacher = built(critic=critic, negatives="shift")
        kd.eval()  # shifts by half of the batch
        allowed = all_negatives(labels)
        negatives = [[next((i + 4 + m) % N for m in range(N) if (i + 4 + m) % N in allowed[i])] for i in range(N)]
        wanted = naive_loss(kd, student, teacher, negatives)
        assert kd(student, teacher, labels=labels).item() == pytest.approx(wanted, abs=1e-5)

    def test_one_negative_is_all_of_them_on_average(self) -> None:
        kd, student, teacher = built(negatives="shift")
        everything = mikit.MIMKD.between(student, teacher, width=8, grid=2, negatives="all").double()
        everything.load_state_dict(kd.state_dict())
        kept = kept_negatives(N)
        for contrast, x, y in kd._read(student, teacher):
            over_shifts = [contrast._with_one_negative(x, y, None, shift).item() for shift in range(1, N)]
            wanted = contrast._with_kept(contrast._scores(x, y), kept).item()
            assert statistics.fmean(over_shifts) == pytest.approx(wanted, abs=1e-5)

    def test_a_critic_that_knows_nothing_costs_0(self) -> None:
        for critic in CRITICS:
            kd, student, teacher = built(critic=critic)
            for p in kd.parameters():
                p.data.zero_()
            assert kd(student, teacher).item() == pytest.approx(0, abs=1e-6)

    def test_the_terms_add_up(self) -> None:
        kd, student, teacher = built(global_weight=0.5, feature_weight=3.0)
        kd.eval()
        terms = kd.terms(student, teacher)
        assert set(terms) == {"loss", "chance", *kd.names}
        wanted = -0.5 * terms["global"] - terms["local late"]
        wanted = wanted - 1.5 * terms["feature early"] - 1.5 * terms["feature late"]
        assert terms["loss"].item() == pytest.approx(wanted.item(), abs=1e-6)
        assert terms["loss"].item() == pytest.approx(kd(student, teacher).item(), abs=1e-6)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize("cells", [1, 2])
    def test_streamed_is_whole(self, objective: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
        contrast = Contrast(4, 3, ContrastSettings(objective=objective, width=8)).double()
        g = seeded()
        x = torch.randn(6, 2, 4, generator=g, dtype=torch.float64, requires_grad=True)
        y = torch.randn(6, cells, 3, generator=g, dtype=torch.float64)
        whole = contrast(x, y)
        monkeypatch.setattr("mikit.distillation.mimkd.contrast._KEPT_SCORES", 0)
        streamed = contrast(x, y)
        assert streamed.item() == pytest.approx(whole.item(), abs=1e-12)
        assert streamed.grad_fn is not None
        of_streamed, of_whole = (torch.autograd.grad(value, [x, *contrast.parameters()]) for value in (streamed, whole))
        for one, other in zip(of_streamed, of_whole, strict=True):
            assert torch.allclose(one, other, atol=1e-12)


class TestNegatives:
    @pytest.mark.parametrize("n", [2, 3, 5, 8])
    def test_no_row_is_its_own_negative(self, n: int) -> None:
        for shift in range(1, n):
            partners, has = shifted_partners(kept_negatives(n), shift)
            assert has.all()
            assert sorted(partners.tolist()) == list(range(n))
            assert (partners != torch.arange(n)).all()

    def test_no_negative_of_the_same_label(self) -> None:
        for shift in range(1, N):
            partners, has = shifted_partners(kept_negatives(N, LABELS), shift)
            assert has.all()
            assert (LABELS[partners] != LABELS).all()

    def test_random_shifts_reach_every_other_row_and_follow_the_generator(self) -> None:
        contrast = Contrast(1, 1, ContrastSettings(negatives="shift"))
        g = seeded()
        shifts = [int(contrast._shift(5, g)) for _ in range(200)]
        assert set(shifts) == {1, 2, 3, 4}
        state = torch.random.get_rng_state()
        assert shifts == [int(contrast._shift(5, g)) for g in [seeded()] for _ in range(200)]
        assert torch.equal(state, torch.random.get_rng_state())

    def test_rows_without_a_negative_do_not_count(self) -> None:
        kept = kept_negatives(3)
        kept[2] = False
        kept[:, 2] = False
        scores = torch.randn(2, 3, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
        value = anchored_infonce_with_kept(scores, kept)
        (gradient,) = torch.autograd.grad(value, scores)
        assert torch.isfinite(gradient).all()
        assert (gradient[:, 2] == 0).all()
        partners, has = shifted_partners(kept, 1)
        assert has.tolist() == [True, True, False]
        assert partners.tolist() == [1, 0, 2]

    def test_changing_an_excluded_pair_changes_nothing(self) -> None:
        """Rows of one label are never compared: their scores get no gradient."""
        scores = torch.randn(1, N, N, generator=seeded(), requires_grad=True)
        kept = kept_negatives(N, LABELS)
        for objective in OBJECTIVES:
            contrast = Contrast(1, 1, ContrastSettings(objective=objective))
            (gradient,) = torch.autograd.grad(contrast._with_kept(scores, kept), scores)
            same = ~kept & ~torch.eye(N, dtype=torch.bool)
            assert (gradient[0][same] == 0).all()
            assert (gradient[0][kept] != 0).all()


class TestBounds:
    @pytest.mark.parametrize("critic", [Cosine, BoundedJoint])
    def test_scores_stay_within_the_bound(self, critic: type[Cosine] | type[BoundedJoint]) -> None:
        one = critic(3, 2, width=8, bound=4.0)
        x, y = 1e4 * torch.randn(20, 3, generator=seeded()), 1e4 * torch.randn(20, 2, generator=seeded(1))
        scores = one.scores(x, y)
        assert scores.abs().max() <= 4 * (1 + 1e-5)
        assert torch.allclose(scores.diagonal(), one.pair_scores(x, y), atol=1e-4)
        assert isinstance(one, Cosine) or scores.abs().max() > 1

    def test_embeddings_at_0_have_a_gradient(self) -> None:
        critic = Cosine(3, 2, width=4)
        for p in critic.parameters():
            p.data.zero_()
        value = critic.scores(torch.zeros(2, 3), torch.zeros(2, 2)).sum()
        value.backward()
        assert all(torch.isfinite(p.grad).all() for p in critic.parameters() if p.grad is not None)


def gaussian_cells(n: int, rhos: list[float], seed: int) -> tuple[Tensor, Tensor, float]:
    """Cells (n, p, 1) with a correlation for each position, and the mean information of the positions."""
    g = seeded(seed)
    rho = torch.tensor(rhos)[None, :, None]
    x = torch.randn(n, len(rhos), 1, generator=g)
    y = rho * x + (1 - rho.square()).sqrt() * torch.randn(n, len(rhos), 1, generator=g)
    return x, y, statistics.fmean(-0.5 * math.log(1 - r**2) for r in rhos)


def log_ratio(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """The logarithm of the density ratio of a normal pair and of its parts."""
    left = (x.square() + y.square()) * rho**2 - 2 * rho * x * y
    return -0.5 * math.log(1 - rho**2) - left / (2 * (1 - rho**2))


class TestInformation:
    BUDGET = 0.05  # what a critic misses after a short training, in nats

    @pytest.mark.parametrize(("critic", "rhos"), [("dot", [0.9]), ("concat", [0.6]), ("dot", [0.8, 0.0])])
    def test_the_read_out_is_the_information_of_gaussians(self, critic: str, rhos: list[float]) -> None:
        x, y, at_positions = gaussian_cells(2500, rhos, seed=2)
        # One critic serves all positions, so the best it can know is the ratio of the laws averaged over positions.
        xs, ys, _ = gaussian_cells(100_000, rhos, seed=4)
        ratios = torch.stack([log_ratio(xs.double(), ys.double(), rho).exp() for rho in rhos]).mean(0).log()
        truth = ratios.mean().item()
        assert truth == pytest.approx(at_positions, abs=0.01) if len(rhos) == 1 else truth < at_positions - 0.1
        settings = ContrastSettings(critic=critic, width=32)
        training = mikit.Training(steps=150, batch=200, learning_rate=5e-3, every=50)
        reading = read_information(settings, x, y, generator=seeded(), training=training)
        assert reading.images == 500
        assert reading.positions == len(rhos)
        assert reading.nwj == pytest.approx(truth, abs=self.BUDGET + 4 * reading.standard_error)
        assert reading.mean_score == pytest.approx(truth, abs=self.BUDGET + 4 * reading.standard_error)

    def test_the_objective_is_no_information(self) -> None:
        """At the best critic of a Gaussian with 0.830 nats the objective is 0.431, and the mean score 0.83."""
        rho, n = 0.9, 200_000
        x, y, truth = gaussian_cells(n, [rho], seed=3)
        x, y = x[:, 0, 0].double(), y[:, 0, 0].double()

        positives, negatives = log_ratio(x, y, rho), log_ratio(x, y.roll(1), rho)
        objective = jsd_of_partners(positives[:, None], negatives[:, None], torch.ones(n, dtype=torch.bool))
        assert objective.item() == pytest.approx(0.431, abs=0.005)  # its standard error is 0.0015
        error = positives.std().item() / math.sqrt(n)
        assert positives.mean().item() == pytest.approx(truth, abs=4 * error)

    def test_every_term_is_read_and_nothing_is_left_behind(self) -> None:
        student, teacher = features(60)
        kd = mikit.MIMKD.between(student, teacher, width=8, grid=2, objective="infonce", generator=seeded())
        before = copy.deepcopy(kd.state_dict())
        state = torch.random.get_rng_state()
        training = mikit.Training(steps=10, batch=32)
        found = kd.information(student, teacher, training=training)
        again = kd.information(student, teacher, training=training)
        assert found == again
        assert torch.equal(state, torch.random.get_rng_state())
        assert all(torch.equal(before[name], value) for name, value in kd.state_dict().items())
        assert tuple(found.terms) == kd.names
        assert found.unit == "nats"
        assert found["feature late"].positions == 4
        assert "feature late" in str(found)
        assert "nats" in str(found)

    def test_each_image_counts_once_in_the_error(self) -> None:
        """Cells of one image that are copies add nothing: the error is that of a single cell."""
        contrast = Contrast(1, 1, ContrastSettings(width=8))
        x, y, _ = gaussian_cells(300, [0.8], seed=5)
        once = contrast.standard_error(x, y)
        copies = contrast.standard_error(x.expand(-1, 4, -1), y.expand(-1, 4, -1))
        assert once is not None
        assert copies == pytest.approx(once, rel=1e-6)


class TestTraining:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize("critic", CRITICS)
    def test_every_parameter_moves_and_is_saved(self, critic: str, objective: str) -> None:
        student, teacher = features()
        kd = mikit.MIMKD.between(student, teacher, width=8, grid=2, critic=critic, objective=objective)
        optimizer = torch.optim.SGD(kd.param_groups(), lr=0.1, momentum=0.9)
        mikit.check_optimizer(optimizer, kd)
        before = {name: p.detach().clone() for name, p in kd.named_parameters()}
        for _ in range(10):
            optimizer.zero_grad()
            kd(student, teacher).backward()
            optimizer.step()
        saved = kd.state_dict()
        for name, p in kd.named_parameters():
            assert name in saved
            # A constant added to every score of a row cancels in InfoNCE: these cannot move, and need not.
            cancels = objective == "infonce" and (name.endswith("offset") or name.endswith("rest.4.bias"))
            assert cancels or not torch.equal(p, before[name]), name
        other = mikit.MIMKD.between(*features(seed=9), width=8, grid=2, critic=critic, objective=objective)
        other.load_state_dict(saved)
        kd.eval()
        other.eval()
        assert torch.equal(kd(student, teacher), other(student, teacher))

    def test_groups_carry_a_rate_of_their_own(self) -> None:
        kd, student, teacher = built()
        matrices, vectors = kd.param_groups()
        assert matrices["lr"] == vectors["lr"] == 0.01
        assert vectors["weight_decay"] == 0
        assert "weight_decay" not in matrices
        assert all(p.ndim <= 1 for p in vectors["params"])
        network = nn.Linear(2, 2)
        optimizer = torch.optim.SGD([{"params": network.parameters()}, *kd.param_groups()], lr=0.1)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 0.01]
        following = mikit.MIMKD.between(student, teacher, critic_rate=None).param_groups()
        assert all("lr" not in group for group in following)

    def test_the_teacher_gets_no_gradient_and_the_student_does(self) -> None:
        for critic in CRITICS:
            kd, student, teacher = built(critic=critic)
            own = {name: value.clone().requires_grad_() for name, value in student.items()}
            told = {name: value.clone().requires_grad_() for name, value in teacher.items()}
            kd(own, told, labels=LABELS).backward()
            assert all(value.grad is None for value in told.values())
            assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in own.values())

    def test_student_and_critics_stay_calm_at_a_large_rate(self) -> None:
        """At a rate of 0.1 for both, where an unbounded form once collapsed, values stay low and the student learns."""
        g = seeded()
        torch.manual_seed(0)  # for the networks
        images = torch.randn(256, 12, generator=g)
        teacher = nn.Sequential(nn.Linear(12, 16), nn.ReLU()).requires_grad_(False)
        student = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
        told = {"pool": teacher(images)}
        kd = mikit.MIMKD.between(
            {"pool": student(images)}, told, local_weight=0, feature_weight=0, width=16, critic_rate=None, generator=g
        )
        optimizer = torch.optim.SGD([{"params": student.parameters()}, *kd.param_groups()], lr=0.1, momentum=0.9)
        values = []
        for _ in range(60):
            rows = torch.randperm(256, generator=g)[:64]
            optimizer.zero_grad()
            loss = kd({"pool": student(images[rows])}, {"pool": told["pool"][rows]})
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        assert max(values) < 2
        assert statistics.fmean(values[-10:]) < -0.8
        assert min(values) >= -2 * math.log(2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("critic", CRITICS)
    def test_mixed_precision(self, critic: str, dtype: torch.dtype) -> None:
        """Post-ReLU features with a mean of ten standard deviations."""
        student, teacher = ({k: v.relu() + 10 for k, v in side.items()} for side in features(32))
        kd = mikit.MIMKD.between(student, teacher, width=16, grid=2, critic=critic, negatives="all", generator=seeded())
        half = {k: v.to(dtype).requires_grad_() for k, v in student.items()}
        exact = {k: v.detach().float().requires_grad_() for k, v in half.items()}
        told = {k: v.to(dtype) for k, v in teacher.items()}
        with torch.autocast("cpu", torch.bfloat16):
            value = kd(half, told)
        value.backward()
        wanted = kd(exact, {k: v.float() for k, v in told.items()})
        wanted.backward()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
        for name, one in half.items():
            assert one.grad is not None
            assert torch.isfinite(one.grad).all()
            assert exact[name].grad is not None
            error = (one.grad.float() - exact[name].grad).norm() / exact[name].grad.norm()
            assert error < 4 * torch.finfo(dtype).eps, name

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by the compiler's own code
    @pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "labels"])
    @pytest.mark.parametrize(
        ("critic", "objective", "negatives", "kept"),
        [
            ("dot", "jsd", "all", 2**22),
            ("dot", "jsd", "all", 0),
            ("dot", "infonce", "all", 0),
            ("dot", "jsd", "shift", 2**22),
            ("concat", "jsd", "shift", 2**22),
        ],
    )
    def test_the_compiler_takes_it_whole(
        self,
        critic: str,
        objective: str,
        negatives: str,
        labels: Tensor | None,
        kept: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("mikit.distillation.mimkd.contrast._KEPT_SCORES", kept)
        torch.compiler.reset()
        student, teacher = features()
        kd = mikit.MIMKD.between(
            student, teacher, width=8, grid=2, critic=critic, objective=objective, negatives=negatives
        ).eval()
        wanted = kd(student, teacher, labels=labels)
        compiled = torch.compile(kd, fullgraph=True, backend="aot_eager")
        own = {name: value.clone().requires_grad_() for name, value in student.items()}
        value = compiled(own, teacher, labels=labels)
        value.backward()
        assert value.item() == pytest.approx(wanted.item(), abs=1e-5)
        assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in own.values())
        compiled.train()
        assert torch.isfinite(compiled(own, teacher, labels=labels))


class Pooled(NamedTuple):
    stage: Tensor
    pool: Tensor


class TestFeatures:
    def test_a_named_tuple_and_captured_layers(self) -> None:
        student, teacher = features()
        own, told = Pooled(student["late"], student["pool"]), Pooled(teacher["late"], teacher["logits"])
        kd = mikit.MIMKD.between(own, told, width=8)
        assert kd.names == ("global", "local stage", "feature stage")
        networks = [mikit.models.ResNet8(width=width).eval() for width in (0.25, 0.5)]
        layers = ["stage2", "stage3", "pool"]
        images = torch.randn(4, 1, 8, 8, generator=seeded())
        with (
            mikit.capture(networks[0], layers, readout="whole", detach=False) as acts,
            mikit.capture(networks[1], layers, readout="whole") as acts_teacher,
        ):
            for network in networks:
                network(images)
            kd = mikit.MIMKD.between(acts, acts_teacher, width=8)
            kd(acts, acts_teacher).backward()
        assert kd.names == ("global", "local stage3", "feature stage2", "feature stage3")
        assert networks[0].stem[0].weight.grad is not None

    def test_single_tensors(self) -> None:
        """As the trainer passes them, one layer a term."""
        student, teacher = features()
        vectors = mikit.MIMKD.between(student["pool"], teacher["logits"], local_weight=0, feature_weight=0)
        maps = mikit.MIMKD.between(student["late"], teacher["late"], global_weight=0, local_weight=0)
        assert (vectors.names, maps.names) == (("global",), ("feature features",))
        assert torch.isfinite(vectors(student["pool"], teacher["logits"]) + maps(student["late"], teacher["late"]))

    def test_terms_follow_what_there_is(self) -> None:
        student, teacher = features()
        only = mikit.MIMKD.between({"a": student["pool"]}, {"b": teacher["logits"]}, local_weight=0, feature_weight=0)
        assert only.names == ("global",)
        own = {"pool": student["pool"], "x": student["early"]}
        alone = mikit.MIMKD.between(own, {"logits": teacher["logits"]}, feature_weight=0)
        assert alone.names == ("global", "local x")
        both = mikit.MIMKD.between(student, teacher, local=["early", "late"], global_weight=0)
        assert both.names == ("local early", "local late", "feature early", "feature late")
        mixed = mikit.MIMKD.between(
            student, teacher, critic={"global": "concat", "local": "dot", "feature": "dot"}, width=8
        )
        assert isinstance(mixed.contrasts[0].critic, BoundedJoint)
        assert isinstance(mixed.contrasts[1].critic, Cosine)

    def test_the_grid_is_the_smaller_map_at_most(self) -> None:
        student, teacher = features()
        for grid, sizes in ((None, [1, 16, 24, 16]), (3, [1, 9, 9, 9])):
            kd = mikit.MIMKD.between(student, teacher, grid=grid, width=8)
            assert [x.shape[1] for _, x, _ in kd._read(student, teacher)] == sizes

    def test_the_scale_of_the_features_does_not_matter(self) -> None:
        student, teacher = features()
        kd = mikit.MIMKD.between(student, teacher, width=8, generator=seeded())
        scaled = {k: 1e3 * v + 5 for k, v in student.items()}, {k: 1e-3 * v for k, v in teacher.items()}
        other = mikit.MIMKD.between(*scaled, width=8, generator=seeded())
        assert kd(student, teacher).item() == pytest.approx(other(*scaled).item(), abs=1e-4)


class TestSentences:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"objective": "mine"}, "objective is 'mine'"),
            ({"critic": "bilinear"}, "critic is 'bilinear'"),
            ({"critic": {"global": "dot"}}, "pass one critic for each"),
            ({"negatives": "hard"}, "negatives is 'hard'"),
            ({"negatives": "shift", "objective": "infonce"}, "one negative is not enough"),
            ({"global_weight": -1.0}, "global_weight is -1"),
            ({"global_weight": 0, "local_weight": 0, "feature_weight": 0}, "All weights are 0"),
            ({"grid": 0}, "grid is 0"),
            ({"width": 0}, "width is 0"),
            ({"bound": 0.0}, "bound is 0"),
            ({"critic_rate": 0.0}, "critic_rate is 0"),
            ({"local": ["pool"]}, "local names 'pool', but the student's maps are 'early', 'late'"),
        ],
    )
    def test_settings(self, change: dict[str, object], said: str) -> None:
        with pytest.raises(InputError, match=said):
            mikit.MIMKD.between(*features(), **change)

    @pytest.mark.parametrize(
        ("student", "teacher", "said"),
        [
            ({"early": None}, {}, "teacher has the maps 'early', which the student lacks"),
            ({}, {"early": None}, "No term uses the maps 'early'"),
            ({"pool": None}, {}, "The student has no vector"),
            ({"pool": None}, {"logits": None}, "The global term needs a vector"),
            ({"early": None, "late": None}, {"early": None, "late": None}, "The local term needs .* a map"),
            ({"second": torch.zeros(N, 2)}, {}, "The student has 2 vectors"),
            ({"tokens": torch.zeros(N, 3, 2)}, {}, "The student's 'tokens' is torch.float32 .*tokens"),
            ({}, {"late": torch.zeros(N + 1, 6, 4, 4)}, "has 8 images and the teacher's 'late' has 9"),
            ({"late": torch.full((N, 4, 4, 4), math.nan)}, {}, "The student's features contains? .*NaN"),
        ],
    )
    def test_features(self, student: dict[str, Tensor | None], teacher: dict[str, Tensor | None], said: str) -> None:
        sides = []
        for given, change in zip(features(), (student, teacher), strict=True):
            sides.append({k: v for k, v in (given | change).items() if v is not None})
        with pytest.raises(InputError, match=said):
            mikit.MIMKD.between(*sides)

    def test_what_is_no_mapping(self) -> None:
        student, teacher = features()
        with pytest.raises(InputError, match=r"student's features are a list\. Pass a dictionary"):
            mikit.MIMKD.between([student["pool"]], teacher)
        with pytest.raises(InputError, match=r"teacher's features are a dict\. Pass a dictionary"):
            mikit.MIMKD.between(student, {})

    def test_other_widths_than_built_for(self) -> None:
        kd, student, teacher = built()
        with pytest.raises(InputError, match=r"The student's features have the widths .* built for"):
            kd(teacher, student)
        with pytest.raises(InputError, match="The teacher's features have the widths"):
            kd(student, teacher | {"late": teacher["late"][:, :3]})

    @pytest.mark.parametrize(("objective", "n", "needed"), [("jsd", 1, 2), ("infonce", 1, 2), ("anchored", 2, 3)])
    def test_too_few_images(self, objective: str, n: int, needed: int) -> None:
        kd, student, teacher = built(objective=objective)
        few = ({k: v[:n] for k, v in side.items()} for side in (student, teacher))
        with pytest.raises(InputError, match=f"batch has {n} image.*at least {needed}"):
            kd(*few)

    def test_labels(self) -> None:
        kd, student, teacher = built()
        with pytest.raises(InputError, match="All 8 samples have one label"):
            kd(student, teacher, labels=torch.zeros(N, dtype=torch.long))
        with pytest.raises(InputError, match=r"labels has shape \(3,\)"):
            kd(student, teacher, labels=torch.zeros(3, dtype=torch.long))
        with pytest.raises(InputError, match=r"labels has dtype torch\.float32"):
            kd(student, teacher, labels=torch.zeros(N))

    def test_too_few_images_for_an_information(self) -> None:
        kd, student, teacher = built()
        with pytest.raises(InputError, match=r"There are 8 images; .* at least 20"):
            kd.information(student, teacher)
