"""Names and labels that fit: shortened, still distinct, and moved apart where they would overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

__all__ = ["clip_text", "short_names", "spread"]


def clip_text(text: str, limit: int) -> str:
    """Return the text, with its middle left out if it is longer than the limit; control characters become spaces.

    Examples:
        >>> clip_text("a very long network name", 13)
        'a very…k name'
    """
    clean = "".join(c if c.isprintable() else " " for c in text)
    if len(clean) <= limit:
        return clean
    head = (limit - 1) // 2
    return clean[:head] + "…" + clean[len(clean) - (limit - 1 - head) :]


def short_names(names: Sequence[str], limit: int = 12) -> list[str]:
    """Return distinct layer names that are short enough for an axis, in the same order.

    The leading parts that all names share are dropped; then the leading parts of names longer than ``limit`` are
    shortened to their initials and numbers; finally the middle is left out.

    Examples:
        >>> short_names(["net.stem", "net.stage1.0.conv2", "net.stage2.0.conv2"])
        ['stem', 's1.0.conv2', 's2.0.conv2']
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    short = []
    for pieces in parts:
        name = ".".join(pieces[shared:])
        if len(name) > limit:
            lead = [re.sub(r"([^\W\d_])[^\W\d]*", r"\1", part) for part in pieces[shared:-1]]
            name = ".".join([*lead, pieces[-1]])
        short.append(clip_text(name, limit))
    while len(set(short)) < len(short):
        counts = {name: short.count(name) for name in short}
        short = [f"{clip_text(name, limit - 3)}~{i + 1}" if counts[name] > 1 else name for i, name in enumerate(short)]
    return short


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbors differ by ``gap``, within [low, high] if they fit.

    Examples:
        >>> spread([0.5, 0.5, 0.9], 0.2, 0.0, 1.0)
        [0.4, 0.6, 0.9]
    """
    order = np.argsort(places, kind="stable")
    groups: list[tuple[float, int]] = []
    for i in order:
        groups.append((float(places[i]), 1))
        while True:
            center, count = groups[-1]
            half = gap * (count - 1) / 2
            center = min(max(center, low + half), max(high - half, low + half))
            groups[-1] = (center, count)
            if len(groups) == 1:
                break
            before, number = groups[-2]
            if center - half - (before + gap * (number - 1) / 2) >= gap - 1e-12:
                break
            groups[-2:] = [((before * number + center * count) / (number + count), number + count)]
    spots = [center + gap * (k - (count - 1) / 2) for center, count in groups for k in range(count)]
    moved = dict(zip(order.tolist(), spots, strict=True))
    return [round(moved[i], 12) for i in range(len(places))]
