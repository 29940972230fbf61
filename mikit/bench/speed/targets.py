"""The speed and memory targets of mikit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

__all__ = ["BARS", "Bar", "Kind"]

Kind = Literal["time", "memory", "whole memory", "gradient error", "roofline"]


@final
@dataclass(frozen=True)
class Bar:
    """One target: the largest allowed value of a figure, for ``roofline`` the smallest.

    The kinds of figures: ``time`` is the median seconds of mikit divided by those of ``peer``. ``memory`` is the extra
    bytes of mikit divided by twice the inputs plus 64 MiB. ``whole memory`` is inputs and extra bytes in GiB, including
    gradients. ``gradient error`` is relative. ``roofline`` is the time of the formula's matrix products alone, divided
    by the median seconds of mikit.
    """

    case: str
    variant: str
    size: int
    kind: Kind
    limit: float
    peer: str = ""

    @property
    def at_least(self) -> bool:
        """Whether ``limit`` is a lower limit."""
        return self.kind == "roofline"


BARS: tuple[Bar, ...] = (
    Bar("infonce", "d=128", 4096, "time", 0.55, "whole matrix"),
    Bar("infonce", "d=128", 16384, "time", 0.40, "whole matrix"),
    Bar("infonce", "d=128", 4096, "memory", 1.0),
    Bar("infonce", "d=128", 16384, "memory", 1.0),
    Bar("infonce", "d=128", 4096, "roofline", 0.70),
    Bar("infonce", "d=128", 16384, "roofline", 0.70),
    Bar("jsd", "d=128", 4096, "time", 0.60, "whole matrix"),
    Bar("mmd2", "d=64", 2048, "time", 0.40, "whole matrix"),
    Bar("mmd2", "d=64", 8192, "time", 0.15, "whole matrix"),
    Bar("mmd2", "d=64", 8192, "time", 0.20, "geomloss"),
    Bar("pkt", "d=128, 64", 4096, "time", 0.30, "whole matrix"),
    Bar("sinkhorn_divergence", "d=64, eps=.05", 1024, "time", 0.45, "geomloss .5"),
    Bar("sinkhorn_divergence", "d=64, eps=.02", 4096, "time", 0.25, "geomloss .5"),
    Bar("sinkhorn_divergence", "d=64, eps=.05", 1024, "gradient error", 2e-3),
    Bar("sinkhorn_divergence", "d=64, eps=.02", 4096, "gradient error", 2e-3),
    Bar("sliced_wasserstein2", "d=64, 128 projections", 4096, "time", 0.35, "POT"),
    Bar("sliced_wasserstein2", "d=64, 128 projections", 16384, "time", 0.35, "POT"),
    Bar("bures2", "n=256", 512, "time", 0.20, "eigh"),
    Bar("bures2", "n=256", 2048, "time", 0.02, "eigh"),
    Bar("bures2", "n=256", 512, "gradient error", 1e-5),
    Bar("bures2", "n=256", 2048, "gradient error", 1e-5),
    Bar("ksg", "d=1, 1", 1000, "time", 1.0, "scikit-learn"),
    Bar("ksg", "d=1, 1", 10000, "time", 1.0, "scikit-learn"),
    Bar("ksg", "d=25, 25", 10000, "time", 0.18, "benchmark-mi"),
    Bar("ksg", "d=512, 256", 10000, "time", 0.50, "benchmark-mi"),
    Bar("scale", "infonce, d=64", 131072, "whole memory", 1.0),
    Bar("scale", "ksg, d=25, 25", 100_000, "whole memory", 1.0),
)
