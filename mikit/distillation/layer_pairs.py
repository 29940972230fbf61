"""Several losses between layers of a student and of its teacher, as one module to train, wrap and save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from mikit.activations import CapturedActivations, Readout, capture
from mikit.core.errors import InputError
from mikit.distillation.across_ranks import gathered_rows
from mikit.distillation.losses.base import recommended_weight
from mikit.distillation.networks import output_of, require_teacher, require_uncompiled, unchanged
from mikit.distillation.pair_losses import Pair, PairLosses, require_known, require_pairs, takes_labels
from mikit.distillation.training.optimizers import groups_of

__all__ = ["Distilled", "LayerPairs"]

Schedule = Callable[[int], float]
Inputs = Tensor | Mapping[str, Any]


@final
class Distilled(NamedTuple):
    """Result of one forward pass of :class:`LayerPairs`.

    Attributes:
        logits: Output of the student.
        loss: The weighted sum of the losses, 0-dim; add the task's own.
        terms: The loss of every pair before its weight, detached, by name such as ``"stage2 -> stage3: VID"``.
    """

    logits: Any
    loss: Tensor
    terms: dict[str, Tensor]


@final
class LayerPairs(nn.Module):
    r"""A student, and losses between its layers and those of a teacher.

    Formula: :math:`\sum_k w_k\, f_k(e)\, L_k(s_k, t_k)` over the pairs, with the weights ``w``, the schedules ``f`` at
    epoch ``e``, and the activations of both networks on one batch.

    Args:
        student: The network to train. It becomes a part of this module, with its parameters and its state.
        teacher: The trained network, in evaluation mode. It is moved by ``to``, but it is not trained, not saved, and
            not among the parameters.
        pairs: For each layer of the student and layer of the teacher: a loss class, whose ``between`` is called with
            the example's activations; a function of both activations that returns a loss, such as
            ``partial(mikit.KD2M.between, conditional="class")``; or a loss.
        example: One batch of inputs, large enough for the statistics that losses take from it. The entries of a mapping
            are passed to both networks by keyword.
        labels: The batch's class indices, to try out losses that need labels.
        weights: One for each pair, or one for all, in units of the loss's ``recommended_weight``.
        schedules: Factors by epoch, for pairs whose weight changes; used by :meth:`set_epoch`.
        readouts: Pooling of the activations, by pair or for all, as for :func:`mikit.capture`. None: ``"whole"`` for
            feature maps and losses on maps, ``"pool"`` otherwise.
        across_ranks: Whether losses use the samples of all ranks of data-parallel training (:class:`AcrossRanks`), so
            that their gradient is that of one process with the whole batch.
        generator: Source of the losses' initial parameters; torch's global generator if None.

    Raises:
        InputError: If a layer does not exist (similar names are listed), the teacher is in training mode, the student
            is compiled, a weight is negative, a schedule or a weight names no pair, or a loss cannot be built from or
            called with the example; the message names the pair.

    Cost:
        The forward passes of both networks and the losses; hooks add about ten microseconds per layer. No
        synchronization.

    Pitfalls:
        - Train all of :meth:`param_groups`: the student and the losses' own parameters. ``check_optimizer`` verifies
          that.
        - The teacher runs on the same inputs, including augmentation, so its features cannot be computed in advance.
        - In data-parallel training wrap this module, not the student, and pass ``across_ranks=True``: without it,
          losses over a batch use the samples of one process. :meth:`information` and :meth:`gradient_ratios` always do.
        - Compile parts of the student, not the student: hooks have no effect in a compiled graph.

    Source:
        The dictionary from pairs of layers to losses follows NVIDIA's ModelOpt.

    Example:
        >>> import mikit
        >>> student, teacher = (mikit.models.ResNet8(width=width) for width in (0.25, 0.5))
        >>> images = mikit.datasets.digits().train.images[:64]
        >>> wanted = {("stage2", "stage2"): mikit.VID, ("pool", "pool"): mikit.PKT}
        >>> pairs = mikit.LayerPairs(student, teacher.eval(), wanted, example=images, weights=0.5)
        >>> optimizer = torch.optim.SGD(pairs.param_groups(), lr=0.1)
        >>> mikit.check_optimizer(optimizer, pairs)
        >>> logits, loss, terms = pairs(images)
        >>> list(terms)
        ['stage2 -> stage2: VID', 'pool -> pool: PKT']
    """

    weights: Tensor
    factors: Tensor
    units: Tensor
    epoch: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Mapping[Pair, type[nn.Module] | nn.Module | Callable[[Tensor, Tensor], nn.Module]],
        *,
        example: Tensor | Mapping[str, Any],
        labels: Tensor | None = None,
        weights: float | Mapping[Pair, float] = 1.0,
        schedules: Mapping[Pair, Schedule] | None = None,
        readouts: str | Readout | Mapping[Pair, str | Readout] | None = None,
        across_ranks: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_teacher(teacher, student)
        require_uncompiled(student, "student")
        require_uncompiled(teacher, "teacher")
        require_pairs(pairs)
        self.student = student
        self._teacher = (teacher,)  # a tuple, so that its parameters are not this module's
        self.pairs = tuple(pairs)
        self.across_ranks = across_ranks
        for given, what in ((weights, "weights"), (schedules, "schedules"), (readouts, "readouts")):
            require_known(given, self.pairs, what)
        each = [float(weights.get(pair, 1.0) if isinstance(weights, Mapping) else weights) for pair in self.pairs]
        if not all(0 <= weight < float("inf") for weight in each):
            raise InputError(f"The weights are {each}; each must be finite and cannot be negative.")
        self.register_buffer("weights", torch.tensor(each))
        self.register_buffer("factors", torch.ones(len(each)))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self._schedules = dict(schedules or {})
        builder = PairLosses(student, teacher, example, labels, generator)
        built = [
            builder.built(pair, wanted, readouts.get(pair) if isinstance(readouts, Mapping) else readouts)
            for pair, wanted in pairs.items()
        ]
        losses, self._readouts = [loss for loss, _ in built], [readout for _, readout in built]
        self.losses = nn.ModuleList(losses)
        # Not persistent: the unit of a weight belongs to the loss, and a later version may recommend another.
        units = torch.tensor([recommended_weight(loss) for loss in losses])
        self.register_buffer("units", units, persistent=False)
        self.names = tuple(
            f"{layer} -> {source}: {type(loss).__name__}"
            for (layer, source), loss in zip(self.pairs, losses, strict=True)
        )
        self._takes_labels = tuple(takes_labels(loss) for loss in losses)
        self.set_epoch(0)

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    def forward(self, inputs: Inputs, labels: Tensor | None = None) -> Distilled:
        """Run both networks on ``inputs`` and return the student's output, the loss, and its terms.

        Args:
            inputs: One batch for both networks; a mapping is passed by keyword.
            labels: Class indices, for the losses that use them.
        """
        return self.beside(lambda: output_of(self.student, inputs), inputs, labels)

    def beside(self, run: Callable[[], Any], inputs: Inputs, labels: Tensor | None = None) -> Distilled:
        """Do the same as ``forward`` when other code runs the student, such as the step of a framework's trainer.

        Args:
            run: Runs the student once, on the inputs of the teacher. The student may be wrapped for distributed
                training. The return value is stored in ``logits``.
            inputs: One batch for the teacher.
            labels: As in ``forward``.
        """
        logits, students, teachers = self._activations(inputs, run)
        students, teachers, labels = self._from_all_ranks(students, teachers, labels)
        loss, terms = None, {}
        scale = self._scale()
        for index, name in enumerate(self.names):
            value = self._value(index, students, teachers, labels)
            terms[name] = value.detach()
            part = scale[index].to(value) * value
            loss = part if loss is None else loss + part
        assert loss is not None
        return Distilled(logits, loss, terms)

    def set_epoch(self, epoch: int) -> None:
        """Set the factors of the schedules to those of ``epoch``; both are stored in the state dict.

        Raises:
            InputError: If a schedule gives a factor that is negative or not finite.
        """
        factors = [float(self._schedules[pair](epoch)) if pair in self._schedules else 1.0 for pair in self.pairs]
        if not all(0 <= factor < float("inf") for factor in factors):
            raise InputError(f"The schedules give {factors} at epoch {epoch}; factors must be finite and not negative.")
        self.factors.copy_(torch.tensor(factors))
        self.epoch.fill_(epoch)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups for an optimizer: those of the student and those of each loss."""
        groups: list[dict[str, Any]] = [{"params": [p for p in self.student.parameters() if p.requires_grad]}]
        return groups + [group for loss in self.losses for group in groups_of(loss)]

    @torch.no_grad()
    def chance(self, inputs: Inputs, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return every loss with the teacher's samples shifted by one: its value for unrelated pairs.

        Losses that compare distributions change little, because they do not depend on the pairing.
        """
        with unchanged(self):
            self.losses.eval()
            _, students, teachers = self._activations(inputs)
            students, teachers, labels = self._from_all_ranks(students, teachers, labels)
            return {
                name: self._value(index, students, {index: teachers[index].roll(1, 0)}, labels)
                for index, name in enumerate(self.names)
            }

    @torch.no_grad()
    def information(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the estimates, in nats, of the losses that measure information, for inputs that were not trained on.

        They are bounds from the losses' present parameters, looser than those of :func:`mikit.measure`, which fits new
        ones.
        """
        with unchanged(self):
            self.eval()
            _, students, teachers = self._activations(inputs)
            found = {}
            losses: Iterable[Any] = self.losses
            for index, (name, loss) in enumerate(zip(self.names, losses, strict=True)):
                kind, unit = getattr(loss, "kind", ""), getattr(loss, "unit", "")
                if unit == "nats" and kind in ("lower bound", "upper bound", "estimate"):
                    found[name] = loss.estimate(students[index], teachers[index])
            return found

    def gradient_ratios(
        self, inputs: Inputs, labels: Tensor, task: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy
    ) -> dict[str, Tensor]:
        """Return the norm of each weighted loss's gradient in the student, relative to that of the task's loss.

        Args:
            inputs: One batch.
            labels: Its labels, for the task and for the losses.
            task: The task's loss, a function of the student's output and the labels.

        Raises:
            InputError: If the task's loss has no gradient on this batch.
        """
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        with unchanged(self), torch.enable_grad():
            self.losses.eval()
            logits, students, teachers = self._activations(inputs)
            scale = self._scale()
            values = [scale[index] * self._value(index, students, teachers, labels) for index in range(len(scale))]
            lengths = [_length(value, parameters) for value in (task(logits, labels), *values)]
        if not float(lengths[0]) > 0:
            raise InputError(
                "The task's loss has no gradient in the student on this batch, so there is no ratio to it."
            )
        return {name: length / lengths[0] for name, length in zip(self.names, lengths[1:], strict=True)}

    def _scale(self) -> Tensor:
        """Return the factor of every loss in the sum."""
        return self.weights * self.factors * self.units

    def _value(
        self, index: int, students: Mapping[int, Tensor], teachers: Mapping[int, Tensor], labels: Tensor | None
    ) -> Tensor:
        loss = self.losses[index]
        try:
            if self._takes_labels[index]:
                value: Tensor = loss(students[index], teachers[index], labels=labels)
            else:
                value = loss(students[index], teachers[index])
        except InputError as cause:
            raise InputError(f"The loss {self.names[index]} refused the batch. {cause}") from cause
        return value

    def _from_all_ranks(
        self, students: dict[int, Tensor], teachers: dict[int, Tensor], labels: Tensor | None
    ) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor | None]:
        """Return activations and labels of all ranks, or unchanged without ``across_ranks``."""
        if not self.across_ranks:
            return students, teachers, labels
        if labels is None:
            return (*gathered_rows((students, teachers)), None)
        return gathered_rows((students, teachers, labels))

    def _activations(
        self, inputs: Inputs, run: Callable[[], Any] | None = None
    ) -> tuple[Any, dict[int, Tensor], dict[int, Tensor]]:
        """Return the student's output, and by pair the activations of student and teacher."""
        if self.teacher.training:
            raise InputError(
                "The teacher is in training mode, so its features depend on the batch. Call teacher.eval()."
            )
        with ExitStack() as stack:
            sides: list[tuple[CapturedActivations, CapturedActivations]] = []
            for (layer, source), readout in zip(self.pairs, self._readouts, strict=True):
                captured = stack.enter_context(capture(self.student, [layer], readout=readout, detach=False))
                sides.append((captured, stack.enter_context(capture(self.teacher, [source], readout=readout))))
            with torch.no_grad():
                output_of(self.teacher, inputs)
            logits = output_of(self.student, inputs) if run is None else run()
            students = {index: side[0][self.pairs[index][0]] for index, side in enumerate(sides)}
            teachers = {index: side[1][self.pairs[index][1]] for index, side in enumerate(sides)}
        return logits, students, teachers

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move the teacher together with everything else."""
        self.teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        return self


def _length(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of the gradient of ``value`` in the parameters."""
    if not value.requires_grad:
        return value.new_zeros(())
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    squares = [gradient.detach().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else value.new_zeros(())
