"""Gradient caching: the gradient of a loss over a large batch, from passes over small chunks."""

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
from mikit.distillation.networks import restored_buffers

__all__ = ["chunked_backward"]

_OUTPUT = "the network's output"


def chunked_backward(
    network: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor],
    *,
    rows: int,
) -> Tensor:
    r"""Accumulate the gradient of a loss over a large batch, with memory for the activations of one chunk.

    Formula: with embeddings :math:`z_i = f_\theta(x_i)` and a loss :math:`L(Z)` of all of them at once,

    .. math:: \nabla_\theta L = \sum_{\text{chunks } c} \sum_{i \in c} \Bigl(\frac{\partial z_i}{\partial
              \theta}\Bigr)^{\!\top} \frac{\partial L}{\partial z_i}

    The network runs on the chunks without a graph; the loss of all embeddings and its gradient in them are computed;
    then the network runs on each chunk again, from the same random state, and propagates the chunk's part of that
    gradient to the weights.

    Args:
        network: The student: any module that returns a tensor ``(n, ...)``, or a mapping or tuple of them, such as
            logits and features. It may contain dropout and other layers that draw from torch's global random state.
        inputs: The large batch: a tensor ``(n, ...)``, or a mapping, tuple or list of them, each with ``n`` samples.
            A chunk is passed to the network in the same form, as one argument.
        loss: Function of the network's output for the whole batch that returns the loss, 0-dim, including that of the
            task: ``lambda out: cross_entropy(out["logits"], labels) + kd(out["pool"], teacher, labels=labels)``.
        rows: Number of samples in a chunk; the last one may have fewer.

    Returns:
        The loss, detached. The gradients are added to ``.grad`` of the network's parameters and of the loss's own, as
        by ``backward``.

    Unit: that of the loss.

    Kind: exact, but for rounding.

    Raises:
        InputError: If ``rows`` is below 1, inputs or outputs differ in their numbers of samples, the loss is not a
            0-dim tensor with a gradient to the embeddings, or the second pass of a chunk differs from the first.

    Warns:
        UserWarning: If the network contains batch normalization in training mode. Each chunk is then normalized by its
            own statistics: the gradient is exact for that network, but differs from that of the whole batch at once.

    Cost:
        A second forward pass of the network, about a third more time per step. Memory: the activations of one chunk,
        all embeddings, and the loss. One synchronization.

    Pitfalls:
        - It is not the same as accumulating gradients over small batches: there, a loss over a batch compares only
          samples within each small batch.
        - Running statistics are updated in the first pass only. Other state that a network changes in a forward pass,
          such as a count of calls, changes twice unless it is a buffer.
        - Layers with a generator of their own draw new numbers in the second pass, which is refused.
        - Inside autocast both passes run in its precision, and the gradients outside it. With a gradient scaler return
          ``scaler.scale(...)`` from ``loss``; the returned value is then scaled as well.
        - A network in ``DistributedDataParallel`` synchronizes gradients once, with the last chunk; wrap the loss in
          :class:`AcrossRanks`. The loss's own parameters are outside that wrapper, and their gradient is the same on
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
    _warn_of_batch_normalization(network)
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(chunk))
            parts.append(network(chunk))
    first = [tensors_in(part, _OUTPUT) for part in parts]
    _require_rows(first, chunks)
    value, gradients = _embedding_gradients(loss, parts[0], first)
    start = 0
    differences = []
    for index, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        stop = start + first[index][0].shape[0]
        # By the chain rule the rest of the backward pass is linear in the gradient of the embeddings, so it splits into
        # chunks: each needs the graph of its own samples only, which exists within this block and no longer.
        with _synchronized(network, last=index == len(chunks) - 1), _repeated(network, state), torch.enable_grad():
            second = tensors_in(network(chunk), _OUTPUT)
            wanted = [
                (one, gradient[start:stop])
                for one, gradient in zip(second, gradients, strict=True)
                if gradient is not None and one.requires_grad
            ]
            differences += [_difference(one, before) for one, before in zip(second, first[index], strict=True)]
            if wanted:
                with torch.autocast(second[0].device.type, enabled=False):
                    torch.autograd.backward([one for one, _ in wanted], [gradient for _, gradient in wanted])
        start = stop
    # Looked at once, at the end: reading a difference waits for the device, and would do so for every chunk.
    worst = float(torch.stack(differences).max())
    if not worst <= 1:
        raise InputError(
            f"The second pass of a chunk differs from the first {worst:.3g} times more than rounding explains, so the "
            "gradients that were added are not those of this loss. Set them to zero. A layer has a random generator of "
            "its own, or changes its state when it is called; chunking cannot repeat it."
        )
    return value.detach()


def _embedding_gradients(
    loss: Callable[[Any], Tensor], form: Any, parts: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss of all embeddings, and its gradient in each tensor of the output."""
    # Leaves, so that this backward pass ends at the embeddings; it also adds to the gradients of the loss's parameters.
    whole = [torch.cat(some).requires_grad_(some[0].is_floating_point()) for some in zip(*parts, strict=True)]
    with torch.enable_grad():
        value = loss(with_tensors(form, whole))
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.requires_grad:
        raise InputError("The loss must return a 0-dim tensor with a gradient to the network's output.")
    with torch.autocast(whole[0].device.type, enabled=False):
        value.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    gradients = [one.grad for one in whole]
    if all(one is None for one in gradients):
        raise InputError("The loss has no gradient to the network's output. Compute it from its argument.")
    return value, gradients


def _chunks(inputs: Any, rows: int) -> list[Any]:
    if not isinstance(rows, int) or rows < 1:
        raise InputError(f"rows is {rows}; it must be a whole number of at least 1.")
    tensors = tensors_in(inputs, "inputs")
    counts = {one.shape[0] if one.ndim else 0 for one in tensors}
    if len(counts) != 1 or counts == {0}:
        raise InputError(
            f"The inputs have shapes {[tuple(one.shape) for one in tensors]}; pass tensors (n, ...) of one length n."
        )
    split = zip(*(torch.split(one, rows) for one in tensors), strict=True)
    return [with_tensors(inputs, some) for some in split]


def _require_rows(parts: Sequence[Sequence[Tensor]], chunks: Sequence[Any]) -> None:
    for outputs, chunk in zip(parts, chunks, strict=True):
        count = tensors_in(chunk, "inputs")[0].shape[0]
        for one in outputs:
            if one.ndim == 0 or one.shape[0] != count:
                raise InputError(
                    f"For {count} samples the network returns a tensor of shape {tuple(one.shape)}. Return one row for "
                    "each sample; compute means over a batch in the loss."
                )


def _difference(second: Tensor, first: Tensor) -> Tensor:
    """Return the largest difference between two passes, in units of what rounding explains."""
    if not first.is_floating_point():
        return (second != first).any().float()
    size = first.abs().max().clamp(min=torch.finfo(first.dtype).tiny)
    # The root of eps: kernels may add in another order in each pass, and deep networks amplify that, but a layer that
    # draws anew differs by about 1.
    difference: Tensor = (second.detach() - first).abs().max() / (torch.finfo(first.dtype).eps ** 0.5 * size)
    return difference.float()


def _warn_of_batch_normalization(network: nn.Module) -> None:
    if any(isinstance(part, _BatchNorm) and part.training for part in network.modules()):
        warnings.warn(
            "The network contains batch normalization in training mode, which normalizes each chunk by its own "
            "statistics: the gradient differs from that of the whole batch at once. Put those layers in evaluation "
            "mode, use another normalization, or accept the statistics of chunks.",
            stacklevel=3,
        )


def _random_state(chunk: Any) -> tuple[Tensor, dict[torch.device, Tensor]]:
    devices = {one.device for one in tensors_in(chunk, "inputs") if one.device.type == "cuda"}
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}


@contextmanager
def _repeated(network: nn.Module, state: tuple[Tensor, dict[torch.device, Tensor]]) -> Iterator[None]:
    """Run a block from an earlier random state; restore the present one and the network's buffers after it."""
    # Dropout must drop the same units as in the first pass, or the gradient would belong to other embeddings. Running
    # statistics took part in the first pass, and a second update would count the chunk twice.
    host, on_devices = state
    with torch.random.fork_rng(devices=list(on_devices)), restored_buffers(network):
        torch.set_rng_state(host)
        for device, one in on_devices.items():
            torch.cuda.set_rng_state(one, device)
        yield


def _synchronized(network: nn.Module, *, last: bool) -> Any:
    """Return a context in which data-parallel training synchronizes gradients with the last chunk only."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
