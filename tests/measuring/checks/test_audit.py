"""The audit: each check passes an instrument that keeps the law, and catches one that is broken on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mikit import Training, measure
from mikit.estimators import KSG, Estimator, GaussianMI, InfoNCE, LabelInformation
from mikit.measuring.checks import audit
from mikit.measuring.checks.audit import Audit
from mikit.measuring.run import Run
from mikit.measuring.subject import Subject

Reads = Callable[[Tensor, Tensor, int], float]


def _pair(n: int = 2000, d: int = 2, rho: float = 0.7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, d, generator=generator, dtype=torch.float64)


def _audit(reads: Reads | None = None, prototype: Estimator | None = None, rho: float = 0.7) -> Audit:
    prototype = prototype or GaussianMI(copula=True)
    x, y = _pair(rho=rho)

    def again(other: Subject) -> float:
        return float(prototype.estimate(other.x, other.y)) if reads is None else reads(other.x, other.y, other.seed)

    subject = Subject(x, y)
    run = Run(value=again(subject), standard_error=0.02, report_rows=x.shape[0], independent=x.shape[0])
    return Audit(prototype, subject, run, 0.01, again, lambda sentence: None)


def _learned() -> InfoNCE:
    return InfoNCE(2, 2)


def _gaussian(x: Tensor, y: Tensor) -> float:
    return float(GaussianMI().estimate(x, y))


def test_a_good_instrument_passes_every_check() -> None:
    for check in audit.audit_checks(_audit()):
        assert check.outcome in ("pass", "not applicable"), check.sentence


BROKEN: list[tuple[str, Callable[[Audit], object], Reads, Estimator | None]] = [
    ("seeds", audit.seed_spread, lambda x, y, seed: 1.0 + 0.5 * math.sin(seed), _learned()),
    ("sizes", audit.subsample_slope, lambda x, y, seed: _gaussian(x, y) + 400 / x.shape[0], None),
    ("noise", audit.noise_says_nothing, lambda x, y, seed: 0.4, None),
    ("answer", audit.known_answer, lambda x, y, seed: 0.5 * _gaussian(x, y), _learned()),
    ("symmetry", audit.symmetry, lambda x, y, seed: float(x.square().mean()), None),
    ("scale", audit.reparametrisation, lambda x, y, seed: _gaussian(x, y) / (1 + float(x.std())), None),
    ("columns", audit.additivity, lambda x, y, seed: _gaussian(x, y) / x.shape[1], None),
    ("redundant", audit.redundancy, lambda x, y, seed: _gaussian(x, y) * x.shape[1], None),
]


@pytest.mark.parametrize(("what", "check", "reads", "prototype"), BROKEN, ids=[one[0] for one in BROKEN])
def test_a_broken_instrument_is_caught(
    what: str, check: Callable[[Audit], object], reads: Reads, prototype: Estimator | None
) -> None:
    found = check(_audit(reads, prototype))
    assert found.outcome in ("warn", "fail"), found.sentence


def test_the_audit_joins_the_verdict_and_tells_its_cost_first() -> None:
    told: list[str] = []
    x, y = _pair()
    measured = measure(x, y, "gaussian", audit=True, permutations=1, progress=told.append)
    names = [check.name for check in measured.checks]
    assert {"steady over sample sizes", "symmetric", "adds up", "noise says nothing"} <= set(names)
    assert measured.verdict == "trustworthy"
    costs = [sentence for sentence in told if "udit" in sentence]
    assert costs[0].startswith("The audit repeats the estimate up to 19 times")
    assert all("second" in sentence for sentence in costs)
    assert "adds up" not in [check.name for check in measure(x, y, "gaussian", permutations=0).checks]


def test_an_audit_does_not_move_the_number() -> None:
    x, y = _pair(600)
    plain, audited = (measure(x, y, "ksg", permutations=1, audit=wanted) for wanted in (False, True))
    assert (plain.value, plain.null) == (audited.value, audited.null)


def test_neighbours_that_lose_columns_do_not_add_up() -> None:
    x, y = _pair(1500, d=3, rho=0.8)
    measured = measure(x, y, KSG(), audit=True, permutations=0)
    assert next(check for check in measured.checks if check.name == "adds up").outcome == "warn"


def test_scale_decides_for_neighbours_that_do_not_standardise() -> None:
    x, y = _pair(800)
    for scale, outcome in ((True, "pass"), (False, "warn")):
        measured = measure(x, y, KSG(scale=scale), audit=True, permutations=0)
        assert next(c for c in measured.checks if c.name == "coordinates do not matter").outcome == outcome


def test_twice_more_than_the_ceiling_is_not_asked() -> None:
    assert audit.additivity(_audit(prototype=KSG(), rho=0.99)).outcome == "not applicable"


def test_labels_are_audited_where_that_makes_sense() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    x = np.eye(3)[labels] + rng.standard_normal((600, 3))
    measured = measure(x, labels=labels, estimator=LabelInformation, audit=True, permutations=0)
    outcomes = {check.name: check.outcome for check in measured.checks}
    assert outcomes["symmetric"] == outcomes["adds up"] == "not applicable"
    assert outcomes["seeds agree"] in ("pass", "warn")
    assert outcomes["noise says nothing"] == "pass"


def test_groups_stay_together_in_the_audit() -> None:
    x, y = _pair(1200)
    groups = np.repeat(np.arange(400), 3)
    measured = measure(x, y, "gaussian", groups=groups, audit=True, permutations=0)
    assert next(c for c in measured.checks if c.name == "adds up").outcome == "not applicable"
    assert next(c for c in measured.checks if c.name == "steady over sample sizes").outcome == "pass"


def test_a_trained_instrument_is_audited_whole() -> None:
    x, y = _pair(1000)
    told: list[str] = []
    measured = measure(
        x, y, "infonce", training=Training(steps=60, batch=128), permutations=0, audit=True, progress=told.append
    )
    outcomes = {check.name: check.outcome for check in measured.checks}
    assert outcomes["seeds agree"] != "not applicable"
    assert outcomes["known answer"] != "not applicable"
    assert any(sentence.startswith("Audit, seeds: 3 more estimates, about") for sentence in told)
