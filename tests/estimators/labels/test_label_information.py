"""LabelInformation as a loss and as an estimator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mikit
from mikit.core.errors import InputError
from mikit.core.rows import split_folds
from mikit.estimators.labels.label_information import LabelInformation, rotated_information
from mikit.functional.labels.linear_probes import label_entropy


def _classes(n: int, d: int, classes: int, *, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    return spread * torch.randn(classes, d, generator=g)[y] + torch.randn(n, d, generator=g), y


@pytest.mark.parametrize("probe", ["logistic", "lda"])
def test_measure_gives_at_most_the_label_entropy_and_nothing_for_shuffled_labels(probe: str) -> None:
    x, y = _classes(3000, 4, 3, spread=1.0)
    m = mikit.measure(x, labels=y, estimator=LabelInformation(probe), rotations=5)
    assert m.unit == "nats"
    assert m.kind == "V-information"
    assert 0.3 < m.value < label_entropy(y.numpy())
    shuffled = y[torch.randperm(3000, generator=torch.Generator().manual_seed(1))]
    null = mikit.measure(x, labels=shuffled, estimator=LabelInformation(probe), rotations=5, permutations=0)
    assert null.standard_error is not None
    # A probe with 4 columns and 3 classes loses about 8 / 2 / 1,800 nats on labels it cannot know.
    assert -0.006 - 3 * null.standard_error < null.value < 3 * null.standard_error


def test_perfect_features_reach_the_label_entropy_and_never_pass_it() -> None:
    _, y = _classes(2000, 2, 4, spread=1.0)
    x = torch.nn.functional.one_hot(y, 4).float() + 0.01 * torch.randn(
        2000, 4, generator=torch.Generator().manual_seed(2)
    )
    found = rotated_information(x.numpy(), y.numpy(), [p.numpy() for p in _folds(2000)], classes=4)
    entropy = label_entropy(y.numpy())
    assert entropy - 0.05 < found.value < entropy + 2 * found.standard_error


def _folds(n: int) -> list[torch.Tensor]:
    return split_folds(n, 5, generator=torch.Generator().manual_seed(0))


def test_loss_is_minus_the_estimate_and_its_gradient_teaches_the_student() -> None:
    x, y = _classes(400, 3, 2, spread=1.0)
    probe = LabelInformation.between(x, y)
    leaf = x.clone().requires_grad_()
    loss = probe(leaf, y)
    assert float(loss.detach()) == pytest.approx(-float(probe.estimate(x, y)), abs=1e-6)
    loss.backward()
    assert leaf.grad is not None
    better = probe(x - 10 * leaf.grad / leaf.grad.abs().max(), y)
    assert float(better.detach()) < float(loss.detach())
    assert torch.autograd.gradcheck(lambda v: probe.double()(v, y[:20]), (x[:20].double().requires_grad_(),))


def test_parameters_are_the_same_objects_after_fit_and_the_bias_is_not_decayed() -> None:
    x, y = _classes(500, 3, 2, spread=1.0)
    probe = LabelInformation.between(x, y)
    weights, bias = probe.weights, probe.bias
    before = weights.detach().clone()
    probe.fit(x[:300], y[:300], select=(x[300:400], y[300:400]), generator=torch.Generator())
    assert probe.weights is weights
    assert not torch.equal(before, weights.detach())
    groups = probe.param_groups()
    assert groups[0]["params"] == [weights]
    assert groups[1]["params"] == [bias]
    assert groups[1]["weight_decay"] == 0.0


def test_refusals() -> None:
    x, y = _classes(100, 3, 3, spread=1.0)
    with pytest.raises(InputError, match='probe is "forest"'):
        LabelInformation("forest")
    with pytest.raises(InputError, match="no probe yet"):
        LabelInformation().estimate(x, y)
    with pytest.raises(InputError, match="no sample in the part"):
        LabelInformation.between(x, torch.where(y == 1, 2, y))
    probe = LabelInformation.between(x, y)
    with pytest.raises(InputError, match="select part"):
        probe.fit(x, y, generator=torch.Generator())
    with pytest.raises(InputError, match="Row 4 has class 3"):
        probe.estimate(x[:5], torch.tensor([0, 1, 2, 0, 3]))
    with pytest.raises(InputError, match="needs 3 features"):
        probe.estimate(x[:, :2], y)
    with pytest.raises(InputError, match="one class index per sample"):
        probe.estimate(x, y.float())


@pytest.mark.parametrize("probe", ["logistic", "lda"])
def test_rotation_holds_every_row_out_once(probe: str) -> None:
    x, y = (v.numpy() for v in _classes(400, 3, 2, spread=0.7))
    parts = [p.numpy() for p in _folds(400)]
    found = rotated_information(x, y, parts, classes=2, probe=probe)
    assert found.fits == 5
    assert found.converged == 5
    assert found.fit_value > found.value
    # The row's own label never reaches the probe that judges it: flipping one label changes only probes elsewhere.
    row = int(parts[0][0])
    flipped = y.copy()
    flipped[row] = 1 - y[row]
    other = rotated_information(x, flipped, parts, classes=2, probe=probe)
    rest = np.setdiff1d(parts[0], [row])
    assert np.allclose(found.pointwise[rest], other.pointwise[rest], atol=1e-12)
    assert not np.allclose(found.pointwise[parts[1]], other.pointwise[parts[1]], atol=1e-12)


def test_rotation_refuses_parts_that_overlap_or_miss_rows() -> None:
    x, y = (v.numpy() for v in _classes(90, 2, 2, spread=1.0))
    thirds = np.array_split(np.arange(90), 3)
    with pytest.raises(InputError, match="exactly once"):
        rotated_information(x, y, [thirds[0], thirds[1], thirds[1]], classes=2)
    with pytest.raises(InputError, match="There are 2 parts; at least 3 are needed"):
        rotated_information(x, y, np.array_split(np.arange(90), 2), classes=2)


def test_a_large_offset_costs_nothing() -> None:
    x, y = _classes(1000, 3, 2, spread=1.0)
    x = x.double()
    values = []
    for moved in (x, x + 1e6):
        probe = LabelInformation.between(moved, y)
        probe.fit(moved[:600], y[:600], select=(moved[600:800], y[600:800]), generator=torch.Generator())
        values.append(float(probe.estimate(moved[800:], y[800:])))
    assert values[0] == pytest.approx(values[1], abs=1e-6)
