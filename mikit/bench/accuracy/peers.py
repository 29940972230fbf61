"""Comparison of mikit and other libraries on tasks with known mutual information: same samples, default settings."""

from __future__ import annotations

import json
import math
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import torch

from mikit.bench.accuracy.folder import Key, described, keep, read_estimates, sentence_of
from mikit.bench.accuracy.results import AccuracyReport, Estimate
from mikit.bench.accuracy.run import Plan, measure_accuracy
from mikit.bench.distributions.suites import task_named
from mikit.bench.distributions.task import Task
from mikit.bench.machine import describe_machine
from mikit.bench.peers.interpreters import Interpreters, require_worker
from mikit.bench.peers.peers import MissingError
from mikit.core.errors import InputError
from mikit.core.progress import Stages
from mikit.core.provenance import library_versions

__all__ = ["PEER_ESTIMATORS", "Comparison", "MissingPeer", "PeerEstimator", "PeerPlan", "choose_peers", "compare"]


@final
@dataclass(frozen=True)
class PeerEstimator:
    """An estimator of a peer, and how it is called; ``one_column`` if it accepts only one feature per side."""

    peer: str
    name: str
    settings: str
    one_column: bool = False

    @property
    def title(self) -> str:
        """Names of the peer and the estimator."""
        return f"{self.peer} {self.name}"

    def not_for(self, task: Task) -> str:
        """Return the reason why it does not apply to a task; empty if it does."""
        if self.one_column and (task.d_x, task.d_y) != (1, 1):
            return f"it accepts one feature per side, and this task has {task.d_x} and {task.d_y}"
        if "discrete" in task.kinds:
            return "it is for continuous variables, and a variable of this task is discrete"
        return ""


PEER_ESTIMATORS = (
    PeerEstimator("scikit-learn", "KSG", "mutual_info_regression, k = 3; never below 0", one_column=True),
    PeerEstimator("benchmark-mi", "CCA", "CCAMutualInformationEstimator"),
    PeerEstimator(
        "benchmark-mi", "KSG", "KSGEnsembleFirstEstimator, standardized, mean of k = 5 and 10; never below 0"
    ),
    PeerEstimator(
        "benchmark-mi",
        "InfoNCE",
        "InfoNCEEstimator, standardized, layers of 16 and 8, 10,000 steps on half of the samples, value on the rest",
    ),
    PeerEstimator("NPEET", "KSG", "mi, k = 3"),
    PeerEstimator("infomeasure", "KSG", 'mutual_information(approach="ksg"), k = 4, not standardized'),
    PeerEstimator("frites", "GCMI", "gcmi_nd_cc: Gaussian copula with bias correction; bits converted to nats"),
    PeerEstimator(
        "torch-mist", "SMILE", "estimate_mi, its default; up to 5,000 steps on four fifths, evaluated on the last fifth"
    ),
    PeerEstimator("torch-mist", "MINE", "estimate_mi; up to 5,000 steps on four fifths, evaluated on the last fifth"),
    PeerEstimator(
        "latentmi",
        "LMI",
        "lmi.estimate: 8 latents per side, trained on half of the samples, KSG on the rest; bits converted to nats",
    ),
)
"""All estimators of peers, with their documented defaults."""

_REQUIREMENTS = {
    "scikit-learn": "scikit-learn",
    "benchmark-mi": "benchmark-mi 'jax==0.4.30' 'jaxlib==0.4.30'",
    "NPEET": "git+https://github.com/gregversteeg/NPEET",
    "infomeasure": "infomeasure",
    "frites": "frites",
    "torch-mist": "torch-mist 'numpy<2' 'pandas<3' tqdm",
    "latentmi": "latentmi 'numpy<2'",
}


def choose_peers(names: Sequence[str] = ()) -> tuple[PeerEstimator, ...]:
    """Return the estimators of these peers, or with these titles such as ``benchmark-mi KSG``; all without names.

    Example:
        >>> [chosen.title for chosen in choose_peers(["frites", "benchmark-mi KSG"])]
        ['benchmark-mi KSG', 'frites GCMI']
    """
    for name in names:
        if not any(name in (known.peer, known.title) for known in PEER_ESTIMATORS):
            titles = ", ".join(f'"{known.title}"' for known in PEER_ESTIMATORS)
            raise InputError(f'--only "{name}" is not a peer; it must be a peer or one of {titles}.')
    return tuple(known for known in PEER_ESTIMATORS if not names or {known.peer, known.title} & set(names))


@final
@dataclass(frozen=True)
class PeerPlan:
    """What to run.

    Args:
        own: The tasks, sizes and seeds, and the estimators of mikit.
        peers: The estimators of peers.
        pythons: Interpreters of peers by name; other peers use the current one.
    """

    own: Plan
    peers: tuple[PeerEstimator, ...] = PEER_ESTIMATORS
    pythons: Mapping[str, Path] = field(default_factory=dict)

    @property
    def keys(self) -> list[Key]:
        """Everything that the peers run, seed by seed."""
        return [
            Key(task.suite, task.name, n, seed, peer.title)
            for seed in dict.fromkeys(self.own.seeds)
            for n in dict.fromkeys(self.own.sizes)
            for task in self.own.tasks
            for peer in self.peers
        ]


@final
@dataclass(frozen=True)
class MissingPeer:
    """A peer that is not installed, with the reason and how to install it."""

    name: str
    reason: str
    install: str


@final
@dataclass(frozen=True)
class Comparison:
    """The estimates of mikit and the peers (without verdicts), the versions of the peers, and the missing ones."""

    report: AccuracyReport
    peers: tuple[PeerEstimator, ...]
    versions: Mapping[str, str]
    missing: tuple[MissingPeer, ...]

    def to_json(self) -> str:
        """Return the report as JSON, which :meth:`AccuracyReport.from_json` reads, with the peers."""
        content = json.loads(self.report.to_json())
        content["peers"] = {
            "estimators": [{**asdict(peer), "version": self.versions.get(peer.peer)} for peer in self.peers],
            "missing": [asdict(missing) for missing in self.missing],
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def compare(plan: PeerPlan, progress: Stages | None = None) -> Comparison:
    """Run mikit and the peers on every sample; return the estimates of mikit, then those of the peers.

    A peer that is not installed has estimates only if the folder contains some. The seconds are wall times of processes
    that may share a machine; those of a peer cover its estimate, those of mikit also its checks and permuted data.
    """
    require_worker()
    own = measure_accuracy(plan.own, progress)
    folder, keys = plan.own.folder, plan.keys
    known = {} if folder is None else read_estimates(folder, () if plan.own.fresh else keys)
    with ExitStack() as stack:
        workers = [stack.enter_context(Interpreters(plan.pythons)) for _ in range(plan.own.jobs)]
        if progress is not None:
            progress.begin("Starting the peers")
        missing = _start(workers[0], list(dict.fromkeys(peer.peer for peer in plan.peers)))
        running = workers[0].versions
        _require_same_versions(known, running)
        by_title = {peer.title: peer for peer in plan.peers}
        gone = {peer.name for peer in missing}
        left = [key for key in keys if key not in known and by_title[key.estimator].peer not in gone]
        if progress is not None:
            progress.begin(f"Running the peers, {len(known)} of {len(known) + len(left)} known", len(left))
        for key, found in _run(left, by_title, workers):
            peer = by_title[key.estimator].peer
            versions = library_versions() | {"peer": peer, "peer version": running[peer]}
            known[key] = described(task_named(key.suite, key.law), key, found, versions)
            if folder is not None:
                keep(folder, key, known[key])
            if progress is not None:
                progress.advance()
    return Comparison(
        report=AccuracyReport(
            estimates=(*own.estimates, *(known[key] for key in keys if key in known)),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=describe_machine("cpu"),
        ),
        peers=plan.peers,
        versions={e.versions["peer"]: e.versions["peer version"] for e in known.values()},
        missing=tuple(missing),
    )


def _start(interpreters: Interpreters, peers: Sequence[str]) -> list[MissingPeer]:
    missing = []
    for name in peers:
        try:
            interpreters.worker(name)
        except MissingError as cause:
            install = f"pip install {_REQUIREMENTS[name]}, in its own environment if that excludes mikit"
            missing.append(MissingPeer(name, cause.reason, f"{install}, then --peer {name}=ENV/bin/python"))
    return missing


def _require_same_versions(known: Mapping[Key, Estimate], versions: Mapping[str, str]) -> None:
    for key, estimate in known.items():
        peer, version = estimate.versions.get("peer", ""), estimate.versions.get("peer version")
        if version is None or versions.get(peer, version) != version:
            raise InputError(
                f"{key.file} was estimated by {peer} {version}, and this is {versions.get(peer)}. Name another folder, "
                "or measure again with --fresh."
            )


def _run(
    keys: Sequence[Key],
    peers: Mapping[str, PeerEstimator],
    workers: Sequence[Interpreters],
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the answers; one thread per set of interpreters, which only waits for its process."""
    free: queue.SimpleQueue[Interpreters] = queue.SimpleQueue()
    for interpreters in workers:
        free.put(interpreters)

    def ask(key: Key) -> tuple[Key, dict[str, Any]]:
        interpreters, start = free.get(), time.perf_counter()
        try:
            found = _asked(task_named(key.suite, key.law), key, peers[key.estimator], interpreters)
        except Exception as cause:
            interpreters.forget_ended(peers[key.estimator].peer)
            found = {"state": "failed", "reason": sentence_of(cause)}
        finally:
            free.put(interpreters)
        return key, {"seconds": time.perf_counter() - start, **found}

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for future in as_completed([pool.submit(ask, key) for key in keys]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for interpreters in workers:  # ends the processes that the threads wait for
                interpreters.close()
            raise


def _asked(task: Task, key: Key, peer: PeerEstimator, interpreters: Interpreters) -> dict[str, Any]:
    reason = peer.not_for(task)
    if reason:
        return {"state": "left out", "reason": reason}
    x, y = task.draw(key.n, key.seed)
    paths = interpreters.files(torch.from_numpy(x), torch.from_numpy(y))
    request = {"measure": "information", "estimator": peer.name, "seed": key.seed}
    try:
        answer = interpreters.ask(peer.peer, {**request, "x": paths[0], "y": paths[1]})
    finally:
        for path in paths:
            Path(path).unlink(missing_ok=True)
    try:
        value, seconds = float(answer["value"]), float(answer["seconds"])
    except (KeyError, TypeError, ValueError) as cause:
        return {"state": "failed", "reason": f"the answer of {peer.peer} contains no number ({cause!r})"}
    if not math.isfinite(value):
        return {"state": "failed", "reason": f"{peer.title} returned {value}"}
    return {"state": "measured", "value": value, "seconds": seconds, "chosen": peer.settings}
