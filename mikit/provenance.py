"""Where a result comes from: the versions and the data that decided it."""

from __future__ import annotations

import hashlib
import platform

import numpy as np
import scipy
import torch
from torch import Tensor

__all__ = ["data_hash", "library_versions"]


def library_versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    from mikit import __version__

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
        for block in array.split(65536):
            digest.update(np.ascontiguousarray(block.detach().cpu().numpy()).data)
    return digest.hexdigest()
