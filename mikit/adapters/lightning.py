"""Distillation losses in a Lightning module, and a callback that records activations during training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mikit.core.errors import InputError
from mikit.distillation import LayerPairs, PhaseRecorder, check_optimizer

__all__ = ["DistillationModuleMixin", "phase_callback"]


class DistillationModuleMixin:
    """Mixin that trains a :class:`~mikit.LayerPairs`; list it before ``lightning.LightningModule`` in the bases.

    Formula: every training step minimizes :meth:`task_loss` plus the weighted sum of the losses between layers. They
    are logged as ``train/loss``, ``train/task`` and, without its weight, ``distillation/<term>``.

    A subclass sets ``self.pairs`` in its constructor and defines ``configure_optimizers``, using
    ``self.pairs.param_groups()``.

    Attributes:
        pairs: Student, losses and teacher. Student and losses are trained, moved, wrapped and saved with the module;
            the teacher is moved, but neither trained nor saved.

    Raises:
        InputError: If there are no losses when training begins, the optimizer lacks a parameter of student or losses,
            or a batch is not a pair of inputs and labels.

    Cost:
        The teacher's forward pass and the losses, as :class:`~mikit.LayerPairs`; logging does not wait for the device.

    Pitfalls:
        - Lightning calls ``train()`` on all parts of the module. The teacher is not registered as one, so it stays in
          evaluation mode.
        - A subclass that overrides ``on_train_start`` or ``on_train_epoch_start`` must call ``super()``: the first
          checks the optimizer, the second sets the epoch for schedules.
        - With several processes a loss over a batch uses the samples of one process, unless the pairs were built with
          ``across_ranks=True``.
        - ``gradient_clip_val`` clips the losses' parameters together with the student's.
        - ``load_from_checkpoint`` builds a new module, which needs the teacher: pass the pairs to it.

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

    pairs: LayerPairs  # no default, because class attributes take precedence over submodules

    def task_loss(self, output: Any, labels: Tensor) -> Tensor:
        """Return the task's loss of the student's output: cross-entropy, unless a subclass overrides it."""
        return cross_entropy(output, labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch of inputs and labels, and log its parts."""
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise InputError(
                f"The batch is a {type(batch).__name__} and not a pair of inputs and labels. Use a loader that returns "
                "such pairs, or write your own training_step with self.pairs(inputs, labels)."
            )
        inputs, labels = batch
        logits, added, terms = self._pairs()(inputs, labels)
        task = self.task_loss(logits, labels)
        loss: Tensor = task + added
        parts = {"train/loss": loss.detach(), "train/task": task.detach()}
        parts |= {f"distillation/{name}": term for name, term in terms.items()}
        module: Any = self  # a LightningModule as well
        module.log_dict(parts, batch_size=labels.shape[0])
        return loss

    def on_train_start(self) -> None:
        """Check that a single optimizer contains every parameter of student and losses."""
        module: Any = self
        optimizers = module.optimizers()
        every = optimizers if isinstance(optimizers, list) else [optimizers]
        if len(every) == 1:
            check_optimizer(every[0], self._pairs())

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
    """Return a Lightning callback that records activations at chosen epochs.

    Args:
        recorder: Store, images and epochs; 0 is the untrained network.
        network: The network to record, such as ``pairs.student``.

    Returns:
        A ``lightning.pytorch.callbacks.LambdaCallback``, for ``Trainer(callbacks=[...])``.

    Raises:
        InputError: If Lightning is not installed.

    Cost:
        One forward pass over the recorder's images at each of its epochs, on the first process only.

    Pitfalls:
        Recording does not change training: modes, statistics and random state are restored. Other processes wait for
        the first one at their next synchronization.

    Source:
        Lightning calls ``on_train_epoch_end`` before it increments the epoch.

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
