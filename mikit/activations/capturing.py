"""Hooks that read activations while a model runs, and leave the model as it was."""

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

from mikit.activations.layer_names import listed, module_and_readout, readouts_by_layer
from mikit.activations.readout import Readout, parse_readout
from mikit.core.errors import InputError

__all__ = ["CapturedActivations", "capture"]


@final
class CapturedActivations(Mapping[str, Tensor]):
    """The activations of the last forward of a model, by layer name; made by :func:`capture`.

    Its keys are the layers asked for, in that order. Reading a layer that the last forward did not reach, or ran
    several times, raises. It stays readable after the ``with`` block.

    Raises:
        InputError: When a layer is read that has no activation, with the reason.

    Cost: Holds one activation per layer, until the next forward or until it is dropped.

    Pitfalls:
        The tensors are those of the last forward only. Keep copies in a list, or use
        :func:`~mikit.activations.record_activations`, to gather several batches.

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
            raise InputError("The last forward of the model raised before it finished. Run the model again.")
        if (calls := self._calls.get(layer, 0)) > 1:
            raise InputError(
                f"The layer {layer!r} ran {calls} times in the last forward, so it has no single activation. Capture "
                "the module around it, which runs once, or give each call a module of its own."
            )
        if layer in self._faults:
            raise InputError(f"The layer {layer!r} could not be read. {self._faults[layer]}")
        if layer not in self._values:
            raise InputError(
                f"The layer {layer!r} did not run in the last forward, or no forward has run yet. If the model does "
                "run it, it may do so in a compiled or scripted graph, which passes hooks by, or call its forward "
                "method instead of the module."
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
        # Outside a forward of the whole model (a part of it was called), the latest call counts.
        self._calls[layer] = self._calls.get(layer, 0) + 1 if self._running else 1
        self._values.pop(layer, None)
        self._faults.pop(layer, None)
        if self._calls[layer] > 1:
            return
        try:
            self._values[layer] = prepare(output)
        except InputError as fault:
            # Raised when the layer is read: capturing never changes what a forward does.
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
    """Read the activations of ``layers`` whenever ``model`` runs inside the ``with`` block.

    The model runs as it always does: outputs, buffers, train flags and random state are the same to the bit, and the
    hooks are gone when the block ends, however it ends. What was captured is cleared when the next forward of ``model``
    begins, and copied, so that a later in-place operation does not change it. Where a layer returns a tuple or a list,
    its first tensor is the activation (the output of an attention or recurrent layer).

    Args:
        model: Any module; also one wrapped for distributed training.
        layers: Dotted module names, as in ``model.named_modules()``; each once. ``"layer2:pool4"`` is what the readout
            ``"pool4"`` gives of ``layer2``: a module can be read in several ways in one pass.
        readout: What to keep of an activation: a name (:data:`~mikit.activations.readout.READOUT_NAMES`) or readout for
            all layers, or one for each layer that names none itself. ``"pool"`` gives ``(n, c)``; ``"whole"`` keeps
            feature maps for losses that read them.
        detach: Cut the gradient. Set False for the student of a distillation loss.
        device: Where to keep the activations; by default where they are.
        dtype: Floating-point type to keep them in; by default as the model gives them.

    Yields:
        The activations of the last forward: a mapping from layer name to tensor, samples along the first axis.

    Raises:
        InputError: On entry, if a name is not a module of the model (near misses are named), stands twice, or is empty,
            or if a readout does not exist or is missing for a layer. On reading, if a layer did not run in the last
            forward, ran several times in it, or gave something that cannot be read out.

    Cost: One copy per captured layer after its readout; the hooks add tens of microseconds per layer to a forward.

    Pitfalls:
        A compiled model does not call hooks that were registered after it ran; enter ``capture`` on the model as it was
        before ``torch.compile``. Clearing follows calls of ``model`` itself: when only a part of it or another method
        is called, a layer that did not run keeps its earlier activation, and of several calls of one layer the last
        counts. The first axis must be the samples; recurrent and attention layers with ``batch_first=False`` put time
        there. With ``detach=False`` the graph of the last forward stays alive as long as the mapping holds it.

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
        raise InputError(f"Activations are kept as floating-point numbers; dtype is {dtype}.")
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
    """From what a module returned to the tensor that is kept."""

    def __init__(
        self, readout: Readout, detach: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        self.readout, self.detach, self.device, self.dtype = readout, detach, device, dtype

    def __call__(self, output: Any) -> Tensor:
        whole = _first_tensor(output)
        source = whole.detach() if self.detach else whole
        value = self.readout(source).to(device=self.device, dtype=self.dtype)
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
        held = f" with the keys {listed(tuple(map(str, output)))}" if isinstance(output, Mapping) else ""
        raise InputError(
            f"It returns a {type(output).__name__}{held}, neither a tensor nor a tuple that begins with one. Capture a "
            "module inside it that returns a tensor."
        )
    if first.layout != torch.strided:
        raise InputError(f"It returns a tensor of layout {first.layout}; only dense tensors can be read out.")
    return first


def _modules_by_name(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules to hook, after every check of the names."""
    if isinstance(layers, str):
        raise InputError(f"layers is the single string {layers!r}. Pass a list of names: [{layers!r}].")
    names = list(layers)
    if not names:
        raise InputError("layers is empty. Name at least one module to capture.")
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise InputError(
            "The model is an nn.DataParallel over several devices, which runs every layer once per device. Capture its "
            "model.module, or use DistributedDataParallel."
        )
    original = _without_compilation(model)
    known = {name: module for name, module in original.named_modules(remove_duplicate=False) if name}
    found: dict[str, nn.Module] = {}
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"layers holds {name!r}, which is not a module name. Pass dotted names as strings.")
        if name == "":
            raise InputError(
                "The empty name is the model itself, whose output the call of the model returns. Name a module in it."
            )
        if name in found:
            raise InputError(f"The layer {name!r} stands twice in layers. Name each layer once.")
        module = module_and_readout(name)[0]
        if module not in known:
            if name.partition(":")[0] in known:
                parse_readout(name.partition(":")[2])  # The module is there, so it is the readout that is not.
            close = difflib.get_close_matches(module, known, n=3, cutoff=0.5)
            if close:
                advice = f"Did you mean {listed(close, 'or')}?"
            else:
                advice = f"Its modules are {listed(tuple(known))}." if known else "It has no modules inside."
            raise InputError(f"The model has no module {name!r}. {advice}")
        found[name] = known[module]
    return found


def _refuse_twins(modules: Mapping[str, nn.Module], readouts: Mapping[str, Readout]) -> None:
    """Raise where two layers are one module, read in one way."""
    for (one, first), (other, second) in combinations(modules.items(), 2):
        if first is second and readouts[one] == readouts[other]:
            raise InputError(
                f"The layers {one!r} and {other!r} are the same module, read in the same way. Name it once, or with "
                f'different readouts: "{module_and_readout(one)[0]}:pool4".'
            )


def _without_compilation(model: nn.Module) -> nn.Module:
    """Return the module inside a compiled one, with a warning."""
    # Nothing is compiled as long as this module was not imported, and importing it takes a second.
    frame = sys.modules.get("torch._dynamo.eval_frame")
    optimized = getattr(frame, "OptimizedModule", ()) if frame is not None else ()
    compiled = any(
        isinstance(module, optimized) or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    if compiled:
        warnings.warn(
            "The model passed to capture is compiled. A graph that has already run does not call hooks registered "
            "afterwards, so a layer may have no activation; capture the model as it was before torch.compile.",
            UserWarning,
            stacklevel=5,
        )
    original = getattr(model, "_orig_mod", model) if isinstance(model, optimized) else model
    assert isinstance(original, nn.Module)
    return original
