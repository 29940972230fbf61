"""The gradient of a large batch from small chunks of it, for losses that need the large batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mikit.core.errors import InputError
from mikit.distillation.nested import tensors_in, with_tensors

__all__ = ["chunked_backward"]


def chunked_backward(
    network: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    *,
    rows: int,
) -> Tensor:
    r"""Accumulate the gradient of a loss over a large batch, with no more of the network in memory than a chunk needs.

    Formula: with embeddings :math:`z_i = f_\theta(x_i)` and a loss :math:`L(Z)` of all of them at once,

    .. math:: \nabla_\theta L = \sum_{\text{chunks } c} \sum_{i \in c} \Bigl(\frac{\partial z_i}{\partial
              \theta}\Bigr)^{\!\top} \frac{\partial L}{\partial z_i}

    The chunks pass the network without a graph; the loss of all embeddings is formed and differentiated to them; then
    each chunk passes again, from the random state it had before, and takes its part of that gradient to the weights.

    Args:
        network: The student: any module that gives a tensor ``(n, ...)``, or a mapping or tuple of them, such as
            logits and features. With dropout and other layers that draw from torch's global random state as well.
        inputs: The large batch: a tensor ``(n, ...)``, or a mapping, tuple or list of them, each with ``n`` rows.
            A chunk reaches the network in the same form, as one argument.
        loss: From what the network gives for the whole batch to the loss, 0-dim: the loss of the task too, such as
            ``lambda out: cross_entropy(out["logits"], labels) + kd(out["pool"], teacher, labels=labels)``.
        rows: Rows of a chunk; the last one may have fewer.

    Returns:
        The loss, detached. The gradients stand in ``.grad`` of the network's parameters and of the loss's own, added to
        what stood there, as ``backward`` does.

    Unit: that of the loss.

    Kind: exact, but for rounding.

    Raises:
        InputError: If ``rows`` is below 1, inputs or outputs are not as many rows, the loss is no 0-dim tensor with a
            gradient to the embeddings, or a chunk's second pass does not give what the first gave.

    Warns:
        UserWarning: If the network holds batch normalisation in training mode. Each chunk is then normalised by its own
            statistics: the gradient is exact for that network, but not the one of the large batch passed whole.

    Cost:
        A second forward pass of the network, a third more time a step. Memory: the activations of one chunk, all
        embeddings, and what the loss needs. One synchronisation.

    Pitfalls:
        - Accumulating gradients over small batches is something else: a loss over a batch then compares the rows of
          each small batch with each other alone.
        - Running statistics follow the first pass alone. What else a network changes in itself in a forward pass, such
          as a count of calls, it changes twice unless it is a buffer.
        - Layers that draw from a generator of their own draw anew in the second pass, which is refused.
        - Inside autocast both passes run in its precision, and the gradients outside of it. For a gradient scaler
          return ``scaler.scale(...)`` from ``loss``; the value returned is scaled as well.
        - A network in ``DistributedDataParallel`` exchanges gradients once, with the last chunk; wrap the loss in
          :class:`AcrossRanks`. What the loss itself learns is outside that wrapper, and its gradient is the same on
          every rank.

    Source:
        The chain rule; gradient caching for contrastive learning is its best-known use.

    Example:
        >>> import mikit
        >>> g = torch.Generator().manual_seed(0)
        >>> student, images, teacher = nn.Linear(8, 4), torch.randn(64, 8), torch.randn(64, 6)
        >>> kd = mikit.PKT.between(student(images), teacher)
        >>> value = chunked_backward(student, images, lambda z: kd(z, teacher), rows=16)
        >>> whole = torch.autograd.grad(kd(student(images), teacher), student.weight)[0]
        >>> torch.allclose(student.weight.grad, whole, atol=1e-6)
        True
    """
    chunks = _chunks(inputs, rows)
    _tell_of_batch_normalisation(network)
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(chunk))
            parts.append(network(chunk))
    form, held = parts[0], [tensors_in(part, "what the network gives") for part in parts]
    _require_rows(held, chunks)
    whole = [torch.cat(some).requires_grad_(some[0].is_floating_point()) for some in zip(*held, strict=True)]
    with torch.enable_grad():
        value = loss(with_tensors(form, whole))
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.requires_grad:
        raise InputError("The loss must return a 0-dim tensor with a gradient to what the network gives.")
    device = whole[0].device.type
    with torch.autocast(device, enabled=False):
        value.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    gradients = [one.grad for one in whole]
    if all(one is None for one in gradients):
        raise InputError("The loss has no gradient to what the network gives. Compute it from the argument it gets.")
    start = 0
    apart = []
    for index, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        stop = start + held[index][0].shape[0]
        with _exchange(network, last=index == len(chunks) - 1), _again(network, state), torch.enable_grad():
            outputs = tensors_in(network(chunk), "what the network gives")
            wanted = [
                (one, gradient[start:stop])
                for one, gradient in zip(outputs, gradients, strict=True)
                if gradient is not None and one.requires_grad
            ]
            apart += [_apart(one, before) for one, before in zip(outputs, held[index], strict=True)]
            if wanted:
                with torch.autocast(device, enabled=False):
                    torch.autograd.backward([one for one, _ in wanted], [gradient for _, gradient in wanted])
        start = stop
    worst = float(torch.stack(apart).max())
    if not worst <= 1:
        raise InputError(
            f"The second pass of a chunk gave other outputs than the first, {worst:.3g} times more apart than rounding "
            "explains, so the gradients that were added are not those of this loss. Zero them. A layer draws from a "
            "generator of its own, or changes its state when it is called; chunking cannot repeat it."
        )
    return value.detach()


def _chunks(inputs: Any, rows: int) -> list[Any]:
    if not isinstance(rows, int) or rows < 1:
        raise InputError(f"rows is {rows}; a chunk has one row at least.")
    tensors = tensors_in(inputs, "inputs")
    counts = {one.shape[0] if one.ndim else 0 for one in tensors}
    if len(counts) != 1 or counts == {0}:
        raise InputError(
            f"The inputs have shapes {[tuple(one.shape) for one in tensors]}; give tensors (n, ...) of the same rows."
        )
    split = zip(*(torch.split(one, rows) for one in tensors), strict=True)
    return [with_tensors(inputs, some) for some in split]


def _require_rows(held: Sequence[Sequence[Tensor]], chunks: Sequence[Any]) -> None:
    for outputs, chunk in zip(held, chunks, strict=True):
        count = tensors_in(chunk, "inputs")[0].shape[0]
        for one in outputs:
            if one.ndim == 0 or one.shape[0] != count:
                raise InputError(
                    f"From {count} rows the network gives a tensor of shape {tuple(one.shape)}. Return one row for "
                    "each input; means over a batch belong into the loss."
                )


def _apart(second: Tensor, first: Tensor) -> Tensor:
    """Return how far a second pass is from the first, in units of what rounding explains."""
    if not first.is_floating_point():
        return (second != first).any().float()
    size = first.abs().max().clamp(min=torch.finfo(first.dtype).tiny)
    apart: Tensor = (second.detach() - first).abs().max() / (torch.finfo(first.dtype).eps ** 0.5 * size)
    return apart.float()


def _tell_of_batch_normalisation(network: nn.Module) -> None:
    if any(isinstance(part, _BatchNorm) and part.training for part in network.modules()):
        warnings.warn(
            "The network holds batch normalisation in training mode, which normalises each chunk by its own "
            "statistics: the gradient is that of chunks, and not of the large batch passed whole. Put those layers in "
            "evaluation mode, use another normalisation, or accept chunks as the batch that they see.",
            stacklevel=3,
        )


def _random_state(chunk: Any) -> tuple[Tensor, dict[torch.device, Tensor]]:
    devices = {one.device for one in tensors_in(chunk, "inputs") if one.device.type == "cuda"}
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}


@contextmanager
def _again(network: nn.Module, state: tuple[Tensor, dict[torch.device, Tensor]]) -> Iterator[None]:
    """Run a block from an earlier random state, and put that state and the network's buffers back after it."""
    host, on_devices = state
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.random.fork_rng(devices=list(on_devices)):
        torch.set_rng_state(host)
        for device, one in on_devices.items():
            torch.cuda.set_rng_state(one, device)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _exchange(network: nn.Module, *, last: bool) -> Any:
    """Return a context in which data-parallel training exchanges gradients with the last chunk only."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
