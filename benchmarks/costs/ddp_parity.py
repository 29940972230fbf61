"""Differences between losses and gradients of several ranks and those of one process with the whole batch.

Every loss is computed with ``AcrossRanks`` from uneven numbers of samples per rank; gradients of the student's weights
and of the loss's own parameters and its buffers are compared after averaging over ranks, as in data-parallel training.
The last column shows the plain mean of each rank's own loss for comparison. Then a student with three losses is trained
for three steps with ``DistributedDataParallel``, the last batch uneven, and the same in one process; and a batch is
passed through it in chunks. Backend Gloo, on one machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from losses import LOSSES, Batch, Case, Shapes, features
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import mikit
from mikit.distillation.nested import tensors_in, with_tensors

SIZES = {1: (45,), 2: (27, 18), 4: (14, 13, 11, 7)}
BARS = {"float64": 1e-10, "float32": 1e-5}
THROUGH = "three steps through DistributedDataParallel"
CHUNKED = "CRD, chunks of five rows through DistributedDataParallel"
LABELLED = "KD2M, energy with each side's logits and sizes"


def rows_of_rank(nest: Any, rank: int, sizes: Sequence[int]) -> Any:
    """Return a rank's samples of every tensor."""
    start = sum(sizes[:rank])
    return with_tensors(nest, [one[start : start + sizes[rank]] for one in tensors_in(nest, "features")])


def student_weights(batch: Batch) -> list[Tensor]:
    """Return a matrix for each of the student's tensors, near the identity, with a gradient."""
    g = torch.Generator().manual_seed(11)
    widths = [(one.shape[1], one.dtype) for one in tensors_in(batch.student, "student")]
    return [(torch.eye(d) + 0.2 * torch.randn(d, d, generator=g)).to(dtype).requires_grad_() for d, dtype in widths]


def through(weights: Sequence[Tensor], student: Any) -> Any:
    """Return the student's features after a linear map of the features or channels and a softplus.

    Without the softplus, measures that are invariant to linear maps would have no gradient in the weights to compare.
    """
    pairs = zip(tensors_in(student, "student"), weights, strict=True)
    mapped = [torch.tensordot(one, w, dims=([1], [0])).movedim(-1, 1) for one, w in pairs]
    return with_tensors(student, [nn.functional.softplus(one) for one in mapped])


def evaluated(case: Case, loss: nn.Module, batch: Batch) -> list[list[Tensor]]:
    """Return the value, the gradients of student weights and of the loss's parameters, and its buffers."""
    weights = student_weights(batch)
    torch.manual_seed(9)  # for dropout inside a loss, which must be the same on all ranks
    value = case.called(loss, batch._replace(student=through(weights, batch.student)))
    value.backward()
    gradients = [[one.grad for one in some if one.grad is not None] for some in (weights, list(loss.parameters()))]
    buffers = [one.double() for one in loss.buffers() if one.is_floating_point()]
    return [[value.detach()], *gradients, buffers]


def averaged(found: list[list[Tensor]]) -> list[list[Tensor]]:
    """Return the means over ranks."""
    for some in found:
        for one in some:
            distributed.all_reduce(one)
            one.div_(distributed.get_world_size())
    return found


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor], *, least: float = 0.0) -> float:
    """Return the largest difference of any rank, relative to the largest number."""
    if not wanted:
        return 0.0
    pairs = list(zip(found, wanted, strict=True))
    # Values that were never measured are nan, and unlimited values infinite, on both sides.
    apart = [torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).flatten() for a, b in pairs]
    sizes = [b[b.isfinite()].abs().flatten() for _, b in pairs]
    worst, size = (float(torch.cat([*some, torch.zeros(1)]).max()) for some in (apart, sizes))
    largest = torch.tensor([worst / (max(size, least) or 1.0)], dtype=torch.float64)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return float(largest)


def parity(case: Case, dtype: torch.dtype, sizes: Sequence[int]) -> dict[str, float | None]:
    """Return the distances of one loss from that of one process."""
    rank = distributed.get_rank()
    shapes = Shapes(rows=sum(sizes))
    loss = case.built(features(case.form, shapes, 1, dtype=dtype)).to(dtype)
    whole = features(case.form, shapes, 2, dtype=dtype)
    part = Batch(*rows_of_rank(tuple(whole), rank, sizes))
    wanted = evaluated(case, copy.deepcopy(loss), whole)
    found = averaged(evaluated(case, mikit.distillation.AcrossRanks(copy.deepcopy(loss)), part))
    names = ("value", "student", "parameters", "state")
    result: dict[str, float | None] = {
        name: distance(a, b, least=1.0 if name == "value" else 0.0)
        for name, a, b in zip(names, found, wanted, strict=True)
    }
    try:
        alone = evaluated(case, copy.deepcopy(loss), part)
    except mikit.InputError:
        alone = []
    refused = torch.tensor([float(not alone)])
    distributed.all_reduce(refused)
    result["without"] = None if float(refused) else distance(averaged(alone[:2])[1], wanted[1])
    return result


def networks(dtype: torch.dtype) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a student and a teacher, without batch normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = [
            nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
            for width in (6, 12)
        ]
    return made[0].to(dtype), made[1].to(dtype).eval()


class Step(nn.Module):
    """The student with its losses and the loss of the task, as one module to wrap."""

    def __init__(self, pairs: mikit.LayerPairs, task: nn.Module) -> None:
        super().__init__()
        self.pairs = pairs
        self.task = task

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the whole loss of a batch."""
        logits, loss, _ = self.pairs(inputs, labels)
        value: Tensor = self.task(logits, labels) + loss
        return value


def trained(dtype: torch.dtype, dealt: Sequence[Sequence[int]] | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return losses and final state of three steps, with samples divided among ranks or all in one process."""
    student, teacher = networks(dtype)
    g = torch.Generator().manual_seed(6)
    batches = [
        (torch.randn(n, 8, generator=g, dtype=torch.float64).to(dtype), torch.arange(n) % 4) for n in (45, 45, 23)
    ]
    wanted = {
        ("1", "1"): mikit.VID,
        ("3", "3"): partial(mikit.KD2M.between, conditional="class", classes=4),
        ("4", "4"): mikit.PKT,
    }
    task: nn.Module = nn.CrossEntropyLoss()
    with torch.random.fork_rng():
        torch.manual_seed(8)
        pairs = mikit.LayerPairs(student, teacher, wanted, example=batches[0][0], across_ranks=dealt is not None).to(
            dtype
        )
    step: nn.Module = Step(pairs, task if dealt is None else mikit.distillation.AcrossRanks(task))
    if dealt is not None:
        step = DistributedDataParallel(step)
    optimizer = torch.optim.SGD(pairs.param_groups(), lr=0.05, momentum=0.9)
    values = []
    for index, (inputs, labels) in enumerate(batches):
        if dealt is not None:
            inputs, labels = rows_of_rank((inputs, labels), distributed.get_rank(), dealt[index])
        optimizer.zero_grad()
        value = step(inputs, labels)
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return values, [one for one in pairs.state_dict().values() if one.is_floating_point()]


def trained_apart(dtype: torch.dtype, sizes: Sequence[int]) -> dict[str, float | None]:
    """Return the distances of a student trained through data-parallel training from one that was not."""
    short = [-(-size // 2) for size in sizes[:-1]]
    dealt = [sizes, sizes, [*short, 23 - sum(short)]]
    found, wanted = trained(dtype, dealt), trained(dtype, None)
    return {
        "value": distance(found[0], wanted[0], least=1.0),
        "student": distance(found[1], wanted[1]),
        "parameters": 0.0,
        "state": distance(found[1], wanted[1]),
        "without": None,
    }


def chunked_apart(dtype: torch.dtype, sizes: Sequence[int]) -> dict[str, float | None]:
    """Return the distances of a batch in chunks, of the student and its loss, from that batch in one process."""
    rank = distributed.get_rank()
    student, teacher = networks(dtype)
    inputs = torch.randn(sum(sizes), 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)
    aims = teacher(inputs).detach()
    kd = mikit.CRD.between(student(inputs).detach(), aims, generator=torch.Generator().manual_seed(8)).to(dtype)
    other, other_kd = copy.deepcopy(student), copy.deepcopy(kd)
    part, part_aims = rows_of_rank((inputs, aims), rank, sizes)
    across = mikit.distillation.AcrossRanks(kd)
    network = DistributedDataParallel(student)
    value = mikit.distillation.chunked_backward(network, part, lambda out: across(out, part_aims), rows=5)
    wanted = other_kd(other(inputs), aims)
    wanted.backward()
    found = [[one.grad for one in module.parameters()] for module in (student, kd, other, other_kd)]
    return {
        "value": distance([value], [wanted.detach()], least=1.0),
        "student": distance(found[0], found[2]),
        "parameters": distance(found[1], found[3]),
        "state": 0.0,
        "without": None,
    }


def labelled_apart(dtype: torch.dtype, sizes: Sequence[int]) -> dict[str, float | None]:
    """Return the differences of a loss with separate logits of both sides, the teacher two samples per rank fewer."""
    rank = distributed.get_rank()
    g = torch.Generator().manual_seed(6)
    fewer = [size - 2 for size in sizes]
    student, teacher = (torch.randn(sum(some), 6, generator=g).to(dtype) for some in (sizes, fewer))
    own_logits, aims = (torch.randn(sum(some), 4, generator=g).to(dtype) for some in (sizes, fewer))
    kd = mikit.KD2M.between(student, teacher, metric="energy", conditional="joint", labels=aims.softmax(1)).to(dtype)

    def formed(loss: nn.Module, student: Tensor, logits: Tensor, teacher: Tensor, aims: Tensor) -> list[list[Tensor]]:
        weights = [(0.5 * torch.eye(width)).to(dtype).requires_grad_() for width in (6, 4)]
        value = loss(student @ weights[0], teacher, student_labels=logits @ weights[1], teacher_labels=aims)
        value.backward()
        return [[value.detach()], [one.grad for one in weights if one.grad is not None]]

    wanted = formed(kd, student, own_logits, teacher, aims)
    part = (*rows_of_rank((student, own_logits), rank, sizes), *rows_of_rank((teacher, aims), rank, fewer))
    found = averaged(formed(mikit.distillation.AcrossRanks(kd), *part))
    return {
        "value": distance(found[0], wanted[0], least=1.0),
        "student": distance(found[1], wanted[1]),
        "parameters": 0.0,
        "state": 0.0,
        "without": distance(averaged(formed(kd, *part))[1], wanted[1]),
    }


WHOLE = {LABELLED: labelled_apart, THROUGH: trained_apart, CHUNKED: chunked_apart}


def worker(rank: int, ranks: int, names: Sequence[str], folder: str) -> None:
    """Do all of one rank's work; rank 0 writes it down."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*classes in this batch have fewer samples.*")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet{ranks}", rank=rank, world_size=ranks)
    found = {}
    for name in names:
        for dtype in (torch.float64, torch.float32):
            compare = WHOLE[name] if name in WHOLE else partial(parity, LOSSES[name])
            done = compare(dtype, SIZES[ranks])
            found[f"{name} | {str(dtype).removeprefix('torch.')} | {ranks}"] = done
    if rank == 0:
        Path(folder, f"{ranks}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def measured(ranks: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return all distances, by loss, precision and number of ranks."""
    found: dict[str, dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in ranks:
            # A fork spares each rank the import, which takes longer than all of its work.
            method = "fork" if sys.platform == "linux" else "spawn"
            start_processes(worker, args=(count, list(names), folder), nprocs=count, start_method=method)
            found |= json.loads(Path(folder, f"{count}.json").read_text())
    return found


def over(found: dict[str, dict[str, float | None]]) -> list[str]:
    """Return what lies above its bar."""
    return [
        f"{name}: {what} {value:.1e}"
        for name, figures in found.items()
        for what, value in figures.items()
        if what != "without" and value is not None and not value <= BARS[name.split(" | ")[1]]
    ]


def table(found: dict[str, dict[str, float | None]], ranks: Sequence[int], names: Sequence[str]) -> str:
    """Return the results as a Markdown page part."""
    dealt = ", ".join(" + ".join(map(str, SIZES[count])) for count in ranks if count > 1)
    heads = [f"{dtype}, {count} rank{'s' * (count > 1)}" for dtype in BARS for count in ranks]
    lines = [
        f"{SIZES[1][0]} rows, dealt as {dealt}. Value, and worst of the gradients of the student's weights and of "
        "the loss's own parameters, and of the buffers after the step: largest difference from one process, relative "
        "to the largest number compared, or to 1 for values below 1. Last: that of the student's gradient where each "
        f"of {max(ranks)} ranks forms the loss of its own rows.",
        "",
        f"| loss | {' | '.join(heads)} | without the gather |",
        f"|---|{'---|' * (len(heads) + 1)}",
    ]
    for name in names:
        cells = []
        for dtype in BARS:
            for count in ranks:
                one = found[f"{name} | {dtype} | {count}"]
                worst = max(float(one[what] or 0) for what in ("student", "parameters", "state"))
                cells.append(f"{float(one['value'] or 0):.0e}, {worst:.0e}".replace("0e+00", "0"))
        without = found[f"{name} | float64 | {max(ranks)}"]["without"]
        plain = f"{without:.0%}" if without is not None else "" if name in WHOLE else "refuses"
        lines.append(f"| {name} | {' | '.join(cells)} | {plain} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare, print the table and what is above its bar, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", choices=sorted(SIZES), default=sorted(SIZES))
    parser.add_argument("--losses", nargs="+", choices=[*LOSSES, *WHOLE], default=[*LOSSES, *WHOLE], metavar="LOSS")
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md as well.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(given.ranks, given.losses)
    written = table(found, given.ranks, given.losses)
    print(written)
    missed = over(found)
    bars = " and ".join(f"{bar:.0e} in {dtype}" for dtype, bar in BARS.items())
    print(f"Bars: {bars}. Above: {'; '.join(missed) or 'none'}.")
    if given.out is not None:
        given.out.with_suffix(".md").write_text(written)
        given.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
