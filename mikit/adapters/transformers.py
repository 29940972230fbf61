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

__all__ = ["LOSSES_FILE", "DistillationTrainerMixin"]

LOSSES_FILE = "mikit_losses.pt"
"""Name of the file in a checkpoint that holds the losses' own parameters and buffers."""


class DistillationTrainerMixin:
    """Put before ``transformers.Trainer``, adds the losses of :class:`~mikit.LayerPairs` to the model's own.

    Formula: every training step minimises the Trainer's loss plus the weighted sum of the losses between layers; an
    evaluation reports the Trainer's loss alone.

    Attributes:
        layer_pairs: The losses, given to :meth:`learn_from`.

    Raises:
        InputError: If there are no losses when training begins, the student of the losses is not the Trainer's model,
            the model is compiled, an optimiser of one's own lacks parameters of the losses, a checkpoint to resume from
            has no losses or others, or processes are several and losses have parameters of their own.

    Cost:
        The teacher's forward pass and the losses, as :class:`~mikit.LayerPairs`. Logging waits for the device where the
        Trainer does.

    Pitfalls:
        - Both networks get one batch by keyword; the teacher gets it without the labels. Its tokens must mean the same:
          one tokenizer for both.
        - Hidden states are ``(n, t, d)``. The readout ``"pool"`` averages over all tokens, padding included; ``"cls"``
          takes the first token, which has none. Say which with ``readouts=``.
        - Class indices go to losses that take them where ``labels`` is ``(n,)``; labels of tokens do not.
        - Under ``gradient_accumulation_steps`` each micro-batch has a loss of its own: what compares rows of a batch
          with each other sees only these. The losses count as a mean over the micro-batches. A model that takes the
          Trainer's ``num_items_in_batch`` and averages all the same, as BERT's classifier does in transformers 5.24,
          has its own loss summed over them by the Trainer, not averaged.
        - ``max_grad_norm`` clips the gradient of the model, not that of the losses' parameters.
        - The losses' parameters are not synchronised between processes, so that several processes are refused where
          there are any; ``HintonKD`` or ``PKT`` between equal widths has none.
        - The losses' own random streams are not in the checkpoint; torch's are, by the Trainer.

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
        """Take the losses; call it before ``train``.

        Args:
            layer_pairs: Built from the Trainer's own model and a teacher in evaluation mode.
        """
        _require_transformers()
        if layer_pairs.student is not self.model:
            raise InputError(
                f"The student of the losses, a {type(layer_pairs.student).__name__}, is not the Trainer's model. Build "
                "LayerPairs from the very model that was passed to the Trainer."
            )
        if getattr(self.args, "torch_compile", False):
            raise InputError(
                "The training arguments ask for torch_compile, and hooks do not reach into a compiled graph. Leave it "
                "out."
            )
        trained = [name for name, p in layer_pairs.losses.named_parameters() if p.requires_grad]
        if trained and self.args.world_size > 1:
            raise InputError(
                f"The losses have {len(trained)} parameters of their own ({trained[0]} and so on), which the Trainer "
                f"does not synchronise between its {self.args.world_size} processes. Use one process, or losses "
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
        """Return the Trainer's loss, and while training the losses between layers with it."""
        base: Any = super()
        if not model.training:
            return base.compute_loss(model, inputs, return_outputs, *args, **kwargs)
        pairs = self._pairs()
        if self.state.global_step != self._step:  # The Trainer empties the gradients of its model, and of nothing else.
            pairs.losses.zero_grad()
            self._step = self.state.global_step
        epoch = int((self.state.epoch or 0.0) + 1e-9)
        if epoch != int(pairs.epoch):
            pairs.set_epoch(epoch)
        labels = inputs.get(self.label_names[0]) if len(self.label_names) == 1 else None
        classes = labels if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() else None
        shown = {name: value for name, value in inputs.items() if name not in self.label_names}
        with self.accelerator.autocast():
            (task, outputs), added, terms = pairs.beside(
                lambda: base.compute_loss(model, inputs, True, *args, **kwargs), shown, classes
            )
        share = self._share(args, kwargs)
        self._keep({"task": task.detach() / share, **terms})
        loss = task + added * share
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, *args: Any) -> Optimizer:
        """Return the Trainer's optimiser, with the losses' own parameters in groups of their own."""
        base: Any = super()
        given = self.optimizer is not None
        optimizer: Optimizer = base.create_optimizer(*args)
        pairs = self._pairs()
        if not given:
            for loss in pairs.losses:
                own = getattr(loss, "param_groups", None)
                trained = [p for p in loss.parameters() if p.requires_grad]
                for group in own() if own is not None else [{"params": trained}] if trained else []:
                    optimizer.add_param_group({"weight_decay": self.args.weight_decay, **group})
        check_optimizer(optimizer, pairs.losses)
        return optimizer

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save the model as the Trainer does, and the losses beside it; never the teacher."""
        base: Any = super()
        base.save_model(output_dir, *args, **kwargs)
        if self.layer_pairs is not None and self.args.should_save:
            folder = Path(self.args.output_dir if output_dir is None else output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            state = _state_of(self.layer_pairs)
            write_atomically(folder / LOSSES_FILE, lambda file: torch.save(state, file))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; a checkpoint gives the losses their parameters back."""
        base: Any = super()
        pairs = self._pairs()
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            if folder is True:
                from transformers.trainer_utils import get_last_checkpoint

                folder = get_last_checkpoint(self.args.output_dir)
            if folder is not None:  # What there is not to resume from, the Trainer itself says.
                _load_state(pairs, Path(os.fspath(folder)) / LOSSES_FILE)
        return base.train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the mean of the task's loss and of every term since the last time."""
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
        """Return what a mean over a micro-batch is multiplied with to stand beside the Trainer's loss.

        Where the Trainer's loss is a sum over all micro-batches of a step divided by the rows of all, it is not divided
        by their number afterwards.
        """
        items = kwargs.get("num_items_in_batch", args[0] if args else None)
        told = getattr(self, "loss_is_scaled_for_ga", None)
        scaled = (
            told
            if told is not None
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
    """Return what the losses hold, without the student."""
    return {name: value for name, value in pairs.state_dict().items() if not name.startswith("student.")}


def _load_state(pairs: LayerPairs, file: Path) -> None:
    if not file.is_file():
        raise InputError(
            f"There is no {file}, so the losses cannot go on where they were. Resume from a checkpoint that this class "
            "has written, or start anew."
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
            f"The losses in {file} are others than those of this Trainer: {' '.join(str(cause).split())[:300]}."
        ) from cause


def _require_transformers() -> None:
    try:
        importlib.import_module("transformers")
    except ImportError as cause:
        raise InputError(
            "mikit.adapters.transformers needs transformers and accelerate, which are not installed. Run: pip install "
            "'mikit[integrations]'."
        ) from cause
