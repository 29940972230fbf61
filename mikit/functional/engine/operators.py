"""Operators that return a value together with its gradients, and that autograd and the compiler treat as one unit.

A quantity over all pairs of rows would compute its blocks of pairs twice if backward followed forward. Where the
gradient is known while a block is in memory, both are computed in one pass, and backward only multiplies.
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
    """Make a differentiable function from ``compute(wants, *tensors, *options)``.

    ``compute`` returns a 0-dim float64 value and one gradient for each parameter annotated ``Tensor``; these come first
    and are passed by position. ``wants`` states which gradients are needed; others are ignored (see :func:`unwanted`).
    Options may be ``float``, ``int``, ``bool``, ``str``, ``list[float]``, ``Tensor | None`` and optional ones of these;
    every parameter must be annotated. It runs without autograd, outside autocast and without TF32.

    The returned function is differentiable once, by backward only; forward mode, ``vmap`` and a second derivative
    raise. It is registered with torch under the module and name of ``compute``: defining it again replaces it.
    """
    formula = _Formula(compute)

    @functools.wraps(compute)
    def function(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> Tensor:
        tensors: tuple[Any, ...] = arguments[: formula.count]
        wants = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
        if torch.compiler.is_compiling():
            # An opaque operator stays in the graph as one node; the compiler would unroll the loop over blocks.
            value: Tensor = formula.operator(wants, *arguments, **options)[0]
            return value
        # Outside the compiler the operator would cost some fifty microseconds more, as much as a small batch takes.
        called = functools.partial(formula.evaluate, wants)
        apply: Any = _Closed.apply
        value = apply(called, options, formula.name, wants, *arguments)[0]
        return value

    return function


@final
class _Formula:
    """A function that returns a value with its gradients, and its registration as an operator of torch."""

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]]) -> None:
        parameters = list(inspect.signature(compute, eval_str=True).parameters.values())[1:]
        self.compute = compute
        self.count = sum(parameter.annotation is Tensor for parameter in parameters)
        self.options = len(parameters) - self.count
        self.name = f"{compute.__module__}.{compute.__name__}".replace(".", "_").strip("_")
        schema = torch.library.infer_schema(compute, mutates_args=())
        self.operator = torch.library.custom_op(f"mikit::{self.name}", self.evaluate, mutates_args=(), schema=schema)
        self.operator.register_fake(self._shapes_only)
        self.operator.register_autograd(self._backward, setup_context=self._keep)

    def evaluate(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Return the value and the gradients, each in the dtype of its tensor."""
        wants, tensors = arguments[0], arguments[1 : 1 + self.count]
        with full_precision(tensors[0].device):
            value, *gradients = self.compute(*arguments)
            kept = []
            for tensor, gradient, want in zip(tensors, gradients, wants, strict=True):
                if any(gradient is argument for argument in arguments):  # an operator may not return an argument
                    gradient = gradient.clone()
                kept.append(gradient.to(tensor.dtype).contiguous() if want else unwanted(tensor))
        return value, *kept

    def _shapes_only(self, *arguments: Any) -> tuple[Tensor, ...]:
        wants, tensors = arguments[0], arguments[1 : 1 + self.count]
        pairs = zip(tensors, wants, strict=True)
        gradients = (tensor.new_empty(tensor.shape) if want else unwanted(tensor) for tensor, want in pairs)
        return tensors[0].new_empty((), dtype=torch.float64), *gradients

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])
        ctx.wants = inputs[0]

    def _backward(self, ctx: Any, incoming: Tensor | None, *second: Tensor | None) -> tuple[Any, ...]:
        # The gradients are outputs of the operator. A gradient that reaches one of them means that backward itself is
        # being differentiated.
        if incoming is None or any(one is not None for one in second):
            raise _twice(self.name)
        gradients = zip(ctx.saved_tensors, ctx.wants, strict=True)
        found = (gradient * incoming if want else None for gradient, want in gradients)
        return None, *found, *(None,) * self.options


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
        if torch.is_grad_enabled():
            # With create_graph=True the result would look like a constant, and a second derivative would silently lack
            # this term. Tying it to the tensors through a function without backward turns that into an error.
            apply: Any = _Final.apply
            found = [None if one is None else apply(ctx.name, one, *tensors) for one in found]
        return None, None, None, None, *found, *(None,) * ctx.unneeded


# Torch asks for the signature in every call, and working it out takes longer than many formulas of a small batch.
_Closed.forward.__signature__ = inspect.signature(_Closed.forward)  # type: ignore[attr-defined]  # set on a function


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
        f"The gradient of {name} was differentiated again. It is computed in the forward pass and has no derivative of "
        "its own. Write the quantity in plain torch operations where you need a second derivative."
    )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run a block without autograd, outside autocast and, on a GPU, without rounding float32 products to TF32.

    TF32 keeps ten bits, too few for distances and for small differences of large sums. The setting is global to the
    process and restored afterwards; another thread that multiplies in the meantime is affected.
    """
    on = torch.is_autocast_enabled(device.type)  # entering a disabled autocast context costs a tenth of a millisecond
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
    """Return an empty tensor in place of a gradient that is not needed."""
    return tensor.new_empty(0)


def passed_if(value: Tensor, condition: Tensor, otherwise: str) -> Tensor:
    """Return ``value``, which has no gradient, if ``condition`` is true; raise :class:`~mikit.InputError` if not.

    For ``torch.compile`` it is an operator that checks when the graph runs. Use the returned tensor, or the compiler
    removes the check.

    Example:
        >>> labels = torch.tensor([0, 2])
        >>> passed_if(labels, labels.max() < 2, "There are 2 classes.")
        Traceback (most recent call last):
        mikit.core.errors.InputError: There are 2 classes.
    """
    if torch.compiler.is_compiling():
        passed: Tensor = _passed_if(value, condition, otherwise)
        return passed
    if not bool(condition):
        raise InputError(otherwise)
    return value


@torch.library.custom_op("mikit::passed_if", mutates_args=())
def _passed_if(value: Tensor, condition: Tensor, otherwise: str) -> Tensor:
    if not bool(condition):
        raise InputError(otherwise)
    return value.clone()


@_passed_if.register_fake
def _(value: Tensor, condition: Tensor, otherwise: str) -> Tensor:
    return torch.empty_like(value)
