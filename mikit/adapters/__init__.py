"""Adapters for other training frameworks; each module can be imported without its framework."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=("lightning", "transformers"))
