"""Information-flow distillation: several layers at once, with most weight on intermediate ones early in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mikit.core import require
from mikit.core.errors import InputError
from mikit.distillation.losses.pkt import PKT
from mikit.functional.flow.flow_vectors import (
    FlowDivergence,
    depth_matching,
    flow_divergence,
    flow_vector,
    monotone_matching,
    nearest_matching,
)

__all__ = ["InformationFlow"]

Layers = Sequence[Tensor] | Mapping[str, Tensor]
MATCHINGS = ("depth", "nearest", "monotone")
SCHEDULES = ("epoch", "measured")


@final
class InformationFlow(nn.Module):
    r"""Information-flow distillation between several layers of a student and of a teacher, by PKT.

    Formula:

    .. math:: \frac{1}{\sum_i a_i} \sum_i a_i\, \mathrm{PKT}(s_i, t_{\kappa(i)}), \qquad a_N = 1, \quad
              a_i = \alpha\, \gamma^{\text{epoch}} \quad (i < N)

    With ``schedule="measured"`` the intermediate weights follow the measured divergence of the information flow instead
    of the epoch: :math:`a_i = \alpha\, D / D_0`, with ``D`` the latest and :math:`D_0` the first intermediate
    divergence from :meth:`observe`, and :math:`\alpha` before. Each PKT is in its unit (see :class:`PKT`), and the
    weights are divided by their sum, so that the loss is about 1 if student and teacher are unrelated, in every epoch.

    Args:
        matching: ``κ``: the teacher's layer, counted from 0, for each layer of the student.
        kernel: As in :class:`PKT`.
        divergence: As in :class:`PKT`.
        alpha: Initial weight of an intermediate layer; that of the last layer is 1.
        gamma: Factor of the intermediate weights per epoch.
        schedule: ``"epoch"`` or ``"measured"``.

    Shapes:
        One entry per layer in each sequence: ``(n, d)``, or maps ``(n, c, h, w)``, which are flattened. A mapping from
        names to activations, in network order, can be passed as well.

    Unit: dimensionless.

    Kind: discrepancy, 0 if and only if all neighborhoods agree.

    Raises:
        InputError: If layers are missing, an option does not fit, or samples are not paired.

    Cost:
        One PKT per pair of layers: ``2 n² (d_s + d_t)`` operations and about three times that with the gradient.

    Pitfalls:
        The epoch is a buffer that the training loop must set with :meth:`set_epoch`. PKT compares neighborhoods, not
        information; :meth:`observe` measures the information flow. The layers of a much deeper teacher do not
        correspond to those of the student; use an auxiliary teacher of the student's architecture
        (:func:`mikit.distillation.auxiliary_teacher`). ``alpha`` and ``gamma`` were not tuned here.

    Source:
        Passalis, Tzelepi and Tefas (2020), arXiv 2005.00727; ``alpha = 100``, ``gamma = 0.7``, kernel and divergence
        from the released code passalis/pkth 5766e63. The units, the division by the sum and ``"measured"`` are mikit's.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> student = [torch.randn(32, 4, generator=g), torch.randn(32, 8, generator=g)]
        >>> teacher = [torch.randn(32, 16, generator=g), torch.randn(32, 8, generator=g)]
        >>> flow = InformationFlow.between(student, teacher)
        >>> [round(weight, 3) for weight in flow.weights()]
        [0.99, 0.01]
        >>> flow.set_epoch(20)
        >>> [round(weight, 3) for weight in flow.weights()], flow(student, teacher).shape
        ([0.074, 0.926], torch.Size([]))
    """

    recommended_weight = 10.0

    epoch: Tensor
    first_divergence: Tensor
    latest_divergence: Tensor

    def __init__(
        self,
        matching: Sequence[int],
        *,
        kernel: str = "combined",
        divergence: str = "jeffreys",
        alpha: float = 100.0,
        gamma: float = 0.7,
        schedule: str = "epoch",
    ) -> None:
        super().__init__()
        if not matching or any(layer < 0 for layer in matching):
            raise InputError(
                f"matching is {tuple(matching)}; it must be one teacher layer, counted from 0, per student layer."
            )
        require.one_of(schedule, "schedule", SCHEDULES)
        require.positive(alpha, "alpha")
        require.positive(gamma, "gamma")
        if gamma > 1:
            raise InputError(f"gamma is {gamma}, so intermediate weights would grow every epoch; it must be at most 1.")
        self.matching = tuple(int(layer) for layer in matching)
        self.alpha, self.gamma, self.schedule = alpha, gamma, schedule
        self.losses = nn.ModuleList(PKT(kernel, divergence=divergence) for _ in self.matching)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.register_buffer("first_divergence", torch.full((), math.nan, dtype=torch.float64))
        self.register_buffer("latest_divergence", torch.full((), math.nan, dtype=torch.float64))

    @classmethod
    def between(
        cls,
        students: Layers,
        teachers: Layers,
        *,
        matching: str | Sequence[int] = "depth",
        labels: Tensor | None = None,
        kernel: str = "combined",
        divergence: str = "jeffreys",
        alpha: float = 100.0,
        gamma: float = 0.7,
        schedule: str = "epoch",
        generator: torch.Generator | None = None,
    ) -> Self:
        """Build from example features of all layers, in network order.

        Args:
            students: The student's.
            teachers: The teacher's, which set the units.
            matching: ``"depth"``; ``"nearest"`` or ``"monotone"``, by flow vectors, for which labels are needed; or the
                teacher's layer, counted from 0, for each layer of the student.
            labels: Class indices ``(n,)`` of the examples.
            kernel: As in the class.
            divergence: As in the class.
            alpha: As in the class.
            gamma: As in the class.
            schedule: As in the class.
            generator: As in :meth:`PKT.between`.
        """
        students, teachers = _in_order(students), _in_order(teachers)
        if not students or not teachers:
            raise InputError("InformationFlow needs at least one layer of the student and one of the teacher.")
        if isinstance(matching, str):
            if matching not in MATCHINGS:
                raise InputError(f'matching is "{matching}"; it must be one of {", ".join(MATCHINGS)}, or a sequence.')
            if matching == "depth":
                matching = depth_matching(len(students), len(teachers))
            elif labels is None:
                raise InputError(
                    f'matching="{matching}" compares flow vectors, which need the labels of the examples. Pass labels=.'
                )
            else:
                by = nearest_matching if matching == "nearest" else monotone_matching
                matching = by(flow_vector(students, labels), flow_vector(teachers, labels))
        flow = cls(matching, kernel=kernel, divergence=divergence, alpha=alpha, gamma=gamma, schedule=schedule).to(
            teachers[0].device
        )
        for loss, _, teacher in flow._pairs(students, teachers):
            loss.calibrate(teacher.detach(), generator=generator)
        return flow

    def forward(self, students: Layers, teachers: Layers) -> Tensor:
        """Return the loss of a batch, 0-dim; the teacher gets no gradient.

        Args:
            students: Activations of the student's layers, in the order of the examples.
            teachers: Activations of the teacher's.
        """
        values = torch.stack([loss(x, y) for loss, x, y in self._pairs(students, teachers)])
        return (self._weights().to(values) * values).sum()

    @torch.no_grad()
    def terms(self, students: Layers, teachers: Layers) -> dict[str, Tensor]:
        """Return values to log: ``layer_i``, each PKT in its unit, and ``weight_i``; without gradient."""
        values = {f"layer_{i}": loss(*pair) for i, (loss, *pair) in enumerate(self._pairs(students, teachers))}
        return values | {f"weight_{i}": weight for i, weight in enumerate(self._weights())}

    def weights(self) -> tuple[float, ...]:
        """Return the present weights of the layers; they sum to 1."""
        return tuple(self._weights().tolist())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        if epoch < 0:
            raise InputError(f"The epoch is {epoch}; it is counted from 0.")
        self.epoch.fill_(epoch)

    @torch.no_grad()
    def observe(self, students: Layers, teachers: Layers, labels: Tensor) -> FlowDivergence:
        """Measure both information flows on these samples and store their divergence, for ``schedule="measured"``.

        Call it at checkpoints, on the same samples each time: about a thousand held-out ones, not a batch.

        Args:
            students: Activations of the student's layers.
            teachers: Activations of the teacher's.
            labels: Class indices ``(n,)``.

        Returns:
            The divergence under this object's matching.
        """
        students, teachers = _in_order(students), _in_order(teachers)
        self._pairs(students, teachers)  # raises if the layers are not those of the examples
        found = flow_divergence(flow_vector(students, labels), flow_vector(teachers, labels), self.matching)
        if bool(self.first_divergence.isnan()):
            self.first_divergence.fill_(found.intermediate)
        self.latest_divergence.fill_(found.intermediate)
        return found

    def param_groups(self) -> list[dict[str, Any]]:
        """Return an empty list: the loss has no parameters."""
        return []

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"matching={self.matching}, alpha={self.alpha}, gamma={self.gamma}, schedule={self.schedule!r}"

    def _weights(self) -> Tensor:
        alphas = torch.ones(len(self.matching), dtype=torch.float64, device=self.epoch.device)
        if self.schedule == "epoch":
            intermediate = self.alpha * self.gamma ** self.epoch.double()
        else:
            # Tensor arithmetic throughout: a look at the values would break the graph of a compiled training step.
            share = self.latest_divergence / self.first_divergence
            # Before the first measurement both are nan. If the flows were equal at the first one, the share is 0 / 0.
            unknown = self.first_divergence.isnan()
            share = torch.where(unknown, 1.0, torch.where(self.first_divergence > 0, share, 0.0))
            intermediate = self.alpha * share
        alphas[:-1] = intermediate
        return alphas / alphas.sum()

    def _pairs(self, students: Layers, teachers: Layers) -> list[tuple[PKT, Tensor, Tensor]]:
        students, teachers = _in_order(students), _in_order(teachers)
        if len(students) != len(self.matching) or len(teachers) <= max(self.matching):
            raise InputError(
                f"There are {len(students)} student and {len(teachers)} teacher layers, but this InformationFlow "
                f"matches {len(self.matching)} student layers with the teacher's {self.matching}, counted from 0."
            )
        chosen = [teachers[layer] for layer in self.matching]
        pairs = []
        for loss, student, teacher in zip(self.losses, students, chosen, strict=True):
            assert isinstance(loss, PKT)
            pairs.append((loss, student.flatten(1), teacher.flatten(1)))
        return pairs


def _in_order(layers: Layers) -> list[Tensor]:
    return list(layers.values() if isinstance(layers, Mapping) else layers)
