"""The features of a network that MIMKD uses: one vector per image, and maps by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, final

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mikit.core.errors import InputError

__all__ = ["NetworkFeatures", "cells", "require_same_images"]


@final
@dataclass(frozen=True)
class NetworkFeatures:
    """One vector per image, ``(n, d)`` or None, and any number of maps ``(n, c, h, w)`` of one network.

    Example:
        >>> import torch
        >>> given = {"stage3": torch.zeros(2, 8, 4, 4), "pool": torch.zeros(2, 8)}
        >>> features = NetworkFeatures.read(given, "student")
        >>> features.vector.shape, list(features.maps)
        (torch.Size([2, 8]), ['stage3'])
    """

    vector: Tensor | None
    maps: dict[str, Tensor] = field(default_factory=dict)
    side: str = "student"

    @classmethod
    def read(cls, features: Any, side: str) -> Self:
        """Sort a mapping from names to tensors, a named tuple of tensors, or one tensor, by layout.

        ``side`` is ``"student"`` or ``"teacher"``, for errors.
        """
        if isinstance(features, Tensor):
            named: Mapping[Any, Any] = {"features": features}
        else:
            named = features if isinstance(features, Mapping) else getattr(features, "_asdict", dict)()
        if not named:
            raise InputError(
                f"The {side}'s features are a {type(features).__name__}. Pass a dictionary or a named tuple of "
                "tensors: one (n, d), and maps (n, c, h, w) under the same names for both networks."
            )
        vectors: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        for name in named:
            value = named[name]
            if not isinstance(value, Tensor) or value.ndim not in (2, 4) or not value.is_floating_point():
                found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"The {side}'s {name!r} is {found}. Pass floating-point vectors (n, d) and maps (n, c, h, w); "
                    "tokens (n, t, d) become a map by transpose(1, 2).unsqueeze(-1)."
                )
            (vectors if value.ndim == 2 else maps)[str(name)] = value
        if len(vectors) > 1:
            raise InputError(
                f"The {side} has {len(vectors)} vectors ({', '.join(vectors)}); pass the one that represents the "
                "image, such as the pooled features before the last layer."
            )
        return cls(next(iter(vectors.values()), None), maps, side)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All features, by name."""
        return self.maps if self.vector is None else {"vector": self.vector, **self.maps}


def require_same_images(student: NetworkFeatures, teacher: NetworkFeatures) -> int:
    """Return the number of images; refuse different numbers of images, or features on two devices."""
    every = [
        (features.side, name, tensor) for features in (student, teacher) for name, tensor in features.tensors.items()
    ]
    side, name, first = every[0]
    for other_side, other_name, tensor in every[1:]:
        if tensor.shape[0] != first.shape[0]:
            raise InputError(
                f"The {side}'s {name!r} has {first.shape[0]} images and the {other_side}'s {other_name!r} has "
                f"{tensor.shape[0]}. Row i of all must come from the same image: record them in one forward pass."
            )
        if tensor.device != first.device:
            raise InputError(
                f"The {side}'s {name!r} is on {first.device} and the {other_side}'s {other_name!r} on {tensor.device}. "
                "Move both to one device."
            )
    return int(first.shape[0])


def cells(features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return a map as cells ``(n, h w, c)``, averaged to ``size`` first; a vector as one cell, ``(n, 1, d)``.

    Example:
        >>> import torch
        >>> cells(torch.ones(2, 3, 8, 8), (2, 2)).shape, cells(torch.ones(2, 5)).shape
        (torch.Size([2, 4, 3]), torch.Size([2, 1, 5]))
    """
    # Half precision would lose digits in the mean over cells.
    features = features if features.element_size() > 2 else features.float()
    if features.ndim == 2:
        return features[:, None]
    if size is not None and features.shape[2:] != size:
        features = adaptive_avg_pool2d(features, size)
    return features.flatten(2).transpose(1, 2)
