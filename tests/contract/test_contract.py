"""Every estimator passes the contract suite, and the suite catches estimators that are broken on purpose."""

from __future__ import annotations

from typing import final

import pytest
import torch
from torch import Tensor

from mikit import (
    MMD,
    EnergyDistance,
    GaussianKL,
    GaussianMI,
    GaussianWasserstein,
    LabelInformation,
    SinkhornDivergence,
    SlicedWasserstein,
    Wasserstein,
)
from mikit.estimators import REGISTRY, Estimator
from mikit.estimators.base import require_pair
from mikit.functional.gaussian.canonical import gaussian_mi
from mikit.testing import ContractError, check_estimator, contract_checks

CHECKS = dict(contract_checks())
PROTOTYPES = {
    **REGISTRY,
    "gaussian-copula": GaussianMI(copula=True),
    "gaussian-held-out": GaussianMI(held_out=True, shrinkage="ledoit-wolf"),
    "mmd-several-bandwidths": MMD(factors=(0.5, 1.0, 2.0), paired=True),
    "mmd-linear": MMD(kernel="linear"),
    "mmd-polynomial": MMD(kernel="polynomial", degree=2),
    "mmd-biased": MMD(form="biased"),
    "mmd-debiased": MMD(form="biased", debias=True),
    "mmd-block": MMD(form="block"),
    "mmd-linear-time": MMD(1.0, form="linear-time"),
    "energy-biased": EnergyDistance(form="biased"),
    "energy-paired": EnergyDistance(paired=True),
    "wasserstein-rooted": Wasserstein(1, squared=False),
    "wasserstein-debiased": Wasserstein(debias=True),
    "sliced-wasserstein-maximum": SlicedWasserstein(8, maximum=True, squared=False),
    "sliced-wasserstein-debiased": SlicedWasserstein(32, debias=True),
    "sinkhorn-divergence-debiased": SinkhornDivergence(share=0.1, debias=True),
    "gaussian-wasserstein-shrunk": GaussianWasserstein(shrinkage="ledoit-wolf", debias=True),
    "gaussian-wasserstein-diagonal": GaussianWasserstein(diagonal=True),
    "gaussian_kl-symmetric": GaussianKL("symmetric", shrinkage=None, debias=True),
    "gaussian_kl-diagonal": GaussianKL("teacher||student", diagonal=True),
}
# One reading takes these seconds, and each of these checks up to forty readings: minutes in all.
COSTLY = (
    "auto",
    "copula_critic",
    "gromov_wasserstein",
    "sliced-wasserstein-maximum",
    "sinkhorn-divergence-debiased",
)
# Trained twelve times by one check, five to fifteen seconds each time.
TRAINED = ("flow", "infonce", "anchored_infonce", "jsd", "nwj", "dv", "smile")
READING = (
    "estimate is a finite scalar",
    "inputs are left alone",
    "is deterministic",
    "precision and layout do not matter",
    "row order does not matter",
    "dependence shows",
    "nothing is clipped",
    "standard error matches the spread",
    "state survives",
    "measures end to end",
)


def _takes_long(name: str, check: str) -> bool:
    return (name in COSTLY and check in READING) or (name in TRAINED and check == "nothing is clipped")


PASSES = [
    pytest.param(
        name,
        check,
        marks=pytest.mark.slow if _takes_long(name, check) else (),
        id=f"{name}-{check}",
    )
    for name in PROTOTYPES
    for check in CHECKS
]


@pytest.mark.parametrize(("name", "check"), PASSES)
def test_estimator_keeps_the_contract(name: str, check: str) -> None:
    CHECKS[check](PROTOTYPES[name])


class _Sound(Estimator):
    """A correct Gaussian estimator to break in one place at a time; the base of the broken ones below."""

    name = "sound"
    unit = "nats"
    kind = "estimate"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.estimate(x.float(), y.detach().float())

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        require_pair(x, y)
        return gaussian_mi(x, y)


@final
class _Whole(_Sound):
    pass


@final
class _Clipped(_Sound):
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        return super().estimate(x, y).clamp(min=0)


@final
class _Truncating(_Sound):
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        n = min(x.shape[0], y.shape[0])
        return super().estimate(x[:n], y[:n])


@final
class _LeakyTeacher(_Sound):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.estimate(x.float(), y.float())


@final
class _InPlace(_Sound):
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        if not x.requires_grad:
            x -= x.mean(0)
        return super().estimate(x, y)


@final
class _GlobalNoise(_Sound):
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        return super().estimate(x + 1e-3 * torch.randn_like(x), y)


@final
class _ForgottenParameter(_Sound):
    learned = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) + self.scale**2

    def param_groups(self) -> list[dict[str, object]]:
        return []

    def fit(self, *_: object, **__: object) -> None:
        return None


@final
class _SilentConstant(_Sound):
    differentiable = False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(())


@final
class _FlippedSign(_Sound):
    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        return -super().estimate(x, y)


@final
class _WrongError(_Sound):
    def standard_error(self, x: Tensor, y: Tensor, *, groups: Tensor | None = None) -> float:
        return 1e-4


BROKEN = {
    _Clipped: "clipped at 0",
    _Truncating: "one sample fewer",
    _LeakyTeacher: "teacher",
    _InPlace: "in place",
    _GlobalNoise: "global random",
    _ForgottenParameter: "scale",
    _SilentConstant: "TypeError",
    _FlippedSign: "dependent data",
    _WrongError: "standard deviation of twelve",
}


def test_the_checks_left_to_the_slow_run_exist() -> None:
    assert set(READING) < set(CHECKS)
    assert set(COSTLY) < set(PROTOTYPES)


def test_the_unbroken_base_passes() -> None:
    check_estimator(_Whole())


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__.strip("_"))
def test_a_broken_estimator_is_caught(cls: type[Estimator]) -> None:
    with pytest.raises(ContractError, match=BROKEN[cls]):
        check_estimator(cls())


def test_label_information_explains_labels() -> None:
    assert LabelInformation.explains == "labels"
