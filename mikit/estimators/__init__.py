"""All estimators, and the registry of their names. Each is a loss when called and an estimator when measured."""

from __future__ import annotations

from mikit.core.errors import InputError
from mikit.estimators.auto import Auto
from mikit.estimators.base import Estimator
from mikit.estimators.bounds.infonce import AnchoredInfoNCE, InfoNCE
from mikit.estimators.bounds.ratios import DV, JSD, NWJ, SMILE
from mikit.estimators.copula.copula_critic import CopulaCritic
from mikit.estimators.fitting import FitRecord, Training
from mikit.estimators.gaussian.distributions import GaussianKL, GaussianWasserstein
from mikit.estimators.gaussian.mutual_information import GaussianMI
from mikit.estimators.kernels.dependence import CKA, HSIC, QMI, LabelHSIC, LabelQMI
from mikit.estimators.kernels.energy import EnergyDistance
from mikit.estimators.kernels.mmd import MMD
from mikit.estimators.labels.label_information import LabelInformation
from mikit.estimators.labels.plug_in import PlugIn
from mikit.estimators.neighbors.ksg import KSG
from mikit.estimators.neighbors.reduced import ReducedKSG
from mikit.estimators.neighbors.ross import Ross
from mikit.estimators.neighbors.weighted_kl import WeightedKL
from mikit.estimators.normalizing_flows.conditional import ConditionalInformation, held_out_conditional_mi
from mikit.estimators.normalizing_flows.flow_mi import FlowMI
from mikit.estimators.transport.gromov import GromovWasserstein
from mikit.estimators.transport.sinkhorn import SinkhornDivergence
from mikit.estimators.transport.wasserstein import SlicedWasserstein, Wasserstein
from mikit.estimators.vid.vid import VID

__all__ = [
    "CKA",
    "DV",
    "HSIC",
    "JSD",
    "KSG",
    "MMD",
    "NWJ",
    "QMI",
    "REGISTRY",
    "SMILE",
    "VID",
    "AnchoredInfoNCE",
    "Auto",
    "ConditionalInformation",
    "CopulaCritic",
    "EnergyDistance",
    "Estimator",
    "FitRecord",
    "FlowMI",
    "GaussianKL",
    "GaussianMI",
    "GaussianWasserstein",
    "GromovWasserstein",
    "InfoNCE",
    "LabelHSIC",
    "LabelInformation",
    "LabelQMI",
    "PlugIn",
    "ReducedKSG",
    "Ross",
    "SinkhornDivergence",
    "SlicedWasserstein",
    "Training",
    "Wasserstein",
    "WeightedKL",
    "estimator_named",
    "held_out_conditional_mi",
]

REGISTRY: dict[str, type[Estimator]] = {
    cls.name: cls
    for cls in (
        Auto,
        CopulaCritic,
        GaussianMI,
        KSG,
        ReducedKSG,
        WeightedKL,
        InfoNCE,
        AnchoredInfoNCE,
        JSD,
        NWJ,
        DV,
        SMILE,
        FlowMI,
        VID,
        LabelInformation,
        Ross,
        PlugIn,
        MMD,
        EnergyDistance,
        Wasserstein,
        SlicedWasserstein,
        SinkhornDivergence,
        GaussianWasserstein,
        GaussianKL,
        GromovWasserstein,
        QMI,
        LabelQMI,
        LabelHSIC,
        HSIC,
        CKA,
    )
}


def estimator_named(name: str) -> type[Estimator]:
    """Return the class registered under ``name``.

    Raises:
        InputError: If there is none, with the names that exist.
    """
    try:
        return REGISTRY[name.lower().replace("-", "_")]
    except KeyError:
        raise InputError(f'There is no estimator "{name}". The names are {", ".join(sorted(REGISTRY))}.') from None
