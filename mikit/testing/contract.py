"""A test suite for estimators: properties that every estimator must have, those of mikit and your own.

Each check is a function; :func:`contract_checks` yields them by name for a test runner.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from mikit.core.errors import InputError
from mikit.core.measurement import Measurement
from mikit.estimators.discrepancy import Discrepancy
from mikit.measuring.pipeline import measure
from mikit.testing.samples import (
    QUICK,
    Subject,
    another_sample,
    dependent_samples,
    fit,
    fitted,
    fitted_once,
    instance_of,
    shared,
    untrained,
    value_and_error,
    value_of,
)

__all__ = ["ContractError", "check_estimator", "contract_checks"]

_UNITS = ("nats", "feature", "feature²", "dimensionless")
_KINDS = ("lower bound", "upper bound", "estimate", "V-information", "index", "discrepancy")


class ContractError(AssertionError):
    """An estimator lacks a required property; the message says which one and what was observed."""


def check_estimator(estimator: Subject) -> None:
    """Run all checks on one estimator.

    Args:
        estimator: An instance, or a class that ``between`` can build with default hyperparameters.

    Raises:
        ContractError: If a check fails, with what was observed.

    Cost:
        About twenty small fits and estimates: a second for a closed form, up to a minute for a trained critic.

    Pitfalls:
        The suite checks the protocol, not the accuracy. An estimator can pass all checks and still be inaccurate.

    Example:
        >>> from mikit import GaussianMI
        >>> check_estimator(GaussianMI())
    """
    shared.cache_clear()
    for _, check in contract_checks():
        check(estimator)


def contract_checks() -> Iterator[tuple[str, Callable[[Subject], None]]]:
    """Yield the name of each check and the function that runs it.

    Yields:
        Name and function; the function takes an estimator as :func:`check_estimator` does, and raises
        :class:`ContractError`.

    Cost:
        None until a function is called.

    Example:
        >>> next(name for name, _ in contract_checks())
        'declares itself'
    """
    for check in (
        _declares_itself,
        _loss_is_a_finite_scalar_with_a_gradient,
        _teacher_gets_no_gradient,
        _estimate_is_a_finite_scalar,
        _inputs_are_left_alone,
        _is_deterministic,
        _precision_and_layout_do_not_matter,
        _row_order_does_not_matter,
        _keeps_its_symmetry,
        _dependence_shows,
        _nothing_is_clipped,
        _contributions_average_to_the_estimate,
        _standard_error_matches_the_spread,
        _ceiling_holds,
        _constants_say_nothing,
        _bad_input_is_refused,
        _parameters_reach_the_optimiser,
        _fresh_copies_are_independent,
        _state_survives,
        _measures_end_to_end,
    ):
        yield check.__name__.strip("_").replace("_", " "), check


def _declares_itself(subject: Subject) -> None:
    cls = subject if isinstance(subject, type) else type(subject)
    _require(isinstance(getattr(cls, "name", None), str) and bool(cls.name), "it has no name.")
    _require(getattr(cls, "unit", None) in _UNITS, f"its unit must be one of {_UNITS}.")
    _require(getattr(cls, "kind", None) in _KINDS, f"its kind must be one of {_KINDS}.")
    _require(cls.explains in ("vectors", "labels"), 'it must explain "vectors" or "labels".')
    _require(
        getattr(cls, "__final__", False), "its class is not marked with typing.final; classes are abstract or final."
    )


def _loss_is_a_finite_scalar_with_a_gradient(subject: Subject) -> None:
    x, y = dependent_samples(subject, seed=1)
    estimator = untrained(subject, x, y)
    x = x.clone().requires_grad_()
    if not estimator.differentiable:
        try:
            estimator(x, y)
        except TypeError:
            return
        raise ContractError("differentiable is False, but calling it did not raise TypeError.")
    loss = estimator(x, y)
    _require(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}, not ().")
    _require(bool(torch.isfinite(loss.detach())), f"the loss is {float(loss.detach())}.")
    loss.backward()
    gradient = torch.full_like(x, torch.nan) if x.grad is None else x.grad
    _require(bool(torch.isfinite(gradient).all()), "the gradient of x is missing or not finite.")
    _require(bool(gradient.abs().sum() > 0), "the gradient of x is zero, so nothing would train.")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = estimator(x.detach().bfloat16(), y.bfloat16() if y.is_floating_point() else y).detach()
    _require(low.dtype in (torch.float32, torch.float64), f"under autocast the loss is {low.dtype}, not float32.")
    exact = float(estimator(x.detach(), y).detach())
    _require_close(float(low), exact, 0.05, "the loss on bfloat16 input differs from that on float32 input")


def _teacher_gets_no_gradient(subject: Subject) -> None:
    x, y = dependent_samples(subject, seed=2)
    estimator = untrained(subject, x, y)
    if not estimator.differentiable or not y.is_floating_point():
        return
    teacher = y.clone().requires_grad_()
    loss = estimator(x.clone().requires_grad_(), teacher)
    loss.backward()
    _require(teacher.grad is None, "the teacher got a gradient; detach it inside forward.")


def _estimate_is_a_finite_scalar(subject: Subject) -> None:
    estimator, x, y = fitted_once(subject)
    value = estimator.estimate(x, y)
    _require(value.ndim == 0, f"the estimate has shape {tuple(value.shape)}, not ().")
    _require(bool(torch.isfinite(value)), f"the estimate is {float(value)}.")


def _inputs_are_left_alone(subject: Subject) -> None:
    estimator, x, y = fitted_once(subject)
    before = x.clone(), y.clone()
    estimator.estimate(x, y)
    if estimator.differentiable:
        estimator(x, y)
    _require(torch.equal(x, before[0]) and torch.equal(y, before[1]), "it changed its input in place.")


def _is_deterministic(subject: Subject) -> None:
    state = torch.random.get_rng_state()
    first = value_of(*fitted(subject, seed=5))
    _require(torch.equal(state, torch.random.get_rng_state()), "it used torch's global random generator.")
    second = value_of(*fitted(subject, seed=5))
    _require(first == second, f"the same seed gave {first} and then {second}.")


def _precision_and_layout_do_not_matter(subject: Subject) -> None:
    estimator, x, y = fitted_once(subject)
    reference = value_of(estimator, x, y)
    wide = torch.stack([x, x], dim=-1)[..., 0]
    _require(value_of(estimator, wide, y) == reference, "a non-contiguous view of x gives another value.")
    doubled = copy.deepcopy(estimator).double()
    precise = value_of(doubled, x.double(), y.double() if y.is_floating_point() else y)
    _require_close(precise, reference, 1e-3, "the value in float64 differs from that in float32")


def _row_order_does_not_matter(subject: Subject) -> None:
    estimator, x, y = fitted_once(subject)
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(0))
    reference, shuffled = value_of(estimator, x, y), value_of(estimator, x[order], y[order])
    allowed = 1e-5 * max(1.0, abs(reference))
    if not estimator.orderless:
        error = estimator.standard_error(x, y)
        if error is None:
            return
        allowed += 6 * error
    _require(abs(reference - shuffled) <= allowed, f"permuting the pairs changes {reference:.8f} to {shuffled:.8f}.")


def _keeps_its_symmetry(subject: Subject) -> None:
    estimator, x, y = fitted_once(subject)
    if not estimator.symmetric:
        return
    _require_close(
        value_of(estimator, y, x), value_of(estimator, x, y), 1e-6, "symmetric is True, but the values differ"
    )


def _dependence_shows(subject: Subject) -> None:
    estimator, x, y = fitted(subject, seed=9)
    if not estimator.zero_when_independent:
        same = value_of(estimator, x, another_sample(y))
        # Estimators of distances within each side do not see a shift, so the other distribution is also wider.
        moved = value_of(estimator, 3.0 * x + 2.0, y)
        _require(moved > same, f"shifted and wider samples give {moved:.4f}, equal distributions {same:.4f}.")
        return
    related = value_of(estimator, x, y)
    apart, u, v = fitted(subject, seed=9, independent=True)
    unrelated = value_of(apart, u, v)
    error = apart.standard_error(u, v) or 0.0
    # An index has its own scale: require only that most of its value comes from the dependence.
    margin = related / 2 if estimator.kind == "index" else 0.1
    _require(related > unrelated + margin, f"dependent data give {related:.4f}, independent data {unrelated:.4f}.")
    _require(unrelated <= 5 * error + 0.02, f"independent data give {unrelated:.4f}, standard error {error:.4f}.")


def _nothing_is_clipped(subject: Subject) -> None:
    values = []
    for seed in range(20, 32):
        estimator, x, y = fitted(subject, seed=seed, independent=True)
        one_sided = isinstance(estimator, Discrepancy) and not (estimator.unbiased or estimator.debias)
        if estimator.kind == "index" or one_sided:
            return
        values.append(value_of(estimator, x, y if estimator.zero_when_independent else another_sample(x, seed)))
    _require(min(values) < 0, f"the minimum over twelve samples without any effect is {min(values)}: clipped at 0?")


def _contributions_average_to_the_estimate(subject: Subject) -> None:
    estimator, x, y = fitted_once(subject)
    with torch.no_grad():
        contributions = estimator.pointwise(x, y)
    if contributions is None:
        return
    _require(contributions.shape == (x.shape[0],), f"pointwise has shape {tuple(contributions.shape)}.")
    mean = float(contributions.double().mean())
    _require_close(mean, value_of(estimator, x, y), 1e-5, "the mean of pointwise differs from the estimate")


def _standard_error_matches_the_spread(subject: Subject) -> None:
    estimator, _, _ = fitted(subject, seed=11)
    values, errors = [], []
    for seed in range(40, 52):
        x, y = dependent_samples(subject, seed=seed)
        value, error = value_and_error(estimator, x, y)
        values.append(value)
        if error is None:
            return
        errors.append(error)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    stated = sum(errors) / len(errors)
    # The spread of twelve values is wrong by a factor of two only once in thousands of cases.
    agree = 0.4 * spread <= stated <= 3 * spread
    _require(agree, f"the standard error is {stated:.4f}, the standard deviation of twelve values {spread:.4f}.")


def _ceiling_holds(subject: Subject) -> None:
    estimator, x, y = fitted(subject, seed=12, noise=0.01)
    ceiling = estimator.ceiling(x.shape[0])
    if ceiling is None:
        return
    value = value_of(estimator, x, y)
    _require(value <= ceiling + 1e-6, f"the ceiling for {x.shape[0]} samples is {ceiling:.3f}, the value {value:.3f}.")
    more = estimator.ceiling(10 * x.shape[0])
    _require(more is not None and more > ceiling, "its ceiling does not increase with the number of samples.")


def _constants_say_nothing(subject: Subject) -> None:
    x, y = dependent_samples(subject, seed=13)
    estimator = instance_of(subject, x, y)
    if not estimator.zero_when_independent:
        return
    constant = torch.full_like(x, 3.0)
    fitted = fit(estimator, constant, y, seed=13)
    value = value_of(fitted, constant, y)
    allowed = 0.05 if estimator.learned else 1e-6
    _require(abs(value) <= allowed, f"constant x gives {value}; a constant contains no information.")


def _bad_input_is_refused(subject: Subject) -> None:
    x, y = dependent_samples(subject, seed=14)
    estimator = instance_of(subject, x, y)
    for bad in (float("nan"), float("inf")):
        damaged = x.clone()
        damaged[7, 0] = bad
        _refuses(partial(measure, damaged, y, estimator), f"x with {bad}", "row 7")
    _refuses(lambda: measure(x[:1], y[:1], estimator), "a single sample", "")
    if estimator.needs_pairs:
        fitted = fit(estimator, x, y, seed=14)
        _refuses(lambda: fitted.estimate(x, y[:-1]), "one sample fewer in y", "")
        _refuses(lambda: measure(x, y[:-1], estimator), "one sample fewer in y", "")


def _parameters_reach_the_optimiser(subject: Subject) -> None:
    x, y = dependent_samples(subject, seed=15)
    estimator = untrained(subject, x, y)
    parameters = {name: p for name, p in estimator.named_parameters() if p.requires_grad}
    grouped = {id(p) for group in estimator.param_groups() for p in group["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in grouped]
    _require(not missing, f"param_groups() leaves out {', '.join(missing)}.")
    if not parameters or not estimator.differentiable:
        return
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.SGD(estimator.param_groups(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        estimator(x, y).backward()
        optimizer.step()
    still = [name for name, p in parameters.items() if torch.equal(p, before[name])]
    _require(not still, f"ten steps of SGD did not change {', '.join(still)}.")


def _fresh_copies_are_independent(subject: Subject) -> None:
    x, y = dependent_samples(subject, seed=16)
    original = instance_of(subject, x, y)
    before = copy.deepcopy(original.state_dict())
    other = fit(original, x, y, seed=16)
    same = all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    _require(same, "fitting a fresh copy changed the original.")
    _require(type(other) is type(original), "fresh() returned another class.")
    _require(other.describe() == original.describe(), f"fresh() changed {original.describe()} to {other.describe()}.")


def _state_survives(subject: Subject) -> None:
    estimator, x, y = fitted(subject, seed=17)
    reference = value_of(estimator, x, y)
    _require(value_of(copy.deepcopy(estimator), x, y) == reference, "a deep copy gives another value.")
    if not any(True for _ in estimator.parameters()):
        return
    reloaded = estimator.fresh(x, y, generator=torch.Generator().manual_seed(99))
    reloaded.load_state_dict(estimator.state_dict())
    reloaded.eval()
    _require(value_of(reloaded, x, y) == reference, "its state dict does not contain everything it has learned.")


def _measures_end_to_end(subject: Subject) -> None:
    x, y = dependent_samples(subject, seed=18)
    measured = measure(x.numpy(), y.numpy(), subject, permutations=1, training=QUICK)
    text = measured.to_json()
    _require(
        Measurement.from_json(text).to_json() == text,
        "its measurement changes when it is written to JSON and read back.",
    )
    again = measure(x.numpy(), y.numpy(), subject, permutations=0, training=QUICK)
    _require(again.value == measured.value, "measuring twice with one seed gives two different values.")


def _refuses(call: Callable[[], object], what: str, expected: str) -> None:
    try:
        call()
    except InputError as error:
        _require(expected in str(error), f'the error for {what} does not contain "{expected}": {error}')
        return
    raise ContractError(f"it accepted {what} instead of raising InputError.")


def _require_close(found: float, expected: float, tolerance: float, otherwise: str) -> None:
    close = abs(found - expected) <= tolerance * max(1.0, abs(expected))
    _require(close, f"{otherwise}: {found:.8g} and {expected:.8g}.")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ContractError(otherwise[0].upper() + otherwise[1:])
