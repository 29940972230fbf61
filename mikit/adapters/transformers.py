"""Distillation losses in the Trainer of Hugging Face transformers."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mikit.core.errors import InputError
from mikit.core.files import write_atomically
from mikit.distillation import LayerPairs, check_optimizer
from mikit.distillation.training.optimizers import groups_of

__all__ = ["LOSSES_FILE", "DistillationTrainerMixin"]

LOSSES_FILE = "mikit_losses.pt"
"""Name of the file in a checkpoint with the losses' own parameters and buffers."""


class DistillationTrainerMixin:
    """Mixin that adds the losses of a :class:`~mikit.LayerPairs`; list it before ``transformers.Trainer`` in the bases.

    Formula: every training step minimizes the Trainer's loss plus the weighted sum of the losses between layers; an
    evaluation reports the Trainer's loss alone.

    Attributes:
        layer_pairs: The losses, set by :meth:`learn_from`.

    Raises:
        InputError: If there are no losses when training begins, the student of the losses is not the Trainer's model,
            the model is compiled, a custom optimizer lacks parameters of the losses, a checkpoint to resume from has no
            losses or others, or losses with parameters are used with several processes.

    Cost:
        The teacher's forward pass and the losses, as :class:`~mikit.LayerPairs`. Logging waits for the device whenever
        the Trainer does.

    Pitfalls:
        - Both networks get the same batch by keyword; the teacher gets it without the labels. Use one tokenizer for
          both, because token ids must mean the same.
        - Hidden states are ``(n, t, d)``. The readout ``"pool"`` averages over all tokens, including padding; ``"cls"``
          takes the first token, which is never padding. Choose one with ``readouts=``.
        - Losses that take class indices get ``labels`` if its shape is ``(n,)``; labels of tokens are not passed.
        - With ``gradient_accumulation_steps`` the losses are computed for each micro-batch: a loss over a batch
          compares only samples within it. The losses are averaged over the micro-batches. For a model that accepts the
          Trainer's ``num_items_in_batch`` but averages nevertheless, such as BERT's classifier in transformers 5.24,
          the Trainer sums the model's own loss over them instead of averaging it.
        - ``max_grad_norm`` clips the gradient of the model, not that of the losses' parameters.
        - The losses' parameters are not synchronized between processes, so several processes are refused if there are
          any; ``HintonKD``, or ``PKT`` between equal widths, has none.
        - Random generators of the losses are not in the checkpoint; the Trainer stores those of torch.

    Example:
        >>> # class DistillationTrainer(DistillationTrainerMixin, transformers.Trainer): ...
        >>> # trainer = DistillationTrainer(model=student, args=args, train_dataset=data)
        >>> # trainer.learn_from(mikit.LayerPairs(student, teacher.eval(), {...}, example=batch, readouts="cls"))
        >>> # trainer.train()
        >>> DistillationTrainerMixin.__mro__[-1]
        <class 'object'>
    """

    layer_pairs: LayerPairs | None = None
    args: Any
    accelerator: Any
    model: Any
    optimizer: Any
    state: Any
    label_names: Any

    def learn_from(self, layer_pairs: LayerPairs) -> None:
        """Set the losses; call it before ``train``.

        Args:
            layer_pairs: Built from the Trainer's own model and a teacher in evaluation mode.
        """
        _require_transformers()
        if layer_pairs.student is not self.model:
            raise InputError(
                f"The student of the losses, a {type(layer_pairs.student).__name__}, is not the Trainer's model. Build "
                "LayerPairs from the same model object that was passed to the Trainer."
            )
        if getattr(self.args, "torch_compile", False):
            raise InputError(
                "torch_compile is set in the training arguments, and hooks have no effect in a compiled graph. Train "
                "without it."
            )
        trained = [name for name, p in layer_pairs.losses.named_parameters() if p.requires_grad]
        if trained and self.args.world_size > 1:
            raise InputError(
                f"The losses have {len(trained)} parameters of their own ({trained[0]} and so on), which the Trainer "
                f"does not synchronize between its {self.args.world_size} processes. Use one process, or losses "
                "without parameters."
            )
        layer_pairs.to(self.args.device)
        self.layer_pairs = layer_pairs
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._step: int | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return the Trainer's loss, in training plus the losses between layers."""
        base: Any = super()
        if not model.training:
            return base.compute_loss(model, inputs, return_outputs, *args, **kwargs)
        pairs = self._pairs()
        if self.state.global_step != self._step:  # The Trainer sets only the gradients of its model to zero.
            pairs.losses.zero_grad()
            self._step = self.state.global_step
        epoch = int((self.state.epoch or 0.0) + 1e-9)
        if epoch != int(pairs.epoch):
            pairs.set_epoch(epoch)
        labels = inputs.get(self.label_names[0]) if len(self.label_names) == 1 else None
        classes = labels if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() else None
        features = {name: value for name, value in inputs.items() if name not in self.label_names}
        with self.accelerator.autocast():
            (task, outputs), added, terms = pairs.beside(
                lambda: base.compute_loss(model, inputs, True, *args, **kwargs), features, classes
            )
        share = self._share(args, kwargs)
        self._keep({"task": task.detach() / share, **terms})
        loss = task + added * share
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, *args: Any) -> Optimizer:
        """Return the Trainer's optimizer, with groups for the parameters of the losses."""
        base: Any = super()
        custom = self.optimizer is not None
        optimizer: Optimizer = base.create_optimizer(*args)
        pairs = self._pairs()
        if not custom:
            for loss in pairs.losses:
                for group in groups_of(loss):
                    optimizer.add_param_group({"weight_decay": self.args.weight_decay, **group})
        check_optimizer(optimizer, pairs.losses)
        return optimizer

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save the model as the Trainer does, and the losses in the same folder, without the teacher."""
        base: Any = super()
        base.save_model(output_dir, *args, **kwargs)
        if self.layer_pairs is not None and self.args.should_save:
            folder = Path(self.args.output_dir if output_dir is None else output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            state = _state_of(self.layer_pairs)
            write_atomically(folder / LOSSES_FILE, lambda file: torch.save(state, file))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; the parameters of the losses are loaded from a checkpoint to resume from."""
        base: Any = super()
        pairs = self._pairs()
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            if folder is True:
                from transformers.trainer_utils import get_last_checkpoint

                folder = get_last_checkpoint(self.args.output_dir)
            if folder is not None:  # If there is no checkpoint, the Trainer raises.
                _load_state(pairs, Path(os.fspath(folder)) / LOSSES_FILE)
        return base.train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the means of the task's loss and of every term since the last call."""
        base: Any = super()
        if self._steps_kept() and "loss" in logs:
            logs |= {f"distillation/{name}": float(value) / self._steps for name, value in self._sums.items()}
            self._sums, self._steps = {}, 0
        base.log(logs, *args, **kwargs)

    def _pairs(self) -> LayerPairs:
        if self.layer_pairs is None:
            raise InputError("This Trainer has no losses yet. Call learn_from(layer_pairs) before train().")
        return self.layer_pairs

    def _share(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """Return the factor with which the losses of a micro-batch are added to the Trainer's loss."""
        # The Trainer divides the loss of a micro-batch by the number of micro-batches, unless the model has already
        # divided by the items of all of them. In that case the mean over micro-batches must be formed here.
        items = kwargs.get("num_items_in_batch", args[0] if args else None)
        known = getattr(self, "loss_is_scaled_for_ga", None)
        scaled = (
            known
            if known is not None
            else (getattr(self, "model_accepts_loss_kwargs", False) and items is not None)
            or getattr(self, "compute_loss_func", None) is not None
        )
        steps = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        return 1.0 / steps if scaled else 1.0

    def _keep(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def _steps_kept(self) -> int:
        return self._steps if self.layer_pairs is not None else 0


def _state_of(pairs: LayerPairs) -> dict[str, Any]:
    """Return the state of the losses, without the student."""
    return {name: value for name, value in pairs.state_dict().items() if not name.startswith("student.")}


def _load_state(pairs: LayerPairs, file: Path) -> None:
    if not file.is_file():
        raise InputError(
            f"There is no {file}, so the losses cannot be resumed. Resume from a checkpoint that was written by this "
            "class, or start again."
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:
        raise InputError(f"{file} cannot be read ({type(cause).__name__}). Resume from another checkpoint.") from cause
    student = {f"student.{name}": value for name, value in pairs.student.state_dict().items()}
    try:
        pairs.load_state_dict({**student, **state})
    except RuntimeError as cause:
        raise InputError(
            f"The losses in {file} are not those of this Trainer: {' '.join(str(cause).split())[:300]}."
        ) from cause


def _require_transformers() -> None:
    try:
        importlib.import_module("transformers")
    except ImportError as cause:
        raise InputError(
            "mikit.adapters.transformers needs transformers and accelerate, which are not installed. Run: pip install "
            "'mikit[integrations]'."
        ) from cause
