"""mikit inside other people's training loops; none of these modules needs its library to be imported."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=("lightning", "transformers"))
