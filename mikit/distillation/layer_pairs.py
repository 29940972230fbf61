"""Several losses between layers of a student and of its teacher, as one module to train, wrap and save."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from mikit.activations import CapturedActivations, Readout, capture
from mikit.core.errors import InputError
from mikit.distillation.across_ranks import gathered_rows
from mikit.distillation.examples import example_features, output_of

__all__ = ["Distilled", "LayerPairs"]

Pair = tuple[str, str]
Schedule = Callable[[int], float]
Inputs = Tensor | Mapping[str, Any]


@final
class Distilled(NamedTuple):
    """What one forward of :class:`LayerPairs` gives.

    Attributes:
        logits: What the student returned.
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
    epoch ``e``, and activations of one batch that both networks see.

    Args:
        student: The network to train. It becomes a part of this module, with its parameters and its state.
        teacher: The trained network, in evaluation mode. It moves along with ``to``, and is neither trained, nor saved,
            nor among the parameters.
        pairs: By layer of the student and layer of the teacher: a loss class, whose ``between`` is called with the
            example's activations; a function of both activations that returns a loss, such as
            ``partial(mikit.KD2M.between, conditional="class")``; or a loss that is built already.
        example: One batch of inputs, large enough for the statistics that losses take from it. The entries of a mapping
            are passed to both networks by keyword.
        labels: The batch's class indices, for losses that need them to be tried out.
        weights: One for each pair, or one for all, in units of a loss's ``recommended_weight``.
        schedules: Factors by epoch, for pairs whose weight is to change; :meth:`set_epoch` reads them.
        readouts: What to keep of an activation, by pair or for all, as for :func:`mikit.capture`. None: ``"whole"``
            for feature maps and losses that read them, ``"pool"`` otherwise.
        across_ranks: Whether losses see the rows of all ranks of data-parallel training (:class:`AcrossRanks`), so that
            their gradient is that of one process with the whole batch.
        generator: Where losses draw their parameters from; torch's global generator if None.

    Raises:
        InputError: If a layer does not exist (near misses are named), the teacher is in training mode, the student is
            compiled, a weight is negative, a schedule or a weight names no pair, or a loss cannot be built from or
            called with the example; the sentence names the pair.

    Cost:
        The forward passes of both networks and the losses; hooks add some ten microseconds a layer. No synchronisation.

    Pitfalls:
        - Train what :meth:`param_groups` gives: the student and the losses' own parameters. ``check_optimizer`` tells.
        - The teacher sees the same inputs, views included, so its features cannot be stored beforehand.
        - Under data-parallel training wrap this module, not the student, and pass ``across_ranks=True``: without it,
          losses over a batch see a process's own rows. :meth:`information` and :meth:`gradient_ratios` always do.
        - Compile parts of the student, not the student: hooks do not reach into a compiled graph.

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
        _require_networks(student, teacher)
        _require_pairs(pairs)
        self.student = student
        self._teacher = (teacher,)  # a tuple, so that its parameters are not this module's
        self.pairs = tuple(pairs)
        self.across_ranks = across_ranks
        for given, what in ((weights, "weights"), (schedules, "schedules"), (readouts, "readouts")):
            if isinstance(given, Mapping):
                _require_known(given, self.pairs, what)
        own = [float(weights.get(pair, 1.0) if isinstance(weights, Mapping) else weights) for pair in self.pairs]
        if not all(0 <= weight < float("inf") for weight in own):
            raise InputError(f"The weights are {own}; each must be finite and cannot be negative.")
        self.register_buffer("weights", torch.tensor(own))
        self.register_buffer("factors", torch.ones(len(own)))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self._schedules = dict(schedules or {})
        self._readouts: list[str | Readout] = []
        losses = []
        for pair, wanted in pairs.items():
            told = readouts.get(pair) if isinstance(readouts, Mapping) else readouts
            loss, readout = _built(student, teacher, pair, wanted, example, told, labels, generator)
            losses.append(loss)
            self._readouts.append(readout)
        self.losses = nn.ModuleList(losses)
        units = torch.tensor([float(getattr(loss, "recommended_weight", 1.0)) for loss in losses])
        self.register_buffer("units", units, persistent=False)
        self.names = tuple(
            f"{layer} -> {source}: {type(loss).__name__}"
            for (layer, source), loss in zip(self.pairs, losses, strict=True)
        )
        self._takes_labels = tuple(_takes_labels(loss) for loss in losses)
        self.set_epoch(0)

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    def forward(self, inputs: Inputs, labels: Tensor | None = None) -> Distilled:
        """Run both networks on ``inputs`` and return the student's output, the loss, and its terms.

        Args:
            inputs: One batch, as both networks take it; a mapping is passed by keyword.
            labels: Class indices, for the losses that read them.
        """
        return self.beside(lambda: output_of(self.student, inputs), inputs, labels)

    def beside(self, run: Callable[[], Any], inputs: Inputs, labels: Tensor | None = None) -> Distilled:
        """Do as ``forward`` does where somebody else runs the student, such as the step of a framework's trainer.

        Args:
            run: Runs the student once, on the inputs that the teacher gets; also when it is wrapped for distributed
                training. What it returns stands in ``logits``.
            inputs: One batch for the teacher.
            labels: As in ``forward``.
        """
        logits, own, told = self._activations(inputs, run)
        own, told, labels = self._from_all_ranks(own, told, labels)
        loss, terms = None, {}
        scale = self.weights * self.factors * self.units
        for index, name in enumerate(self.names):
            value = self._value(index, own, told, labels)
            terms[name] = value.detach()
            part = scale[index].to(value) * value
            loss = part if loss is None else loss + part
        assert loss is not None
        return Distilled(logits, loss, terms)

    def set_epoch(self, epoch: int) -> None:
        """Set the factors of the schedules to those of ``epoch``; both stand in the state dict.

        Raises:
            InputError: If a schedule gives a factor that is negative or not finite.
        """
        factors = [float(self._schedules[pair](epoch)) if pair in self._schedules else 1.0 for pair in self.pairs]
        if not all(0 <= factor < float("inf") for factor in factors):
            raise InputError(f"The schedules give {factors} at epoch {epoch}; factors are finite and not negative.")
        self.factors.copy_(torch.tensor(factors))
        self.epoch.fill_(epoch)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return what to hand to an optimiser: the student's parameters, and what each loss asks for its own."""
        groups: list[dict[str, Any]] = [{"params": [p for p in self.student.parameters() if p.requires_grad]}]
        for loss in self.losses:
            own = getattr(loss, "param_groups", None)
            trained = [p for p in loss.parameters() if p.requires_grad]
            groups += own() if own is not None else [{"params": trained}] if trained else []
        return groups

    @torch.no_grad()
    def chance(self, inputs: Inputs, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return every loss with the teacher's rows moved on by one: what it costs to know nothing of the partner.

        Losses that compare laws do not change much by that, for they are blind to pairing.
        """
        with _left_as_it_was(self):
            self.losses.eval()
            _, own, told = self._activations(inputs)
            own, told, labels = self._from_all_ranks(own, told, labels)
            return {
                name: self._value(index, own, {index: told[index].roll(1, 0)}, labels)
                for index, name in enumerate(self.names)
            }

    @torch.no_grad()
    def information(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the estimate, in nats, of the losses that measure information, on inputs that were not trained on.

        Of the losses' present parameters: a bound, and looser than what :func:`mikit.measure` finds with fresh ones.
        """
        with _left_as_it_was(self):
            self.eval()
            _, own, told = self._activations(inputs)
            found = {}
            losses: Iterable[Any] = self.losses  # those that say nats can be read
            for index, (name, loss) in enumerate(zip(self.names, losses, strict=True)):
                kind, unit = getattr(loss, "kind", ""), getattr(loss, "unit", "")
                if unit == "nats" and kind in ("lower bound", "upper bound", "estimate"):
                    found[name] = loss.estimate(own[index], told[index])
            return found

    def gradient_ratios(
        self, inputs: Inputs, labels: Tensor, task: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy
    ) -> dict[str, Tensor]:
        """Return how long each weighted loss's gradient in the student is, relative to that of the task's loss.

        Args:
            inputs: One batch.
            labels: Its labels, for the task and for the losses.
            task: The task's loss, of the student's output and the labels.

        Raises:
            InputError: If the task's loss has no gradient here.
        """
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        with _left_as_it_was(self), torch.enable_grad():
            self.losses.eval()
            logits, own, told = self._activations(inputs)
            scale = self.weights * self.factors * self.units
            values = [scale[index] * self._value(index, own, told, labels) for index in range(len(self.names))]
            lengths = [_length(value, parameters) for value in (task(logits, labels), *values)]
        if not float(lengths[0]) > 0:
            raise InputError(
                "The task's loss has no gradient in the student on this batch, so there is no ratio to it."
            )
        return {name: length / lengths[0] for name, length in zip(self.names, lengths[1:], strict=True)}

    def _value(
        self, index: int, own: Mapping[int, Tensor], told: Mapping[int, Tensor], labels: Tensor | None
    ) -> Tensor:
        loss = self.losses[index]
        try:
            if self._takes_labels[index]:
                value: Tensor = loss(own[index], told[index], labels=labels)
            else:
                value = loss(own[index], told[index])
        except InputError as cause:
            raise InputError(f"The loss {self.names[index]} refused the batch. {cause}") from cause
        return value

    def _from_all_ranks(
        self, own: dict[int, Tensor], told: dict[int, Tensor], labels: Tensor | None
    ) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor | None]:
        """Return activations and labels of all ranks where losses are to see them."""
        if not self.across_ranks:
            return own, told, labels
        held = gathered_rows((own, told) if labels is None else (own, told, labels))
        return held if labels is not None else (*held, None)

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
                own = stack.enter_context(capture(self.student, [layer], readout=readout, detach=False))
                sides.append((own, stack.enter_context(capture(self.teacher, [source], readout=readout))))
            with torch.no_grad():
                output_of(self.teacher, inputs)
            logits = output_of(self.student, inputs) if run is None else run()
            students = {index: side[0][self.pairs[index][0]] for index, side in enumerate(sides)}
            teachers = {index: side[1][self.pairs[index][1]] for index, side in enumerate(sides)}
        return logits, students, teachers

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move the teacher along with everything else."""
        self.teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        return self


@contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Restore the buffers, the modes and the random state of a module after a look at it."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _built(
    student: nn.Module,
    teacher: nn.Module,
    pair: Pair,
    wanted: type[nn.Module] | nn.Module | Callable[[Tensor, Tensor], nn.Module],
    example: Inputs,
    told: str | Readout | None,
    labels: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[nn.Module, str | Readout]:
    """Return the loss of a pair, tried out on the example, and the readout it gets."""
    layer, source = pair
    own, other = example_features(student, teacher, example, layer, source, readout="whole" if told is None else told)
    readout: str | Readout = told if told is not None else "whole"
    maps = min(own.ndim, other.ndim) == 4
    if told is None and not (maps and "nchw" in _shapes(wanted)):
        readout = "pool"
        own, other = example_features(student, teacher, example, layer, source, readout=readout)
    said = f"between the layers {layer!r} {tuple(own.shape)} and {source!r} {tuple(other.shape)}"
    try:
        if isinstance(wanted, type):
            between = getattr(wanted, "between", None)
            loss = wanted() if between is None else between(own, other, generator=generator)
        elif isinstance(wanted, nn.Module):
            loss = wanted
        else:
            loss = wanted(own, other)
    except (InputError, TypeError) as cause:
        raise InputError(f"No loss could be built {said}. {cause}") from cause
    if not isinstance(loss, nn.Module):
        raise InputError(f"What stands {said} is a {type(loss).__name__}, and not a loss, a class or a function.")
    loss = loss.to(own.device)
    takes_labels = _takes_labels(loss)
    if labels is not None or not takes_labels:
        with _left_as_it_was(loss), torch.no_grad():
            loss.eval()
            try:
                value = loss(own, other, labels=labels) if takes_labels else loss(own, other)
            except (InputError, RuntimeError) as cause:
                raise InputError(f"The loss {type(loss).__name__} {said} refused the example. {cause}") from cause
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise InputError(f"The loss {type(loss).__name__} {said} returned no 0-dim tensor.")
    return loss, readout


def _shapes(wanted: object) -> tuple[str, ...]:
    """Return the layouts a loss reads; behind a function, those of the class it belongs to."""
    function = getattr(wanted, "func", wanted)
    owner = getattr(function, "__self__", function)
    shapes: tuple[str, ...] = getattr(owner, "shapes", ("nd",))
    return shapes


def _takes_labels(loss: nn.Module) -> bool:
    return "labels" in inspect.signature(loss.forward).parameters


def _length(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    if not value.requires_grad:
        return value.new_zeros(())
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    squares = [gradient.detach().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else value.new_zeros(())


def _require_networks(student: nn.Module, teacher: nn.Module) -> None:
    if teacher is student:
        raise InputError("Teacher and student are one module; a student learns from another network.")
    if any(module.training for module in teacher.modules()):
        raise InputError(
            "The teacher is in training mode, so its features would depend on the batch and its statistics would move. "
            "Call teacher.eval()."
        )
    for network, name in ((student, "student"), (teacher, "teacher")):
        if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
            raise InputError(
                f"The {name} is compiled, and hooks do not reach into a compiled graph. Pass the network as it was "
                "before torch.compile, and compile parts of it that hold no captured layer."
            )


def _require_pairs(pairs: Mapping[Pair, object]) -> None:
    if not pairs:
        raise InputError("pairs is empty. Name at least one layer of the student and one of the teacher.")
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise InputError(
                f"pairs holds {pair!r}; a key is the layer of the student and that of the teacher, "
                '("stage2", "stage3").'
            )


def _require_known(given: Mapping[Pair, object], pairs: tuple[Pair, ...], what: str) -> None:
    extra = [pair for pair in given if pair not in pairs]
    if extra:
        raise InputError(f"{what} names {extra[0]!r}, which is not among the pairs {list(pairs)}.")
