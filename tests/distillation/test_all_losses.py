"""Every loss under mixed precision, in an optimiser, in a state dict, in a compiled graph, and on batches it refuses.

The contract suite asks registered estimators more; here stand all losses that train a student, composites included, in
one table.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import mikit
from mikit.distillation.nested import tensors_in, with_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "costs"))
from losses import LOSSES, Batch, Case, Shapes, features

sys.path.pop(0)

SHAPES = Shapes()
FAR = 10.0
ALL = pytest.mark.parametrize("name", LOSSES)
pytestmark = pytest.mark.filterwarnings("ignore:.*classes in this batch have fewer samples")


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return the batch in another precision, the student's tensors with a gradient."""
    students = [one.detach().to(dtype).requires_grad_() for one in tensors_in(batch.student, "student")]
    teachers = [one.to(dtype) if one.is_floating_point() else one for one in tensors_in(batch.teacher, "teacher")]
    return Batch(with_tensors(batch.student, students), with_tensors(batch.teacher, teachers), batch.labels)


def value_of(case: Case, loss: nn.Module, batch: Batch, *, autocast: bool = False) -> float:
    """Return the loss of a copy, after a look that value and gradients are what they should be."""
    loss = copy.deepcopy(loss)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = case.called(loss, batch)
    assert value.ndim == 0
    assert value.dtype == torch.float32
    value.backward()
    gradients = [one.grad for one in [*tensors_in(batch.student, "student"), *loss.parameters()]]
    assert all(one is not None and bool(one.isfinite().all()) for one in gradients)
    assert any(bool((one.grad != 0).any()) for one in tensors_in(batch.student, "student"))
    return float(value.detach())


@ALL
def test_half_precision_far_from_the_origin(name: str) -> None:
    case = LOSSES[name]
    loss = case.built(features(case.form, SHAPES, 1, mean=FAR))
    batch = features(case.form, SHAPES, 2, mean=FAR)
    exact = value_of(case, loss, cast(batch, torch.float32))
    assert value_of(case, loss, cast(batch, torch.float32), autocast=True) == pytest.approx(exact, rel=1e-6)
    for autocast in (False, True):
        assert value_of(case, loss, cast(batch, torch.float16), autocast=autocast) == pytest.approx(exact, rel=1e-2)
    # Numbers near 10 lie 1/16 apart in bfloat16: what that does to the features is theirs, the loss adds nothing.
    aim = value_of(case, loss, cast(cast(batch, torch.bfloat16), torch.float32))
    assert value_of(case, loss, cast(batch, torch.bfloat16), autocast=True) == pytest.approx(aim, rel=1e-6)
    assert aim == pytest.approx(exact, rel=3e-2)


@ALL
def test_ten_steps_move_every_parameter_and_the_state_holds_them(name: str) -> None:
    case = LOSSES[name]
    loss = case.built(features(case.form, SHAPES, 1))
    groups = loss.param_groups()
    start = copy.deepcopy(loss.state_dict())
    if groups:
        optimizer = torch.optim.SGD(groups, lr=0.05)
        mikit.check_optimizer(optimizer, loss)
    else:
        assert not list(loss.parameters())
    for step in range(10):
        value = case.called(loss, cast(features(case.form, SHAPES, 10 + step), torch.float32))
        loss.zero_grad()
        value.backward()
        if groups:
            optimizer.step()
    state = loss.state_dict()
    still = [one for one, _ in loss.named_parameters() if torch.equal(state[one], start[one])]
    assert not still
    other = case.built(features(case.form, SHAPES, 99))
    other.load_state_dict(state)
    batch = features(case.form, SHAPES, 30)
    for one in (loss, other):
        one.eval()
    assert case.called(other, batch).item() == case.called(loss, batch).item()
    assert case.called(copy.deepcopy(loss), batch).item() == case.called(loss, batch).item()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # both raised by the compiler's own code
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name, case in LOSSES.items() if not case.breaks])
def test_the_compiler_keeps_one_graph(name: str) -> None:
    torch.compiler.reset()
    case = replace(LOSSES[name], draws=False)  # a generator cannot enter a graph; without one the global state draws
    loss = case.built(features(case.form, SHAPES, 1))
    eager = copy.deepcopy(loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (2, 3):
        found = []
        for one in (compiled, eager):
            torch.manual_seed(seed)
            batch = cast(features(case.form, SHAPES, seed), torch.float32)
            value = case.called(one, batch)
            value.backward()
            found.append([value.detach(), *(one.grad for one in tensors_in(batch.student, "student"))])
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(loss.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["DKD", "CRD, labels", "KD2M, energy with labels", "LabelInformation"])
def test_labels_are_looked_at_in_a_compiled_graph(name: str) -> None:
    torch.compiler.reset()
    case = LOSSES[name]
    loss = torch.compile(case.built(features(case.form, SHAPES, 1)), fullgraph=True, backend="aot_eager")
    batch = features(case.form, SHAPES, 2)
    case.called(loss, batch)
    wrong = torch.zeros_like(batch.labels) if name.startswith("CRD") else batch.labels + 1
    wrong_teacher = wrong if case.form == "classes" else batch.teacher
    with pytest.raises(mikit.InputError, match=r"one class|not one of the|no negative|not a class index"):
        case.called(loss, batch._replace(labels=wrong, teacher=wrong_teacher))


def test_the_page_says_why_the_others_break() -> None:
    page = (Path(__file__).parents[2] / "docs" / "everywhere.md").read_text()
    assert all(case.breaks in page for case in LOSSES.values())


@ALL
def test_a_batch_too_small_is_refused(name: str) -> None:
    case = LOSSES[name]
    loss = case.built(features(case.form, SHAPES, 1))
    if case.fewest > 1:
        with pytest.raises(mikit.InputError, match=r"at least|takes|singular"):
            case.called(loss, features(case.form, Shapes(rows=case.fewest - 1), 2))
    assert bool(torch.isfinite(case.called(loss, features(case.form, Shapes(rows=case.fewest), 2))))


@ALL
def test_rows_that_do_not_pair_up_are_refused(name: str) -> None:
    case = LOSSES[name]
    examples = features(case.form, SHAPES, 1)
    loss = case.built(examples)
    short = with_tensors(examples.teacher, [one[:-1] for one in tensors_in(examples.teacher, "teacher")])
    batch = examples._replace(teacher=short)
    if not case.pairs:
        assert bool(torch.isfinite(case.called(loss, batch)))  # laws of samples of two sizes
        return
    with pytest.raises(mikit.InputError, match=r"44.*45|45.*44"):
        case.called(loss, batch)


@pytest.mark.parametrize("name", [name for name, case in LOSSES.items() if case.labels == "needed"])
def test_missing_labels_are_told(name: str) -> None:
    case = LOSSES[name]
    loss = case.built(features(case.form, SHAPES, 1))
    with pytest.raises(mikit.InputError, match=r"(?i)labels=|class indices"):
        case.called(loss, features(case.form, SHAPES, 1)._replace(labels=None))


def test_every_public_loss_is_in_the_table() -> None:
    built = {type(case.built(features(case.form, SHAPES, 1))).__name__ for case in LOSSES.values()}
    public = {name: getattr(mikit, name) for name in mikit.__all__}
    losses = {
        name
        for name, made in public.items()
        if isinstance(made, type) and issubclass(made, nn.Module) and getattr(made, "differentiable", True)
    }
    assert losses - built == {"Estimator", "LayerPairs"}  # the base, and what holds losses
