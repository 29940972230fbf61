"""Samples joined by id, split into folds, and permuted in groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = [
    "FEWEST_IN_A_FOLD",
    "checked_ids",
    "first_of_each_group",
    "joined_order",
    "permuted_rows",
    "recoded",
    "require_common_groups",
    "require_paired",
    "split_folds",
]

FEWEST_IN_A_FOLD = 4
"""Fewest samples in a fold for which a value can be fitted on the others and evaluated on it."""


def require_paired(x: Tensor, y: Tensor, *, minimum: int = 1) -> None:
    """Raise an error unless ``x`` and ``y`` have equally many rows, at least ``minimum``, on one device."""
    if x.shape[0] != y.shape[0]:
        raise InputError(
            f"x has {x.shape[0]} samples and y has {y.shape[0]}. Row i of both must come from the same sample: pass "
            "sample ids to join by, or record both on the same samples. mikit never truncates the longer one."
        )
    if x.device != y.device:
        raise InputError(f"x is on {x.device} and y is on {y.device}. Move both to one device.")
    if x.shape[0] < minimum:
        raise InputError(f"There are {x.shape[0]} samples, but this estimator needs at least {minimum}.")


def require_common_groups(x: Tensor, y: Tensor, groups: Tensor | None) -> None:
    """Raise an error if ``groups`` are given for two sets of samples that differ in number."""
    if groups is not None and x.shape[0] != y.shape[0]:
        raise InputError(
            f"groups belong to the samples of both sides, but x has {x.shape[0]} samples and y has {y.shape[0]}. "
            "Average the samples of each group first, or leave groups out."
        )


def checked_ids(ids: Any, n: int, name: str) -> np.ndarray:
    """Return sample ids as a vector of ``n`` distinct entries.

    Raises:
        InputError: If they are not one per row, or one of them repeats.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or array.shape[0] != n:
        raise InputError(
            f"The sample ids of {name} have shape {array.shape}, but it has {n} samples; give one id per sample."
        )
    distinct, counts = np.unique(array, return_counts=True)
    if distinct.shape[0] != n:
        raise InputError(
            f"The sample id {distinct[counts > 1][0].item()!r} occurs {int(counts.max())} times in {name}; samples "
            "are joined by id, so every id must be unique."
        )
    return array


def joined_order(x_ids: Any, y_ids: Any, x_name: str, y_name: str) -> np.ndarray:
    """Return for each row of ``x`` the row of ``y`` with the same sample id.

    Raises:
        InputError: If an id occurs twice on one side, or on one side only.
    """
    first, second = np.asarray(x_ids), np.asarray(y_ids)
    first, second = checked_ids(first, first.shape[0], x_name), checked_ids(second, second.shape[0], y_name)
    for name, ids, other_name, others in (
        (x_name, first, y_name, second),
        (y_name, second, x_name, first),
    ):
        missing = ids[~np.isin(ids, others)]
        if missing.shape[0]:
            raise InputError(
                f"{missing.shape[0]} of the {ids.shape[0]} sample ids of {name} are not in {other_name}; the first is "
                f"{missing[0].item()!r}. Record both networks on the same samples; mikit never drops samples "
                "to make them match."
            )
    by_id = np.argsort(second, kind="stable")
    return by_id[np.searchsorted(second, first, sorter=by_id)]


def split_folds(n: int, folds: int, *, groups: Tensor | None = None, generator: torch.Generator) -> list[Tensor]:
    """Split ``n`` rows into ``folds`` parts of about equal size; rows of one group stay in one part.

    Raises:
        InputError: If there are fewer rows or groups than folds.
    """
    if groups is None:
        if n < folds:
            raise InputError(f"There are {n} samples, fewer than the {folds} folds.")
        return [part.sort().values for part in torch.randperm(n, generator=generator).tensor_split(folds)]
    count = int(groups.max()) + 1
    if count < folds:
        raise InputError(f"There are {count} groups, fewer than the {folds} folds.")
    sizes = torch.bincount(groups.cpu(), minlength=count)
    filled = [0] * folds
    fold_of_group = torch.empty(count, dtype=torch.long)
    order = torch.randperm(count, generator=generator)
    for group in order[sizes[order].argsort(descending=True, stable=True)].tolist():
        smallest = min(range(folds), key=filled.__getitem__)
        fold_of_group[group] = smallest
        filled[smallest] += int(sizes[group])
    fold_of_row = fold_of_group[groups.cpu()]
    return [torch.nonzero(fold_of_row == fold)[:, 0] for fold in range(folds)]


def permuted_rows(n: int, *, groups: Tensor | None = None, generator: torch.Generator) -> Tensor:
    """Return a random order of ``n`` rows in which groups are permuted as blocks."""
    if groups is None:
        return torch.randperm(n, generator=generator)
    codes = groups.cpu()
    by_group = codes.argsort(stable=True)
    shuffled = torch.randperm(int(codes.max()) + 1, generator=generator)
    permutation = torch.empty(n, dtype=torch.long)
    permutation[by_group] = shuffled[codes].argsort(stable=True)
    return permutation


def recoded(codes: Tensor) -> Tensor:
    """Return group codes renumbered from 0 without gaps."""
    renumbered: Tensor = torch.unique(codes, return_inverse=True)[1]
    return renumbered


def first_of_each_group(codes: Tensor) -> Tensor:
    """Return the index of the first row of every group; the codes run from 0 without gaps."""
    first = torch.full((int(codes.max()) + 1,), codes.shape[0], dtype=torch.long, device=codes.device)
    places = torch.arange(codes.shape[0], device=codes.device)
    return first.scatter_reduce_(0, codes, places, "amin")
