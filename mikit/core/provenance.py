"""Where a result comes from: the versions and the data that decided it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import scipy
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from mikit.core.version import __version__

__all__ = ["data_hash", "library_versions", "one_thread"]


def library_versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    return {
        "mikit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def data_hash(*arrays: Tensor) -> str:
    """Return a hash of dtypes, shapes and contents, in row order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        rows = array.detach().cpu().contiguous()
        if rows.ndim == 0:
            rows = rows[None]
        for start in range(0, rows.shape[0], 65536):
            # Viewed as bytes, because NumPy does not know bfloat16.
            digest.update(rows[start : start + 65536].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and for every thread pool that NumPy, SciPy and scikit-learn use; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
