"""The measures. Each is a loss when called and an instrument when measured; names select them here and nowhere else."""

from __future__ import annotations

from mikit.errors import InputError
from mikit.estimators.auto import Auto
from mikit.estimators.base import Estimator
from mikit.estimators.conditional import ConditionalInformation, held_out_conditional_mi
from mikit.estimators.contrastive import AnchoredInfoNCE, InfoNCE
from mikit.estimators.copula_critic import CopulaCritic
from mikit.estimators.discrete import PlugIn
from mikit.estimators.distribution import MMD
from mikit.estimators.donsker_varadhan import DV
from mikit.estimators.energy import EnergyDistance
from mikit.estimators.entropic import SinkhornDivergence
from mikit.estimators.fitting import FitRecord, Training
from mikit.estimators.flows import FlowMI
from mikit.estimators.gaussian import GaussianMI
from mikit.estimators.gaussian_laws import GaussianKL, GaussianWasserstein
from mikit.estimators.gromov import GromovWasserstein
from mikit.estimators.label_hsic import LabelHSIC
from mikit.estimators.labels import LabelInformation
from mikit.estimators.neighbors import KSG, Ross, WeightedKL
from mikit.estimators.quadratic import CKA, HSIC, QMI, LabelQMI
from mikit.estimators.ratios import JSD, NWJ, SMILE
from mikit.estimators.reduced import ReducedKSG
from mikit.estimators.transport import SlicedWasserstein, Wasserstein
from mikit.estimators.variational import VID

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
