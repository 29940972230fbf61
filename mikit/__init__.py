"""mikit measures what one network's activations say about another's, and trains students with the same measures.

Everything public is loaded on first use, so that ``import mikit`` and ``mikit --help`` stay quick.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "measure": "mikit.measuring",
    "Measurement": "mikit.measurement",
    "Check": "mikit.measurement",
    "InputError": "mikit.errors",
    "Estimator": "mikit.estimators",
    "Training": "mikit.estimators",
    "Auto": "mikit.estimators",
    "GaussianMI": "mikit.estimators",
    "KSG": "mikit.estimators",
    "VID": "mikit.estimators",
    "InfoNCE": "mikit.estimators",
    "LabelInformation": "mikit.estimators",
    "MMD": "mikit.estimators",
    "capture": "mikit.activations",
    "record_activations": "mikit.activations",
    "ActivationStore": "mikit.activations",
    "read_array": "mikit.activations",
    "Flow": "mikit.flow",
    "trace": "mikit.flow",
    "report": "mikit.reporting",
    "check_optimizer": "mikit.distillation",
}
_MODULES = ("functional", "critics", "plot", "testing", "datasets", "models")

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"mikit.{name}")
    raise AttributeError(f"module 'mikit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
