"""Losses and gradients of several ranks are those of one process: in processes of their own, joined by gloo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import mikit
from mikit.distillation import across_ranks as gather
from mikit.distillation.across_ranks import AcrossRanks, gathered_rows
from mikit.distillation.nested import tensors_in, with_tensors

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "costs" / "ddp_parity.py"
THROUGH = "three steps through DistributedDataParallel"
CHUNKED = "CRD, chunks of five rows through DistributedDataParallel"
LABELLED = "KD2M, energy with each side's logits and sizes"


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    names = ["VID, learned variance", "MIMKD, labels", "PKT", "KD2M, MMD by class", "SlicedWasserstein", LABELLED]
    names += [THROUGH, CHUNKED]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--ranks", "2", "--out", str(tmp_path / "found"), "--losses", *names],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2 * len(names)
    for name in names[:-2]:
        for dtype, bar in (("float64", 1e-10), ("float32", 1e-5)):
            figures = found[f"{name} | {dtype} | 2"]
            assert max(figures[what] for what in ("value", "student", "parameters", "state")) <= bar
            assert figures["without"] > 0.01  # without the gather, the comparison would fail


@pytest.mark.slow
def test_the_example_on_the_page_runs(tmp_path: Path) -> None:
    page = (SCRIPT.parents[2] / "docs" / "everywhere.md").read_text()
    (script,) = (
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "init_process_group" in block
    )
    (tmp_path / "train.py").write_text(script)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "train.py")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    first, second = sorted(re.findall(r"rank (\d): (-?\d+\.\d+)", run.stdout))
    assert (first[0], second[0]) == ("0", "1")
    assert first[1] == second[1]  # student and losses are the same on both ranks


@pytest.mark.slow
def test_every_loss_on_one_two_and_four_ranks() -> None:
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


def test_one_process_is_the_loss_itself() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 12, 3, generator=g)
    labels = torch.arange(12) % 3
    crd = mikit.CRD.between(x, y, generator=g)
    loss = AcrossRanks(crd)
    assert loss(x, y, labels=labels).item() == crd(x, y, labels=labels).item()
    assert loss.param_groups()[0]["params"] == crd.param_groups()[0]["params"]
    assert AcrossRanks(nn.CrossEntropyLoss())(x, labels).item() == nn.functional.cross_entropy(x, labels).item()
    assert AcrossRanks(nn.MSELoss()).param_groups() == []
    kd = mikit.KD2M(conditional="joint", label_weight=2.0, scale=None)
    sides = {"student_labels": torch.randn(12, 3, generator=g), "teacher_labels": torch.randn(12, 3, generator=g)}
    assert AcrossRanks(kd)(x, y, **sides).item() == kd(x, y, **sides).item()
    told = {name: one.clone().requires_grad_() for name, one in sides.items()}
    AcrossRanks(kd)(x, y, **told).backward()
    assert told["student_labels"].grad is not None
    assert told["teacher_labels"].grad is None
    teacher = y.clone().requires_grad_()
    assert AcrossRanks(nn.MSELoss())(x.requires_grad_(), teacher).backward() is None
    assert teacher.grad is None


def test_nests_keep_their_form() -> None:
    Pair = namedtuple("Pair", "a b")
    one, two = torch.ones(2), torch.zeros(3)
    given = {"x": Pair(one, [two]), "y": (one,)}
    assert [len(tensor) for tensor in tensors_in(given, "given")] == [2, 3, 2]
    back = with_tensors(given, [two, one, one])
    assert isinstance(back["x"], Pair)
    assert back["x"].a is two
    assert back["x"].b[0] is one
    assert isinstance(back["y"], tuple)


def test_ranks_that_do_not_fit_are_told_before_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(gather, "_from_all_ranks", lambda own: [own, own + 1])
    with pytest.raises(mikit.InputError, match=r"Ranks 0 and 1 pass .* Rank 1 passes float32 \(n, 3\), int64 \(n\)"):
        gathered_rows((torch.ones(2, 3), torch.ones(2, dtype=torch.long)))


def test_what_cannot_be_gathered_is_refused() -> None:
    x = torch.ones(4, 2)
    with pytest.raises(mikit.InputError, match="loss is a function; AcrossRanks wraps"):
        AcrossRanks(nn.functional.mse_loss)
    with pytest.raises(mikit.InputError, match="A single number cannot be gathered"):
        gathered_rows(torch.tensor(1.0))
    with pytest.raises(mikit.InputError, match=r"rows\['a'\] is a float"):
        gathered_rows({"a": 1.0})
    with pytest.raises(mikit.InputError, match="The loss MMD takes no labels"):
        AcrossRanks(mikit.MMD())(x, x, labels=torch.arange(4))
    with pytest.raises(mikit.InputError, match="The loss CRD takes no teacher_labels"):
        AcrossRanks(mikit.CRD.between(x, x))(x, x, teacher_labels=x)
