"""Baseline distillation losses on logits: Hinton's distillation and its decoupled form."""

from __future__ import annotations

from typing import final

from torch import Tensor

from mikit.core import require
from mikit.core.errors import InputError
from mikit.distillation.losses.base import PairedGap
from mikit.functional.distillation.logits import decoupled_kl, softened_kl

__all__ = ["DKD", "HintonKD"]


@final
class HintonKD(PairedGap):
    r"""Hinton's distillation between logits ``(n, classes)``.

    Formula: ``estimate`` is :math:`\frac1n \sum_i \mathrm{KL}(\mathrm{softmax}(t_i / T) \| \mathrm{softmax}(s_i / T))`,
    ``forward`` is :math:`T^2` times that, so that the size of its gradient does not depend on ``T``.

    Args:
        temperature: ``T``.

    Shapes:
        Both ``(n, classes)``, the same classes in the same order.

    Unit: nats (``estimate``).

    Kind: discrepancy, 0 if and only if the probabilities agree. Never negative.

    Raises:
        InputError: If the logits do not fit each other, or the temperature is not positive.

    Cost:
        O(n classes).

    Pitfalls:
        Pass logits, not probabilities. Weight 1 is meant for a cross-entropy of weight 1; mdistiller a08d46f uses 0.9
        and 0.1.

    Source:
        Hinton, Vinyals and Dean (2015), arXiv 1503.02531.

    Example:
        >>> import math, torch
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[0.0, 4 * math.log(3.0)]] * 2)
        >>> kd = HintonKD(temperature=4.0)
        >>> round(kd.estimate(student, teacher).item(), 4), round(kd(student, teacher).item(), 4)
        (0.1308, 2.093)
    """

    name = "hinton_kd"
    unit = "nats"

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        require.positive(temperature, "temperature")
        self.temperature = temperature
        self.strength = temperature**2

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the divergence in nats."""
        return softened_kl(x, y, temperature=self.temperature)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"temperature={self.temperature}"


@final
class DKD(PairedGap):
    r"""Decoupled distillation between logits ``(n, classes)``: the label against the rest, and the rest separately.

    Formula: :math:`T^2\, [\alpha\, \mathrm{KL}((p_y, 1 - p_y) \| (q_y, 1 - q_y)) + \beta\, \mathrm{KL}(\hat p \| \hat
    q)]`, means over samples; see :func:`mikit.functional.distillation.logits.decoupled_kl`. ``estimate`` is without
    :math:`T^2`. Hinton's loss is the case :math:`\alpha = 1, \beta = 1 - p_y` for each sample.

    Args:
        alpha: Weight of the label against the rest.
        beta: Weight of the other classes among themselves.
        temperature: ``T``.

    Shapes:
        Both ``(n, classes)``; ``labels`` ``(n,)``, class indices.

    Unit: nats (``estimate``).

    Kind: discrepancy, 0 if and only if the probabilities agree. Never negative.

    Raises:
        InputError: If the logits do not fit each other, labels are missing or do not fit, or a setting is not positive.

    Cost:
        O(n classes).

    Pitfalls:
        It is larger than Hinton's loss by about ``beta / (1 - p_y)``, so training without warm-up can overshoot.
        mdistiller increases the weight from 0 over 20 epochs; here it is constant. In the trainer it needs
        ``labels=True``.

    Source:
        Released code and settings (``alpha = 1``, ``beta = 8``, ``T = 4``): megvii-research/mdistiller a08d46f and
        e8c5bb3.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        >>> labels = torch.arange(6) % 5
        >>> DKD()(teacher, teacher, labels=labels).item() < 1e-6 < DKD()(student, teacher, labels=labels).item()
        True
    """

    name = "dkd"
    unit = "nats"

    def __init__(self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta), ("temperature", temperature)):
            require.positive(value, name)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.strength = temperature**2

    def forward(self, x: Tensor, y: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Return the loss; the teacher gets no gradient.

        Args:
            x: Student logits.
            y: Teacher logits.
            labels: Class indices ``(n,)``; required.
        """
        return self.strength * self._parts(x, y.detach(), labels)

    def estimate(self, x: Tensor, y: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """Return the weighted sum of both parts, without ``T²`` and without gradient."""
        return self._parts(x, y, labels).detach()

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """Raise :class:`~mikit.InputError`: the loss needs labels."""
        return self._parts(x, y, None)

    def extra_repr(self) -> str:
        """Return the hyper-parameters."""
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"

    def _parts(self, x: Tensor, y: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise InputError(
                "DKD needs the class indices of the batch: call it with labels=..., or set labels=True in its "
                "DistillationTerm."
            )
        target, others = decoupled_kl(x, y, labels, temperature=self.temperature)
        return self.alpha * target + self.beta * others
