"""LabelInformation with a hidden layer and with neighbors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import mikit
from mikit.core.errors import InputError
from mikit.estimators.labels.label_information import LabelInformation, rotated_information
from mikit.functional.labels.nonlinear_probes import fit_neighbor_probe
from mikit.testing import check_estimator


def _quadrants(n: int, d: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The sign of the product of two columns, one in ten flipped: log 2 less the entropy of that flip, 0.368 nats."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x, (x[:, 0] * x[:, 1] > 0).long() ^ (torch.rand(n, generator=g) < 0.1)


TRUTH = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)


@pytest.mark.parametrize("probe", ["mlp", "knn"])
def test_it_keeps_the_contract(probe: str) -> None:
    check_estimator(LabelInformation(probe))


def test_linear_is_the_logistic_probe() -> None:
    assert LabelInformation("linear").describe() == LabelInformation().describe()
    x, y = _quadrants(300, 2)
    linear, logistic = (LabelInformation.between(x, y, probe=name) for name in ("linear", "logistic"))
    assert torch.equal(linear.estimate(x, y), logistic.estimate(x, y))


@pytest.mark.parametrize("probe", ["mlp", "knn"])
def test_it_reads_what_no_linear_probe_can(probe: str) -> None:
    x, y = _quadrants(4000, 2)
    m = mikit.measure(x, labels=y, estimator=LabelInformation(probe))
    assert m.kind == "V-information"
    assert m.standard_error is not None
    # The probe falls short by some hundredths along the axes; 800 rows report.
    assert TRUTH - 0.06 - 3 * m.standard_error < m.value < TRUTH + 3 * m.standard_error
    assert m.verdict == "trustworthy", m.reasons
    linear = mikit.measure(x, labels=y, estimator=LabelInformation("linear"))
    assert linear.value < 0.02


@pytest.mark.parametrize("probe", ["mlp", "knn"])
def test_held_out_values_are_those_of_the_probe(probe: str) -> None:
    x, y = _quadrants(600, 3)
    estimator = LabelInformation(probe)
    estimator = estimator.fresh(x[:300], y[:300], generator=torch.Generator().manual_seed(0))
    record = estimator.fit(
        x[:300], y[:300], select=(x[300:450], y[300:450]), generator=torch.Generator().manual_seed(1)
    )
    held_out = estimator.pointwise(x[450:], y[450:]).detach()
    assert float(held_out.mean()) == pytest.approx(float(estimator.estimate(x[450:], y[450:])), abs=1e-6)
    assert record.stopped_early
    if probe == "knn":
        fitted = fit_neighbor_probe(
            x[:300].numpy(), y[:300].numpy(), 2, select=(x[300:450].numpy(), y[300:450].numpy())
        )
        np.testing.assert_allclose(held_out, fitted.information(x[450:].numpy(), y[450:].numpy()), atol=1e-9)
        np.testing.assert_allclose(
            estimator.pointwise(x[:300], y[:300]), fitted.information(x[:300].numpy(), y[:300].numpy()), atol=1e-9
        )


def test_neighbors_have_no_gradient_and_a_state_that_travels() -> None:
    x, y = _quadrants(500, 2)
    estimator = LabelInformation.between(x, y, probe="knn")
    with pytest.raises(TypeError, match="no gradient"):
        estimator(x, y)
    assert not estimator.differentiable
    assert list(estimator.parameters()) == []
    assert estimator.param_groups() == []
    estimator.fit(x[:200], y[:200], select=(x[200:300], y[200:300]), generator=torch.Generator())
    other = LabelInformation.between(x[:90], y[:90], probe="knn")
    other.load_state_dict(estimator.state_dict())
    assert torch.equal(other.estimate(x[300:], y[300:]), estimator.estimate(x[300:], y[300:]))


def test_the_hidden_layer_trains_along_as_a_loss() -> None:
    x, y = _quadrants(500, 2)
    probe = LabelInformation.between(x, y, probe="mlp")
    assert [p.shape for p in probe.param_groups()[0]["params"]] == [(2, 256), (256, 2)]
    assert [p.shape for p in probe.param_groups()[1]["params"]] == [(256,), (2,)]
    assert probe.param_groups()[1]["weight_decay"] == 0.0
    leaf = x.clone().requires_grad_()
    loss = probe(leaf, y)
    assert float(loss.detach()) == pytest.approx(-float(probe.estimate(x, y)), abs=1e-6)
    loss.backward()
    assert leaf.grad is not None
    better = probe(x - 0.1 * leaf.grad / leaf.grad.abs().max(), y)
    assert float(better.detach()) < float(loss.detach())
    weights = probe.hidden_weights
    probe.fit(x[:300], y[:300], select=(x[300:], y[300:]), generator=torch.Generator().manual_seed(0))
    assert probe.hidden_weights is weights


@pytest.mark.parametrize("probe", ["mlp", "knn"])
def test_every_row_is_held_out_once(probe: str) -> None:
    x, y = (v.numpy() for v in _quadrants(900, 2))
    parts = np.array_split(np.random.default_rng(0).permutation(900), 3)
    found = rotated_information(x, y, parts, classes=2, probe=probe)
    assert found.fits == 3
    assert found.pointwise.shape == (900,)
    assert 0.1 < found.value < TRUTH + 3 * found.standard_error


@pytest.mark.parametrize(("probe", "outcome"), [("logistic", "warn"), ("mlp", "pass")])
def test_a_probe_that_misses_what_neighbors_find_is_reported(probe: str, outcome: str) -> None:
    x, y = _quadrants(2000, 2, seed=7)
    estimator = LabelInformation(probe)
    generator = torch.Generator().manual_seed(0)
    estimator.fit(x[:800], y[:800], select=(x[800:1200], y[800:1200]), generator=generator)
    with torch.no_grad():
        (check,) = estimator.checks(x[1200:], y[1200:])
    assert (check.name, check.outcome) == ("neighbours find no more", outcome)
    assert check.figure is not None
    assert check.figure > 0.2 if outcome == "warn" else check.figure < 0.05


def test_neighbors_are_not_asked_of_few_rows_or_of_themselves() -> None:
    x, y = _quadrants(600, 2, seed=8)
    estimator = LabelInformation("lda")
    generator = torch.Generator().manual_seed(0)
    estimator.fit(x[:200], y[:200], select=(x[200:400], y[200:400]), generator=generator)
    (check,) = estimator.checks(x[400:], y[400:])
    assert check.outcome == "not applicable"
    assert LabelInformation("knn").checks(x, y) == ()


def test_refusals() -> None:
    x, y = _quadrants(50, 2)
    with pytest.raises(InputError, match='probe is "forest"; it must be logistic, lda, mlp or knn'):
        LabelInformation("forest")
    for probe in ("mlp", "knn"):
        with pytest.raises(InputError, match="no probe yet"):
            LabelInformation(probe).estimate(x, y)
        built = LabelInformation.between(x, y, probe=probe)
        with pytest.raises(InputError, match="needs 2 features"):
            built.estimate(x[:, :1], y)
        with pytest.raises(InputError, match="has class 2"):
            built.estimate(x, y + 1)


@pytest.mark.gpu
@pytest.mark.parametrize("probe", ["mlp", "knn"])
def test_a_gpu_gives_the_same(probe: str) -> None:
    x, y = _quadrants(600, 3)
    values = []
    for device in ("cpu", "cuda"):
        u, v = x.to(device), y.to(device)
        estimator = LabelInformation.between(u, v, probe=probe)
        estimator.fit(u[:300], v[:300], select=(u[300:450], v[300:450]), generator=torch.Generator().manual_seed(1))
        values.append(float(estimator.estimate(u[450:], v[450:])))
    assert values[0] == pytest.approx(values[1], abs=1e-4)
