"""Where the products of a trace are computed: on the processor, or on devices that the workers share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from mikit.errors import InputError
from mikit.flow.working import shares_memory

__all__ = ["devices_of", "lent_device", "sharing"]


def devices_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the devices that were asked for; none for the processor's own arithmetic.

    Raises:
        InputError: If a device does not exist here, stands twice, or has no float64.
    """
    if given is None:
        return ()
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) < len(names):
        raise InputError(f'device is {given!r}; name devices, each once, such as "cuda:0".')
    for name in names:
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError) as cause:
            raise InputError(f'device is {name!r}, which names none; pass "cpu", "cuda" or "cuda:1".') from cause
        if device.type not in ("cpu", "cuda"):
            raise InputError(
                f'device is {name!r}, which does not compute in float64 as a trace does; pass "cuda", or leave it out.'
            )
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if device.type == "cuda" and (device.index or 0) >= count:
            seen = f"torch sees {count} CUDA devices here" if count else "torch sees no CUDA device here"
            raise InputError(f"device is {name!r}, but {seen}. Leave device out to use the processor.")
    return names


@contextmanager
def sharing(devices: tuple[str, ...]) -> Iterator[None]:
    """Refuse workers that cannot share the devices.

    Raises:
        InputError: If there are several devices, and the workers are no threads of one process.
    """
    if len(devices) > 1 and not shares_memory()[0]:
        raise InputError(
            f"device names {len(devices)} devices, which the threads of one process share, but the workers are "
            'processes. Use the backend "threading", or name one device.'
        )
    yield


_lending = threading.Lock()
_lent: Counter[str] = Counter()


@contextmanager
def lent_device(devices: tuple[str, ...]) -> Iterator[torch.device | None]:
    """Lend the device that fewest tasks of this process use; None where none was asked for."""
    if not devices:
        yield None
        return
    with _lending:
        name = min(devices, key=lambda one: _lent[one])
        _lent[name] += 1
    try:
        yield torch.device(name)
    finally:
        with _lending:
            _lent[name] -= 1
