"""Distillation losses in a module of Lightning, and activations recorded at phases while its Trainer runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mikit.core.errors import InputError
from mikit.distillation import LayerPairs, PhaseRecorder, check_optimizer

__all__ = ["DistillationModuleMixin", "phase_callback"]


class DistillationModuleMixin:
    """Put before ``lightning.LightningModule``, trains what :class:`~mikit.LayerPairs` holds.

    Formula: every training step minimises :meth:`task_loss` plus the weighted sum of the losses between layers. Both,
    and every term before its weight, are logged as ``train/loss``, ``train/task`` and ``distillation/<term>``.

    A subclass sets ``self.pairs`` in its constructor and writes ``configure_optimizers``, from
    ``self.pairs.param_groups()``.

    Attributes:
        pairs: Student, losses and teacher. As a part of the module, its student and losses are trained, moved, wrapped
            and saved with it; the teacher is moved along, and neither trained nor saved.

    Raises:
        InputError: If there are no losses when training begins, the optimiser lacks a parameter of student or losses,
            or a batch is not a pair of inputs and labels.

    Cost:
        The teacher's forward pass and the losses, as :class:`~mikit.LayerPairs`; logging does not wait for the device.

    Pitfalls:
        - Lightning calls ``train()`` on everything in the module. The teacher is no part of it in that sense, so it
          stays in evaluation mode.
        - A subclass with hooks ``on_train_start`` or ``on_train_epoch_start`` of its own calls ``super()`` in them: the
          first checks the optimiser, the second sets the epoch for schedules.
        - Under several processes a loss over a batch sees a process's own rows, unless the pairs were built with
          ``across_ranks=True``.
        - ``gradient_clip_val`` clips the losses' parameters together with the student's.
        - ``load_from_checkpoint`` builds the module anew, which needs the teacher: pass it the pairs.

    Example:
        >>> # class Distillation(DistillationModuleMixin, lightning.LightningModule):
        >>> #     def __init__(self, pairs):
        >>> #         super().__init__()
        >>> #         self.pairs = pairs
        >>> #     def configure_optimizers(self):
        >>> #         return torch.optim.SGD(self.pairs.param_groups(), lr=0.05)
        >>> hasattr(DistillationModuleMixin, "configure_optimizers")
        False
    """

    pairs: LayerPairs  # no default: a module looks up its class before its parts

    def task_loss(self, output: Any, labels: Tensor) -> Tensor:
        """Return the task's loss of the student's output: cross-entropy, unless a subclass says otherwise."""
        return cross_entropy(output, labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch of inputs and labels, and log its parts."""
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise InputError(
                f"The batch is a {type(batch).__name__}, and not inputs and labels. Give the loader such pairs, or "
                "write a training_step of your own around self.pairs(inputs, labels)."
            )
        inputs, labels = batch
        logits, added, terms = self._pairs()(inputs, labels)
        task = self.task_loss(logits, labels)
        loss: Tensor = task + added
        parts = {"train/loss": loss.detach(), "train/task": task.detach()}
        parts |= {f"distillation/{name}": term for name, term in terms.items()}
        module: Any = self  # which Lightning's own class makes complete
        module.log_dict(parts, batch_size=labels.shape[0])
        return loss

    def on_train_start(self) -> None:
        """Check that the optimisers hold every parameter of student and losses."""
        module: Any = self
        optimizers = module.optimizers()
        held = optimizers if isinstance(optimizers, list) else [optimizers]
        if len(held) == 1:
            check_optimizer(held[0], self._pairs())

    def on_train_epoch_start(self) -> None:
        """Set the factors of schedules to those of the epoch."""
        module: Any = self
        self._pairs().set_epoch(int(module.current_epoch))

    def _pairs(self) -> LayerPairs:
        pairs = getattr(self, "pairs", None)
        if not isinstance(pairs, LayerPairs):
            raise InputError(
                "This module has no losses. Set self.pairs = mikit.LayerPairs(student, teacher, ...) in its "
                "constructor, after super().__init__()."
            )
        return pairs


def phase_callback(recorder: PhaseRecorder, network: nn.Module) -> Any:
    """Return a callback of Lightning that records activations at phases.

    Args:
        recorder: Where, on what and after which epochs; 0 is the untrained network.
        network: The network to record, such as ``pairs.student``.

    Returns:
        A ``lightning.pytorch.callbacks.LambdaCallback``, for ``Trainer(callbacks=[...])``.

    Raises:
        InputError: If Lightning is not installed.

    Cost:
        One forward pass over the recorder's images at each of its phases, on the first process alone.

    Pitfalls:
        Training goes on as if nothing had been recorded: modes, statistics and random state stay. Other processes wait
        for the first one at their next exchange.

    Source:
        Lightning calls ``on_train_epoch_end`` before it counts the epoch.

    Example:
        >>> # Trainer(callbacks=[phase_callback(recorder, pairs.student)])
        >>> callable(phase_callback)
        True
    """
    try:
        from lightning.pytorch.callbacks import LambdaCallback
    except ImportError as cause:
        raise InputError(
            "phase_callback needs Lightning, which is not installed. Run: pip install 'mikit[integrations]'."
        ) from cause

    def begin(trainer: Any, _module: Any) -> None:
        if trainer.current_epoch == 0 and trainer.global_step == 0 and trainer.is_global_zero:
            recorder(0, network)

    def end(trainer: Any, _module: Any) -> None:
        if trainer.is_global_zero:
            recorder(trainer.current_epoch + 1, network)

    return LambdaCallback(on_train_start=begin, on_train_epoch_end=end)
