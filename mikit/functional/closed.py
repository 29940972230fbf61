"""Values whose gradients are formed together with them, as one operator that autograd and the compiler take whole.

A quantity over all pairs of rows needs its strips of pairs twice if backward runs after forward. Where the gradient is
known while the strip is at hand, both are formed in one pass, and backward only multiplies.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, final

import torch
from torch import Tensor

__all__ = ["closed_form", "full_precision", "unwanted"]

_Arguments = ParamSpec("_Arguments")


def closed_form(
    compute: Callable[Concatenate[Sequence[bool], _Arguments], tuple[Tensor, ...]],
) -> Callable[_Arguments, Tensor]:
    """Make a differentiable function of one that returns a value together with its gradients.

    The function becomes an operator of torch: ``torch.compile`` keeps it in the graph without looking inside, strips
    and all. It runs without autograd, outside autocast and without TF32.

    Args:
        compute: ``compute(wants, *tensors, *options)``. ``wants`` says for each parameter annotated ``Tensor`` whether
            its gradient is asked for. Those parameters come first. It returns a 0-dim float64 value and one gradient
            per such parameter, of its shape and of its dtype or a wider one; what is returned for a gradient that is
            not wanted is not looked at (``unwanted(tensor)`` is meant for it). Options are ``float``, ``int``,
            ``bool``, ``str``, ``list[float]``, ``Tensor | None`` and optional ones of these; all annotations are
            needed.

    Returns:
        The function of the tensors and the options, with the tensors given by position. It returns the value,
        differentiable once.

    Raises:
        NotImplementedError: By the returned function's backward pass, if it is itself differentiated.

    Cost:
        Some fifty microseconds a call over a plain function; the gradients are kept until backward has run.

    Pitfalls:
        The operator is registered for good under the function's name, which must be its own.

    Example:
        >>> @closed_form
        ... def squared_norm(wants: Sequence[bool], rows: Tensor) -> tuple[Tensor, Tensor]:
        ...     return rows.square().sum().double(), 2 * rows
        >>> rows = torch.ones(2, 2, requires_grad=True)
        >>> squared_norm(rows).backward()
        >>> rows.grad
        tensor([[2., 2.],
                [2., 2.]])
    """
    parameters = list(inspect.signature(compute, eval_str=True).parameters.values())[1:]
    count = sum(parameter.annotation is Tensor for parameter in parameters)
    name = f"{compute.__module__.rsplit('.', 1)[-1].strip('_')}_{compute.__name__.strip('_')}"

    evaluated: Callable[..., tuple[Tensor, ...]] = compute

    def evaluate(*arguments: Any) -> tuple[Tensor, ...]:
        wants, first = arguments[0], arguments[1]
        with full_precision(first.device):
            value, *gradients = evaluated(*arguments)
        triples = zip(arguments[1:], gradients, wants, strict=False)
        return value, *(part.to(rows.dtype).contiguous() if want else unwanted(rows) for rows, part, want in triples)

    def shapes_only(*arguments: Any) -> tuple[Tensor, ...]:
        wants, first, tensors = arguments[0], arguments[1], arguments[1 : 1 + count]
        pairs = zip(tensors, wants, strict=True)
        gradients = (tensor.new_empty(tensor.shape) if want else unwanted(tensor) for tensor, want in pairs)
        return first.new_empty((), dtype=torch.float64), *gradients

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])
        ctx.wants = inputs[0]

    def backward(ctx: Any, incoming: Tensor, *_: object) -> tuple[Any, ...]:
        gradients = zip(ctx.saved_tensors, ctx.wants, strict=True)
        found = (gradient * incoming if want else None for gradient, want in gradients)
        return None, *found, *(None,) * (len(parameters) - count)

    schema = torch.library.infer_schema(compute, mutates_args=())
    operator = torch.library.custom_op(f"mikit::{name}", evaluate, mutates_args=(), schema=schema)
    operator.register_fake(shapes_only)
    operator.register_autograd(backward, setup_context=keep)

    @functools.wraps(compute)
    def function(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> Tensor:
        tensors = arguments[:count]
        wants = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]  # type: ignore[attr-defined]
        if torch.compiler.is_compiling():
            value: Tensor = operator(wants, *arguments, **options)[0]
            return value
        # Outside the compiler the operator would only cost time: some fifty microseconds, as much as a small batch.
        called = functools.partial(evaluate, wants, **options) if options else functools.partial(evaluate, wants)
        if not any(wants):
            return called(*arguments)[0]
        value = _Closed.apply(called, name, wants, *arguments)  # type: ignore[no-untyped-call]
        return value

    return function


@final
class _Closed(torch.autograd.Function):
    """A value whose gradients are known, outside the compiler."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., tuple[Tensor, ...]], name: str, wants: list[bool], *arguments: Any
    ) -> Tensor:
        value, *gradients = compute(*arguments)
        ctx.save_for_backward(*gradients)
        ctx.name, ctx.wants, ctx.unneeded = name, wants, len(arguments) - len(wants)
        return value

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
        pairs = zip(ctx.saved_tensors, ctx.wants, strict=True)
        gradients = [gradient * incoming if want else None for gradient, want in pairs]
        if torch.is_grad_enabled():  # a graph of the gradient was asked for
            hook = torch.empty(0, requires_grad=True)
            gradients = [None if one is None else _Final.apply(ctx.name, hook, one) for one in gradients]  # type: ignore[no-untyped-call]
        return None, None, None, *gradients, *(None,) * ctx.unneeded


@final
class _Final(torch.autograd.Function):
    """A gradient that must not be differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, hook: Tensor, gradient: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError(
            f"The gradient of {ctx.name} was differentiated again. It is formed in the forward pass and has no "
            "derivative of its own. Write the quantity in plain torch operations where you need a second one."
        )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run a block without autograd, outside autocast and, on a GPU, without rounding float32 products to TF32.

    Distances and small differences of large sums do not survive the ten bits that TF32 keeps. The process's setting is
    put back afterwards.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        products = torch.backends.cuda.matmul
        before, products.fp32_precision = products.fp32_precision, "ieee"
        try:
            yield
        finally:
            products.fp32_precision = before


def unwanted(tensor: Tensor) -> Tensor:
    """Return an empty tensor, in the place of a gradient nobody asked for."""
    return tensor.new_empty(0)
