"""Peers beside mikit on laws of known information: the same rows, the peers' own defaults."""

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
from mikit.bench.distributions.suites import law_named
from mikit.bench.distributions.task import Law
from mikit.bench.machine import describe_machine
from mikit.bench.peers.interpreters import Interpreters
from mikit.bench.peers.peers import MissingError
from mikit.bench.progress import Progress
from mikit.core.errors import InputError
from mikit.core.provenance import library_versions

__all__ = ["PEER_ESTIMATORS", "Comparison", "MissingPeer", "PeerEstimator", "PeerPlan", "choose_peers", "compare"]


@final
@dataclass(frozen=True)
class PeerEstimator:
    """An estimator of a peer, and how it is called.

    Args:
        peer: The peer.
        name: What it calls the estimator.
        settings: How it is called here.
        one_column: Whether it takes one column a side only.
    """

    peer: str
    name: str
    settings: str
    one_column: bool = False

    @property
    def title(self) -> str:
        """Peer and estimator."""
        return f"{self.peer} {self.name}"

    def not_for(self, law: Law) -> str:
        """Why it is not called on a law; empty where it is."""
        if self.one_column and (law.d_x, law.d_y) != (1, 1):
            return f"it takes one column a side, and this law has {law.d_x} and {law.d_y}"
        if "discrete" in law.kinds:
            return "it is for continuous variables, and a side of this law is discrete"
        return ""


PEER_ESTIMATORS = (
    PeerEstimator("scikit-learn", "KSG", "mutual_info_regression, k = 3; never below 0", one_column=True),
    PeerEstimator("benchmark-mi", "CCA", "CCAMutualInformationEstimator"),
    PeerEstimator(
        "benchmark-mi", "KSG", "KSGEnsembleFirstEstimator, standardised, mean of k = 5 and 10; never below 0"
    ),
    PeerEstimator(
        "benchmark-mi",
        "InfoNCE",
        "InfoNCEEstimator, standardised, layers of 16 and 8, 10,000 steps on half of the rows, read on the other half",
    ),
    PeerEstimator("NPEET", "KSG", "mi, k = 3"),
    PeerEstimator("infomeasure", "KSG", 'mutual_information(approach="ksg"), k = 4, not standardised'),
    PeerEstimator("frites", "GCMI", "gcmi_nd_cc: Gaussian copula with its correction of the bias; bits made nats"),
    PeerEstimator(
        "torch-mist", "SMILE", "estimate_mi, its default; up to 5,000 steps on four fifths, read on the last fifth"
    ),
    PeerEstimator("torch-mist", "MINE", "estimate_mi; up to 5,000 steps on four fifths, read on the last fifth"),
    PeerEstimator(
        "latentmi",
        "LMI",
        "lmi.estimate: 8 latent columns a side, trained on half of the rows, KSG on the other half; bits made nats",
    ),
)
"""Everything that is called, with the defaults that the peers document."""

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
    """Return the peers' estimators of these names.

    Args:
        names: Peers, or peers and estimators such as ``benchmark-mi KSG``; all where there are none.

    Raises:
        InputError: If a name is unknown.

    Example:
        >>> [chosen.title for chosen in choose_peers(["frites", "benchmark-mi KSG"])]
        ['benchmark-mi KSG', 'frites GCMI']
    """
    for name in names:
        if not any(name in (known.peer, known.title) for known in PEER_ESTIMATORS):
            said = ", ".join(f'"{known.title}"' for known in PEER_ESTIMATORS)
            raise InputError(f'--only "{name}" is no peer; it must be a peer or one of {said}.')
    return tuple(known for known in PEER_ESTIMATORS if not names or {known.peer, known.title} & set(names))


@final
@dataclass(frozen=True)
class PeerPlan:
    """What to run.

    Args:
        own: The laws, sizes and seeds, and the instruments of mikit beside which the peers are put.
        peers: The peers' estimators.
        pythons: The interpreter of a peer by its name; this one where there is none.
    """

    own: Plan
    peers: tuple[PeerEstimator, ...] = PEER_ESTIMATORS
    pythons: Mapping[str, Path] = field(default_factory=dict)

    @property
    def keys(self) -> list[Key]:
        """Everything to ask the peers, seed by seed."""
        return [
            Key(law.suite, law.name, n, seed, peer.title)
            for seed in dict.fromkeys(self.own.seeds)
            for n in dict.fromkeys(self.own.sizes)
            for law in self.own.laws
            for peer in self.peers
        ]


@final
@dataclass(frozen=True)
class MissingPeer:
    """A peer that is not there.

    Args:
        name: The peer.
        reason: What is missing.
        install: How to get it.
    """

    name: str
    reason: str
    install: str


@final
@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        report: The estimates of mikit and of the peers; those of peers have no verdict.
        peers: The peers' estimators that were asked.
        versions: The versions of the peers.
        missing: The peers that are not there.
    """

    report: AccuracyReport
    peers: tuple[PeerEstimator, ...]
    versions: Mapping[str, str]
    missing: tuple[MissingPeer, ...]

    def to_json(self) -> str:
        """The report as JSON, which :meth:`AccuracyReport.from_json` reads, and the peers beside it."""
        content = json.loads(self.report.to_json())
        content["peers"] = {
            "estimators": [{**asdict(peer), "version": self.versions.get(peer.peer)} for peer in self.peers],
            "missing": [asdict(missing) for missing in self.missing],
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def compare(plan: PeerPlan, progress: Progress | None = None) -> Comparison:
    """Run mikit and the peers on every sample, keep what is known, and return all of it.

    Args:
        plan: What to run.
        progress: Told of every estimate.

    Returns:
        The estimates of mikit in the order of the plan, then those of the peers. A peer that is not there is named, and
        has estimates only where the folder holds some.

    Raises:
        InputError: If the folder holds something else, or estimates of other versions.

    Cost:
        That of :func:`measure_accuracy`, and one call of the peer for each estimate.

    Pitfalls:
        The seconds are wall times of processes that may share a machine; a peer's hold its estimate, mikit's its checks
        and permuted data besides.
    """
    own = measure_accuracy(plan.own, progress)
    folder, keys = plan.own.folder, plan.keys
    known = {} if folder is None else read_estimates(folder, () if plan.own.fresh else keys)
    with ExitStack() as stack:
        rooms = [stack.enter_context(Interpreters(plan.pythons)) for _ in range(plan.own.jobs)]
        if progress is not None:
            progress.begin("Starting the peers")
        missing = _start(rooms[0], list(dict.fromkeys(peer.peer for peer in plan.peers)))
        running = rooms[0].versions
        _require_same_versions(known, running)
        by_title = {peer.title: peer for peer in plan.peers}
        gone = {peer.name for peer in missing}
        left = [key for key in keys if key not in known and by_title[key.estimator].peer not in gone]
        if progress is not None:
            progress.begin(f"Asking the peers, {len(known)} of {len(known) + len(left)} known", len(left))
        for key, found in _run(left, by_title, rooms):
            peer = by_title[key.estimator].peer
            versions = library_versions() | {"peer": peer, "peer version": running[peer]}
            known[key] = described(law_named(key.suite, key.law), key, found, versions)
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


def _start(room: Interpreters, peers: Sequence[str]) -> list[MissingPeer]:
    missing = []
    for name in peers:
        try:
            room.worker(name)
        except MissingError as cause:
            install = f"pip install {_REQUIREMENTS[name]}, in an environment of its own where that excludes mikit"
            missing.append(MissingPeer(name, cause.reason, f"{install}, then --peer {name}=ENV/bin/python"))
    return missing


def _require_same_versions(known: Mapping[Key, Estimate], versions: Mapping[str, str]) -> None:
    for key, estimate in known.items():
        peer, version = estimate.versions.get("peer", ""), estimate.versions.get("peer version")
        if version is None or versions.get(peer, version) != version:
            raise InputError(
                f"{key.file} was estimated by {peer} {version}, and this is {versions.get(peer)}. Name another folder, "
                "or measure anew with --fresh."
            )


def _run(
    keys: Sequence[Key],
    peers: Mapping[str, PeerEstimator],
    rooms: Sequence[Interpreters],
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Ask in as many threads as there are rooms; a thread only waits for the process that it asked."""
    free: queue.SimpleQueue[Interpreters] = queue.SimpleQueue()
    for room in rooms:
        free.put(room)

    def ask(key: Key) -> tuple[Key, dict[str, Any]]:
        room, start = free.get(), time.perf_counter()
        try:
            found = _asked(law_named(key.suite, key.law), key, peers[key.estimator], room)
        except Exception as cause:
            room.forget_ended(peers[key.estimator].peer)
            found = {"state": "failed", "reason": sentence_of(cause)}
        finally:
            free.put(room)
        return key, {"seconds": time.perf_counter() - start, **found}

    with ThreadPoolExecutor(len(rooms)) as pool:
        try:
            for future in as_completed([pool.submit(ask, key) for key in keys]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for room in rooms:  # What is being waited for ends with its process.
                room.close()
            raise


def _asked(law: Law, key: Key, peer: PeerEstimator, room: Interpreters) -> dict[str, Any]:
    reason = peer.not_for(law)
    if reason:
        return {"state": "left out", "reason": reason}
    x, y = law.draw(key.n, key.seed)
    paths = room.files(torch.from_numpy(x), torch.from_numpy(y))
    request = {"measure": "information", "estimator": peer.name, "seed": key.seed}
    try:
        answer = room.ask(peer.peer, {**request, "x": paths[0], "y": paths[1]})
    finally:
        for path in paths:
            Path(path).unlink(missing_ok=True)
    try:
        value, seconds = float(answer["value"]), float(answer["seconds"])
    except (KeyError, TypeError, ValueError) as cause:
        return {"state": "failed", "reason": f"the answer of {peer.peer} holds no number ({cause!r})"}
    if not math.isfinite(value):
        return {"state": "failed", "reason": f"{peer.title} returned {value}"}
    return {"state": "measured", "value": value, "seconds": seconds, "chosen": peer.settings}
