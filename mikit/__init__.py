"""mikit measures what one network's activations say about another's, and trains students with the same measures.

Everything public is loaded on first use, so that ``import mikit`` and ``mikit --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "CKA",
    "CRD",
    "DKD",
    "DV",
    "HSIC",
    "JSD",
    "KD2M",
    "KSG",
    "MIMKD",
    "MMD",
    "NWJ",
    "PKT",
    "QMI",
    "SMILE",
    "VID",
    "ActivationStore",
    "AnchoredInfoNCE",
    "AttentionTransfer",
    "Auto",
    "BothAxes",
    "ChannelMMD",
    "Check",
    "CopulaCritic",
    "EnergyDistance",
    "Estimator",
    "FitNet",
    "Flow",
    "FlowMI",
    "GaussianKL",
    "GaussianMI",
    "GaussianWasserstein",
    "GromovWasserstein",
    "HintonKD",
    "InfoNCE",
    "InformationFlow",
    "InputError",
    "LabelHSIC",
    "LabelInformation",
    "LabelQMI",
    "LayerPairs",
    "Measurement",
    "NoiseSweep",
    "PlugIn",
    "Recorder",
    "ReducedKSG",
    "RiskGap",
    "Ross",
    "SinkhornDivergence",
    "SlicedWasserstein",
    "Training",
    "Wasserstein",
    "WeightedKL",
    "both_axes",
    "capture",
    "check_optimizer",
    "critics",
    "datasets",
    "distillation",
    "functional",
    "match_layers",
    "measure",
    "models",
    "noise_sweep",
    "phase_schedule",
    "plot",
    "read_array",
    "record_activations",
    "report",
    "risk_gap",
    "suggest_pairs",
    "testing",
    "trace",
]

_HOME = {
    "measure": "mikit.measuring",
    **dict.fromkeys(("NoiseSweep", "noise_sweep"), "mikit.noise"),
    **dict.fromkeys(("BothAxes", "both_axes"), "mikit.gap_and_information"),
    "Measurement": "mikit.measurement",
    "Check": "mikit.measurement",
    "InputError": "mikit.errors",
    **dict.fromkeys(
        (
            "Estimator",
            "Training",
            "Auto",
            "CopulaCritic",
            "GaussianMI",
            "KSG",
            "ReducedKSG",
            "VID",
            "InfoNCE",
            "AnchoredInfoNCE",
            "JSD",
            "NWJ",
            "DV",
            "SMILE",
            "FlowMI",
            "LabelInformation",
            "Ross",
            "PlugIn",
            "WeightedKL",
            "MMD",
            "EnergyDistance",
            "Wasserstein",
            "SlicedWasserstein",
            "SinkhornDivergence",
            "GaussianWasserstein",
            "GaussianKL",
            "GromovWasserstein",
            "QMI",
            "LabelQMI",
            "LabelHSIC",
            "HSIC",
            "CKA",
        ),
        "mikit.estimators",
    ),
    **dict.fromkeys(
        ("capture", "record_activations", "phase_schedule", "Recorder", "ActivationStore", "read_array"),
        "mikit.activations",
    ),
    **dict.fromkeys(("Flow", "match_layers", "suggest_pairs", "trace"), "mikit.flow"),
    "report": "mikit.reporting",
    **dict.fromkeys(("RiskGap", "risk_gap"), "mikit.risk"),
    **dict.fromkeys(
        (
            "CRD",
            "DKD",
            "KD2M",
            "LayerPairs",
            "MIMKD",
            "PKT",
            "AttentionTransfer",
            "ChannelMMD",
            "FitNet",
            "HintonKD",
            "InformationFlow",
            "check_optimizer",
        ),
        "mikit.distillation",
    ),
}

if TYPE_CHECKING:
    from mikit import critics, datasets, distillation, functional, models, plot, testing
    from mikit.activations import (
        ActivationStore,
        Recorder,
        capture,
        phase_schedule,
        read_array,
        record_activations,
    )
    from mikit.distillation import (
        CRD,
        DKD,
        KD2M,
        MIMKD,
        PKT,
        AttentionTransfer,
        ChannelMMD,
        FitNet,
        HintonKD,
        InformationFlow,
        LayerPairs,
        check_optimizer,
    )
    from mikit.errors import InputError
    from mikit.estimators import (
        CKA,
        DV,
        HSIC,
        JSD,
        KSG,
        MMD,
        NWJ,
        QMI,
        SMILE,
        VID,
        AnchoredInfoNCE,
        Auto,
        CopulaCritic,
        EnergyDistance,
        Estimator,
        FlowMI,
        GaussianKL,
        GaussianMI,
        GaussianWasserstein,
        GromovWasserstein,
        InfoNCE,
        LabelHSIC,
        LabelInformation,
        LabelQMI,
        PlugIn,
        ReducedKSG,
        Ross,
        SinkhornDivergence,
        SlicedWasserstein,
        Training,
        Wasserstein,
        WeightedKL,
    )
    from mikit.flow import Flow, match_layers, suggest_pairs, trace
    from mikit.gap_and_information import BothAxes, both_axes
    from mikit.measurement import Check, Measurement
    from mikit.measuring import measure
    from mikit.noise import NoiseSweep, noise_sweep
    from mikit.reporting import report
    from mikit.risk import RiskGap, risk_gap


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        return importlib.import_module(f"mikit.{name}")
    raise AttributeError(f"module 'mikit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
