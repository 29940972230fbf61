"""mikit measures what one network's activations say about another's, and trains students with the same measures.

Public names are listed in ``__init__.pyi`` and loaded on first use, so that ``import mikit`` stays quick.
"""

from __future__ import annotations

import sys

import lazy_loader

from mikit.core.version import __version__ as __version__

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name not in __all__:
        # With the module at hand, Python adds "Did you mean ...?".
        raise AttributeError(f"module 'mikit' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return _load(name)
