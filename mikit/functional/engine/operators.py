"""Values whose gradients are formed together with them, as one operator that autograd and the compiler take whole.

A quantity over all pairs of rows needs its strips of pairs twice if backward runs after forward. Where the gradient is
known while the strip is at hand, both are formed in one pass, and backward only multiplies.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Concatenate, ParamSpec, final

import torch
from torch import Tensor

from mikit.core.errors import InputError

__all__ = ["closed_form", "full_precision", "passed_if", "unwanted"]


_Arguments = ParamSpec("_Arguments")


def closed_form(
    compute: Callable[Concatenate[Sequence[bool], _Arguments], tuple[Tensor, ...]],
) -> Callable[_Arguments, Tensor]:
    """Make a differentiable function of one that returns a value together with its gradients.

    It runs without autograd, outside autocast and without TF32. For ``torch.compile`` it is an operator, which stays in
    the graph whole, strips and all; outside the compiler it is a function with a known gradient.

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
        Some thirty microseconds a call over a plain function; the gradients are kept until backward has run.

    Pitfalls:
        - The operator is registered for good under the function's module and name; a function defined again takes the
          place of the first.
        - First derivatives only, backward only: forward mode and ``vmap`` raise.
        - A second derivative of a compiled function is for torch to refuse, not all of whose back ends do.

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
    name = f"{compute.__module__}.{compute.__name__}".replace(".", "_").strip("_")
    evaluated: Callable[..., tuple[Tensor, ...]] = compute

    def evaluate(*arguments: Any) -> tuple[Tensor, ...]:
        wants, tensors = arguments[0], arguments[1 : 1 + count]
        with full_precision(tensors[0].device):
            value, *gradients = evaluated(*arguments)
            kept = []
            for rows, gradient, want in zip(tensors, gradients, wants, strict=True):
                if any(gradient is argument for argument in arguments):  # an operator gives nothing back as it is
                    gradient = gradient.clone()
                kept.append(gradient.to(rows.dtype).contiguous() if want else unwanted(rows))
        return value, *kept

    def shapes_only(*arguments: Any) -> tuple[Tensor, ...]:
        wants, first, tensors = arguments[0], arguments[1], arguments[1 : 1 + count]
        pairs = zip(tensors, wants, strict=True)
        gradients = (tensor.new_empty(tensor.shape) if want else unwanted(tensor) for tensor, want in pairs)
        return first.new_empty((), dtype=torch.float64), *gradients

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])
        ctx.wants = inputs[0]

    def backward(ctx: Any, incoming: Tensor | None, *second: Tensor | None) -> tuple[Any, ...]:
        if incoming is None or any(one is not None for one in second):
            raise _twice(name)
        gradients = zip(ctx.saved_tensors, ctx.wants, strict=True)
        found = (gradient * incoming if want else None for gradient, want in gradients)
        return None, *found, *(None,) * (len(parameters) - count)

    schema = torch.library.infer_schema(compute, mutates_args=())
    operator = torch.library.custom_op(f"mikit::{name}", evaluate, mutates_args=(), schema=schema)
    operator.register_fake(shapes_only)
    operator.register_autograd(backward, setup_context=keep)

    @functools.wraps(compute)
    def function(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> Tensor:
        tensors: tuple[Any, ...] = arguments[:count]
        wants = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
        if torch.compiler.is_compiling():
            value: Tensor = operator(wants, *arguments, **options)[0]
            return value
        # Outside the compiler the operator would only cost time: some fifty microseconds, as much as a small batch.
        called = functools.partial(evaluate, wants)
        apply: Any = _Closed.apply
        value = apply(called, options, name, wants, *arguments)[0]
        return value

    return function


@final
class _Closed(torch.autograd.Function):
    """A value with its gradients, which are constants, outside the compiler."""

    @staticmethod
    def forward(
        compute: Callable[..., tuple[Tensor, ...]],
        options: dict[str, Any],
        name: str,
        wants: list[bool],
        *arguments: Any,
    ) -> tuple[Tensor, ...]:
        return compute(*arguments, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, ctx.name, ctx.wants, *arguments = inputs
        count = len(ctx.wants)
        ctx.unneeded = len(arguments) - count
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:], *arguments[:count])

    @staticmethod
    def backward(ctx: Any, incoming: Tensor, *_: Tensor) -> tuple[Any, ...]:
        count = len(ctx.wants)
        gradients, tensors = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        found = [gradient * incoming if want else None for gradient, want in zip(gradients, ctx.wants, strict=True)]
        if torch.is_grad_enabled():  # a graph of the gradient was asked for, which leads through the tensors
            apply: Any = _Final.apply
            found = [None if one is None else apply(ctx.name, one, *tensors) for one in found]
        return None, None, None, None, *found, *(None,) * ctx.unneeded


# Torch asks for it in every call, and to work it out takes longer than many a formula of a small batch.
_Closed.forward.__signature__ = inspect.signature(_Closed.forward)  # type: ignore[attr-defined]  # on no function


@final
class _Final(torch.autograd.Function):
    """A gradient that must not be differentiated."""

    @staticmethod
    def forward(name: str, gradient: Tensor, *tensors: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Any, ...]:
        raise _twice(ctx.name)


def _twice(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"The gradient of {name} was differentiated again. It is formed in the forward pass and has no derivative of "
        "its own. Write the quantity in plain torch operations where you need a second one."
    )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run a block without autograd, outside autocast and, on a GPU, without rounding float32 products to TF32.

    Distances and small differences of large sums do not survive the ten bits that TF32 keeps. The setting is one of the
    whole process and is put back afterwards: another thread that multiplies meanwhile shares it.
    """
    on = torch.is_autocast_enabled(device.type)  # to switch off what is off takes a tenth of a millisecond
    with torch.no_grad(), torch.autocast(device.type, enabled=False) if on else nullcontext():
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


def passed_if(value: Tensor, holds: Tensor, otherwise: str) -> Tensor:
    """Return ``value`` if ``holds``, a 0-dim boolean, is true; raise :class:`~mikit.InputError` if not.

    For ``torch.compile`` it is an operator, which stays in the graph whole and refuses when the graph runs. Use what it
    returns, or the compiler leaves it out.

    Args:
        value: Integers or booleans, such as labels: there is no gradient.
        holds: What must be true.
        otherwise: The sentence to refuse with.

    Example:
        >>> labels = torch.tensor([0, 2])
        >>> passed_if(labels, labels.max() < 3, "There are 3 classes.")
        tensor([0, 2])
        >>> passed_if(labels, labels.max() < 2, "There are 2 classes.")
        Traceback (most recent call last):
        mikit.core.errors.InputError: There are 2 classes.
    """
    if torch.compiler.is_compiling():
        passed: Tensor = _passed_if(value, holds, otherwise)
        return passed
    if not bool(holds):
        raise InputError(otherwise)
    return value


@torch.library.custom_op("mikit::passed_if", mutates_args=())
def _passed_if(value: Tensor, holds: Tensor, otherwise: str) -> Tensor:
    if not bool(holds):
        raise InputError(otherwise)
    return value.clone()


@_passed_if.register_fake
def _(value: Tensor, holds: Tensor, otherwise: str) -> Tensor:
    return torch.empty_like(value)
