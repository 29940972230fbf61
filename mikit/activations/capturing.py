"""Hooks that capture activations while a model runs, without changing the model."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor, nn

from mikit.activations.layer_names import listed, module_and_readout, parse_readout, readouts_by_layer
from mikit.activations.readout import Readout
from mikit.core.errors import InputError

__all__ = ["CapturedActivations", "capture"]


@final
class CapturedActivations(Mapping[str, Tensor]):
    """The activations of the last forward pass of a model, by layer name; made by :func:`capture`.

    The keys are the captured layers, in the order of the call. Access to a layer raises an error if the last forward
    pass did not run it, or ran it several times. The mapping can still be used after the ``with`` block.

    Raises:
        InputError: On access to a layer without an activation; the message states the reason.

    Cost: Memory for one activation per layer, until the next forward pass or until the mapping is deleted.

    Pitfalls:
        The tensors are those of the last forward pass only. To collect several batches, keep them in a list, or use
        :func:`~mikit.activations.record_activations`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with capture(model, ["0"]) as acts:
        ...     _ = model(torch.ones(5, 3))
        >>> list(acts), acts["0"].shape
        (['0'], torch.Size([5, 2]))
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = tuple(layers)
        self._values: dict[str, Tensor] = {}
        self._faults: dict[str, str] = {}
        self._calls: dict[str, int] = {}
        self._running = False
        self._unfinished = False

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self._layers:
            raise InputError(
                f"The layer {layer!r} is not captured; the captured layers are {listed(self._layers)}. Add it to the "
                "layers passed to capture."
            )
        if self._unfinished and not self._running:
            raise InputError("The last forward pass of the model raised an exception. Run the model again.")
        if (calls := self._calls.get(layer, 0)) > 1:
            raise InputError(
                f"The layer {layer!r} ran {calls} times in the last forward pass, so it has no single activation. "
                "Capture an outer module that runs once, or use a separate module for each call."
            )
        if layer in self._faults:
            raise InputError(f"The layer {layer!r} could not be captured. {self._faults[layer]}")
        if layer not in self._values:
            raise InputError(
                f"The layer {layer!r} did not run in the last forward pass, or there was no forward pass yet. If the "
                "model does run it, the reason may be a compiled or scripted graph, or a direct call of its forward "
                "method: both bypass hooks."
            )
        return self._values[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{layer!r}: {tuple(value.shape)}" for layer, value in self._values.items())
        return f"CapturedActivations({{{shapes}}})"

    def _begin(self) -> None:
        self._values.clear()
        self._faults.clear()
        self._calls.clear()
        self._running = self._unfinished = True

    def _keep(self, layer: str, output: Any, prepare: _Preparation) -> None:
        # Outside a forward pass of the whole model (only a part of it was called) the latest call replaces others.
        self._calls[layer] = self._calls.get(layer, 0) + 1 if self._running else 1
        self._values.pop(layer, None)
        self._faults.pop(layer, None)
        if self._calls[layer] > 1:
            return
        try:
            self._values[layer] = prepare(output)
        except InputError as fault:
            # Raised on access: capturing never changes the forward pass.
            self._faults[layer] = str(fault)


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[str],
    *,
    readout: str | Readout | Mapping[str, str | Readout] = "pool",
    detach: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[CapturedActivations]:
    """Capture the activations of ``layers`` whenever ``model`` runs inside the ``with`` block.

    Capturing does not change the model: outputs, buffers, train flags and random state are bit-identical, and the hooks
    are removed when the block ends in any way. Activations are copied, so that a later in-place operation does not
    change them, and cleared when the next forward pass of ``model`` starts. If a layer returns a tuple or a list, its
    first tensor is the activation (the output of an attention or recurrent layer).

    Args:
        model: Any module, including one that is wrapped for distributed training.
        layers: Dotted module names, as in ``model.named_modules()``, each once. ``"layer2:pool4"`` applies the readout
            ``"pool4"`` to ``layer2``, so that one module can have several readouts in one pass.
        readout: How activations are pooled: a name (:data:`~mikit.activations.layer_names.READOUT_NAMES`) or readout
            for all layers, or one for each layer without a readout in its name. ``"pool"`` gives ``(n, c)``;
            ``"whole"`` keeps feature maps for losses that use them.
        detach: Detach activations from the graph. Pass False for the student of a distillation loss.
        device: Device of the activations; by default they are not moved.
        dtype: Floating-point type of the activations; by default they are not converted.

    Yields:
        The activations of the last forward pass: a mapping from layer name to tensor, samples along the first axis.

    Raises:
        InputError: On entry, if a name is empty, repeated or not a module of the model (the error suggests similar
            names), or if a readout does not exist or is missing for a layer. On access, if a layer did not run in the
            last forward pass, ran several times, or returned something that has no readout.

    Cost: One copy per captured layer after its readout; the hooks add tens of microseconds per layer to a forward pass.

    Pitfalls:
        A compiled model does not call hooks that were registered after it ran; use ``capture`` on the model before
        ``torch.compile``. Activations are cleared by calls of ``model`` itself: if only a part of it or another method
        is called, a layer that did not run keeps its earlier activation, and the last of several calls of one layer
        counts. The first axis must be the samples; recurrent and attention layers with ``batch_first=False`` have time
        there. With ``detach=False`` the mapping keeps the graph of the last forward pass alive.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2))
        >>> with capture(model, ["0", "3"]) as acts:
        ...     _ = model(torch.zeros(6, 1, 8, 8))
        >>> acts["0"].shape, acts["3"].shape
        (torch.Size([6, 4]), torch.Size([6, 2]))
        >>> with capture(model, ["conv"]) as acts:
        ...     pass
        Traceback (most recent call last):
        ...
        mikit.core.errors.InputError: The model has no module 'conv'. Its modules are '0', '1', '2' and '3'.
    """
    modules = _modules_by_name(model, layers)
    readouts = readouts_by_layer(readout, tuple(modules))
    _refuse_twins(modules, readouts)
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype}; it must be a floating-point type.")
    acts = CapturedActivations(tuple(modules))
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(lambda *_: acts._begin()))
        for layer, module in modules.items():
            prepare = _Preparation(readouts[layer], detach, device, dtype)
            handles.append(module.register_forward_hook(_layer_hook(acts, layer, prepare)))
        handles.append(model.register_forward_hook(_finished_hook(acts)))
        handles.append(model.register_forward_hook(_stopped_hook(acts), always_call=True))
        yield acts
    finally:
        for handle in handles:
            handle.remove()


@final
class _Preparation:
    """Turns the output of a module into the tensor that is kept."""

    def __init__(
        self, readout: Readout, detach: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        self.readout, self.detach, self.device, self.dtype = readout, detach, device, dtype

    def __call__(self, output: Any) -> Tensor:
        whole = _first_tensor(output)
        source = whole.detach() if self.detach else whole
        value = self.readout(source).to(device=self.device, dtype=self.dtype)
        # A readout may return a view; the model may change the memory in place later.
        shared = value.device == whole.device and (
            value.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        )
        return value.clone(memory_format=torch.contiguous_format) if shared else value


def _layer_hook(acts: CapturedActivations, layer: str, prepare: _Preparation) -> Any:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        acts._keep(layer, output, prepare)

    return keep


def _finished_hook(acts: CapturedActivations) -> Any:
    def finished(_module: nn.Module, _args: Any, _output: Any) -> None:
        acts._unfinished = False

    return finished


def _stopped_hook(acts: CapturedActivations) -> Any:
    def stopped(_module: nn.Module, _args: Any, _output: Any) -> None:
        acts._running = False

    return stopped


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        first = output
    elif isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        first = output[0]
    else:
        keys = f" with the keys {listed(tuple(map(str, output)))}" if isinstance(output, Mapping) else ""
        raise InputError(
            f"It returns a {type(output).__name__}{keys}, neither a tensor nor a tuple that begins with one. Capture "
            "an inner module that returns a tensor."
        )
    if first.layout != torch.strided:
        raise InputError(f"It returns a tensor of layout {first.layout}; readouts need dense tensors.")
    return first


def _modules_by_name(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Check the names and return the modules to hook."""
    if isinstance(layers, str):
        raise InputError(f"layers is the single string {layers!r}. Pass a list of names: [{layers!r}].")
    names = list(layers)
    if not names:
        raise InputError("layers is empty. Name at least one module to capture.")
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise InputError(
            "The model is an nn.DataParallel over several devices, which runs every layer once per device. Capture "
            "model.module, or use DistributedDataParallel."
        )
    original = _without_compilation(model)
    known = {name: module for name, module in original.named_modules(remove_duplicate=False) if name}
    found: dict[str, nn.Module] = {}
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"layers contains {name!r}, which is not a module name. Pass dotted names as strings.")
        if name == "":
            raise InputError(
                "The empty name is the model itself, whose output the call returns. Name a module inside the model."
            )
        if name in found:
            raise InputError(f"layers contains {name!r} twice. Name each layer once.")
        module = module_and_readout(name)[0]
        if module not in known:
            if name.partition(":")[0] in known:
                parse_readout(name.partition(":")[2])  # The module exists, so the readout does not.
            close = difflib.get_close_matches(module, known, n=3, cutoff=0.5)
            if close:
                advice = f"Did you mean {listed(close, 'or')}?"
            else:
                advice = f"Its modules are {listed(tuple(known))}." if known else "It contains no modules."
            raise InputError(f"The model has no module {name!r}. {advice}")
        found[name] = known[module]
    return found


def _refuse_twins(modules: Mapping[str, nn.Module], readouts: Mapping[str, Readout]) -> None:
    """Raise if two layers are the same module with the same readout."""
    for (one, first), (other, second) in combinations(modules.items(), 2):
        if first is second and readouts[one] == readouts[other]:
            raise InputError(
                f"The layers {one!r} and {other!r} are the same module with the same readout. Name it once, or with "
                f'different readouts: "{module_and_readout(one)[0]}:pool4".'
            )


def _without_compilation(model: nn.Module) -> nn.Module:
    """Return the module inside a compiled one, and warn."""
    # Before torch._dynamo is imported nothing is compiled; importing it here would take a second.
    frame = sys.modules.get("torch._dynamo.eval_frame")
    optimized = getattr(frame, "OptimizedModule", ()) if frame is not None else ()
    compiled = any(
        isinstance(module, optimized) or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    if compiled:
        warnings.warn(
            "The model passed to capture is compiled. A graph that has already run does not call hooks registered "
            "afterwards, so a layer may have no activation. Capture the model before torch.compile.",
            UserWarning,
            stacklevel=5,
        )
    original = getattr(model, "_orig_mod", model) if isinstance(model, optimized) else model
    assert isinstance(original, nn.Module)
    return original
