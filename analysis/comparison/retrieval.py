"""Evaluations of students besides accuracy: retrieval with the pooled layer, and information flow during training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import mikit
from comparison.methods import FLOW_LAYERS
from comparison.runs import Pairing
from mikit.datasets import ImagePart
from mikit.functional.flow.flow_vectors import depth_matching, flow_divergence, flow_vector

Array = NDArray[Any]
_BATCH_OF_QUERIES = 128  # batch size of the released evaluator, which limits its loop over ranks
_RECALLS = np.linspace(0, 1, 11)


def retrieval_of(pairing: Pairing, terms: dict[str, Any]) -> dict[str, float]:
    """Return the retrieval precision of training images for test images of their class, by the pooled layer."""
    found: dict[str, float] = {}
    database, queries = pairing.parts.train, pairing.parts.test
    rows = [layers_of(pairing.student, part, ("pool",))["pool"] for part in (database, queries)]
    for name in ("euclidean", "cosine"):
        relevant = ranked(rows[0], rows[1], name, database.labels, queries.labels)
        found[f"map_{name}"] = average_precision(relevant)
        found[f"top100_{name}"] = float(relevant[:, :100].mean())
        found[f"released_map_{name}"], found[f"released_top100_{name}"] = released_evaluator(relevant)
    return found


def layers_of(network: nn.Module, part: ImagePart, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """Return pooled activations of all images of a part, in evaluation mode."""
    was_training = network.training
    network.eval()
    pieces: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with torch.no_grad(), mikit.capture(network, layers) as acts:
        for images in torch.split(part.images, 500):
            network(images)
            for layer in layers:
                pieces[layer].append(acts[layer].float().clone())
    network.train(was_training)
    return {layer: torch.cat(some) for layer, some in pieces.items()}


def ranked(database: Tensor, queries: Tensor, by: str, labels: Tensor, wanted: Tensor) -> Array:
    """Return for every query whether the images of the database have its class, nearest first."""
    if by == "cosine":
        database, queries = (nn.functional.normalize(rows, dim=1) for rows in (database, queries))
    order = torch.cat([torch.cdist(some, database).argsort(dim=1) for some in torch.split(queries, 200)])
    return (labels[order] == wanted[:, None]).numpy()


def average_precision(relevant: Array) -> float:
    """Return the mean over queries of the average precision over all ranks with a relevant image.

    Example:
        >>> round(average_precision(np.array([[True, False, True]])), 4)  # (1 + 2/3) / 2
        0.8333
    """
    hits = relevant.cumsum(1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    return float(((precision * relevant).sum(1) / relevant.sum(1)).mean())


def released_evaluator(relevant: Array) -> tuple[float, float]:
    """Return mAP and precision among the first hundred by the released evaluator of information flow.

    Precision at a rank is replaced by the best precision at that rank or later, over one rank fewer than the batch has
    queries. Average precision is the mean of that at eleven recalls. Both are at least as large as the true values.
    """
    precision = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1)
    recall = relevant.cumsum(1) / relevant.sum(1, keepdims=True)
    interpolated = precision.copy()
    for start in range(0, len(relevant), _BATCH_OF_QUERIES):
        rows = slice(start, start + _BATCH_OF_QUERIES)
        ranks = min(len(relevant[rows]) - 1, relevant.shape[1])
        best = np.maximum.accumulate(precision[rows, ::-1], axis=1)[:, ::-1]
        interpolated[rows, :ranks] = best[:, :ranks]
    at = (recall[:, None] >= _RECALLS[:, None] - 1e-12).argmax(2)
    return float(np.take_along_axis(interpolated, at, 1).mean()), float(interpolated[:, :100].mean())


def flow_at(pairing: Pairing, epoch: int) -> dict[str, Any]:
    """Return the flow vectors on validation images, and their divergence layer by layer."""
    part = pairing.parts.validation
    flows = [
        flow_vector(list(layers_of(network, part, FLOW_LAYERS).values()), part.labels)
        for network in (pairing.student, pairing.teacher)
    ]
    found = flow_divergence(*flows, depth_matching(len(FLOW_LAYERS), len(FLOW_LAYERS)))
    return {
        "epoch": epoch,
        "student": flows[0].tolist(),
        "teacher": flows[1].tolist(),
        "intermediate": float(found.intermediate),
        "last": float(found.last),
    }
