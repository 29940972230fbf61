"""The contract suite: what every estimator must do, for those of mikit and for yours.

    from mikit.testing import check_estimator
    check_estimator(MyEstimator())

Each check is a function of a prototype; :func:`contract_checks` lists them by name for a test runner.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from mikit.core.errors import InputError
from mikit.core.measurement import Measurement
from mikit.estimators.base import Estimator
from mikit.estimators.discrepancy import Discrepancy
from mikit.estimators.fitting import Training
from mikit.measuring.pipeline import measure

__all__ = ["ContractError", "check_estimator", "contract_checks"]

_UNITS = ("nats", "feature", "feature²", "dimensionless")
_KINDS = ("lower bound", "upper bound", "estimate", "V-information", "index", "discrepancy")
_QUICK = Training(steps=150, batch=128, every=15, patience=4)
_ROWS = 500
_WIDTH = 3


class ContractError(AssertionError):
    """An estimator breaks the contract; the message says which part and what was seen."""


def check_estimator(estimator: Estimator | type[Estimator]) -> None:
    """Run the whole contract suite over one estimator.

    Args:
        estimator: An instance, or a class that ``between`` can build with default hyper-parameters.

    Raises:
        ContractError: At the first broken promise, with what was seen.

    Cost:
        Some twenty small fits and estimates: a second for a closed form, up to a minute for a trained critic.

    Pitfalls:
        The suite tests promises, not accuracy. An estimator can pass it and be a poor one.

    Example:
        >>> from mikit import GaussianMI
        >>> check_estimator(GaussianMI())
    """
    for _, check in contract_checks():
        check(estimator)


def contract_checks() -> Iterator[tuple[str, Callable[[Estimator | type[Estimator]], None]]]:
    """Yield the name of each check with the function that runs it."""
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


def _declares_itself(estimator: Estimator | type[Estimator]) -> None:
    cls = estimator if isinstance(estimator, type) else type(estimator)
    _require(isinstance(getattr(cls, "name", None), str) and bool(cls.name), "it has no name.")
    _require(getattr(cls, "unit", None) in _UNITS, f"its unit must be one of {_UNITS}.")
    _require(getattr(cls, "kind", None) in _KINDS, f"its kind must be one of {_KINDS}.")
    _require(cls.explains in ("vectors", "labels"), 'it must explain "vectors" or "labels".')
    _require(getattr(cls, "__final__", False), "its class is not marked typing.final; classes are abstract or final.")


def _loss_is_a_finite_scalar_with_a_gradient(estimator: Estimator | type[Estimator]) -> None:
    x, y = _dependent(estimator, seed=1)
    instrument = _built(estimator, x, y)
    x = x.clone().requires_grad_()
    if not instrument.differentiable:
        try:
            instrument(x, y)
        except TypeError:
            return
        raise ContractError("differentiable is False, but calling it did not raise TypeError.")
    loss = instrument(x, y)
    _require(loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}, not ().")
    _require(bool(torch.isfinite(loss.detach())), f"the loss is {float(loss.detach())}.")
    loss.backward()
    _require(x.grad is not None and bool(torch.isfinite(x.grad).all()), "the gradient of x is missing or not finite.")
    assert x.grad is not None
    _require(bool(x.grad.abs().sum() > 0), "the gradient of x is zero: nothing would train.")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = instrument(x.detach().bfloat16(), y.bfloat16() if y.is_floating_point() else y).detach()
    _require(low.dtype in (torch.float32, torch.float64), f"under autocast the loss is {low.dtype}, not float32.")
    exact = float(instrument(x.detach(), y).detach())
    _require(
        abs(float(low) - exact) <= 0.05 * max(1.0, abs(exact)),
        f"on bfloat16 input the loss is {float(low):.4f}, on float32 {exact:.4f}.",
    )


def _teacher_gets_no_gradient(estimator: Estimator | type[Estimator]) -> None:
    x, y = _dependent(estimator, seed=2)
    instrument = _built(estimator, x, y)
    if not instrument.differentiable or not y.is_floating_point():
        return
    teacher = y.clone().requires_grad_()
    loss = instrument(x.clone().requires_grad_(), teacher)
    loss.backward()
    _require(teacher.grad is None, "a gradient reached the teacher; detach it inside forward.")


def _estimate_is_a_finite_scalar(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=3)
    value = instrument.estimate(x, y)
    _require(value.ndim == 0, f"the estimate has shape {tuple(value.shape)}, not ().")
    _require(bool(torch.isfinite(value)), f"the estimate is {float(value)}.")


def _inputs_are_left_alone(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=4)
    before = x.clone(), y.clone()
    instrument.estimate(x, y)
    if instrument.differentiable:
        instrument(x, y)
    _require(torch.equal(x, before[0]) and torch.equal(y, before[1]), "it changed its input in place.")


def _is_deterministic(estimator: Estimator | type[Estimator]) -> None:
    state = torch.random.get_rng_state()
    first = _value(*_fitted(estimator, seed=5))
    _require(torch.equal(state, torch.random.get_rng_state()), "it drew from torch's global random numbers.")
    second = _value(*_fitted(estimator, seed=5))
    _require(first == second, f"the same seed gave {first!r} and then {second!r}.")


def _precision_and_layout_do_not_matter(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=6)
    reference = _value(instrument, x, y)
    wide = torch.stack([x, x], dim=-1)[..., 0]
    _require(not wide.is_contiguous(), "the test made no strided view.")
    _require(_value(instrument, wide, y) == reference, "a non-contiguous view of x gives another number.")
    doubled = copy.deepcopy(instrument).double()
    precise = _value(doubled, x.double(), y.double() if y.is_floating_point() else y)
    tolerance = 1e-3 * max(1.0, abs(reference))
    _require(abs(precise - reference) <= tolerance, f"float32 gives {reference:.6f} and float64 {precise:.6f}.")


def _row_order_does_not_matter(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=7)
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(0))
    reference, shuffled = _value(instrument, x, y), _value(instrument, x[order], y[order])
    allowed = 1e-5 * max(1.0, abs(reference))
    if not instrument.orderless:
        error = instrument.standard_error(x, y)
        if error is None:
            return
        allowed += 6 * error
    _require(
        abs(reference - shuffled) <= allowed,
        f"shuffling the pairs turns {reference:.8f} into {shuffled:.8f}.",
    )


def _keeps_its_symmetry(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=8)
    if not instrument.symmetric:
        return
    there, back = _value(instrument, x, y), _value(instrument, y, x)
    _require(
        abs(there - back) <= 1e-6 * max(1.0, abs(there)), f"it says it is symmetric, but gives {there} and {back}."
    )


def _dependence_shows(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=9)
    if not instrument.zero_when_independent:
        same = _value(instrument, x, _another_sample(y))
        # What compares distances within each side does not see a shift, so the other law is wider as well.
        moved = _value(instrument, 3.0 * x + 2.0, y)
        _require(moved > same, f"laws of another place and width give {moved:.4f}, equal laws {same:.4f}.")
        return
    related = _value(instrument, x, y)
    apart, u, v = _fitted(estimator, seed=9, independent=True)
    unrelated = _value(apart, u, v)
    error = apart.standard_error(u, v) or 0.0
    # An index has a scale of its own: what is asked is that most of it goes with the dependence.
    margin = related / 2 if instrument.kind == "index" else 0.1
    _require(related > unrelated + margin, f"dependent data give {related:.4f}, independent data {unrelated:.4f}.")
    _require(
        unrelated <= 5 * error + 0.02, f"independent data give {unrelated:.4f} with a standard error of {error:.4f}."
    )


def _nothing_is_clipped(estimator: Estimator | type[Estimator]) -> None:
    values = []
    for seed in range(20, 32):
        instrument, x, y = _fitted(estimator, seed=seed, independent=True)
        one_sided = isinstance(instrument, Discrepancy) and not (instrument.unbiased or instrument.debias)
        if instrument.kind == "index" or one_sided:
            return
        values.append(_value(instrument, x, y if instrument.zero_when_independent else _another_sample(x, seed)))
    _require(
        min(values) < 0, f"twelve samples without any effect gave no value below 0 (lowest {min(values)}): clipped?"
    )


def _contributions_average_to_the_estimate(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=10)
    with torch.no_grad():
        contributions = instrument.pointwise(x, y)
    if contributions is None:
        return
    _require(contributions.shape == (x.shape[0],), f"pointwise has shape {tuple(contributions.shape)}.")
    mean, value = float(contributions.double().mean()), _value(instrument, x, y)
    _require(
        abs(mean - value) <= 1e-5 * max(1.0, abs(value)), f"pointwise averages to {mean}, the estimate is {value}."
    )


def _standard_error_matches_the_spread(estimator: Estimator | type[Estimator]) -> None:
    instrument, _, _ = _fitted(estimator, seed=11)
    values, errors = [], []
    for seed in range(40, 52):
        x, y = _dependent(estimator, seed=seed)
        value, error = _value_and_error(instrument, x, y)
        values.append(value)
        if error is None:
            return
        errors.append(error)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    stated = sum(errors) / len(errors)
    # Twelve values give a spread that is off by a factor of two only once in thousands of samples.
    _require(
        0.4 * spread <= stated <= 3 * spread,
        f"the standard error is {stated:.4f}, twelve samples spread by {spread:.4f}.",
    )


def _ceiling_holds(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=12, noise=0.01)
    ceiling = instrument.ceiling(x.shape[0])
    if ceiling is None:
        return
    value = _value(instrument, x, y)
    _require(value <= ceiling + 1e-6, f"it says {x.shape[0]} rows show at most {ceiling:.3f}, and gives {value:.3f}.")
    more = instrument.ceiling(10 * x.shape[0])
    _require(more is not None and more > ceiling, "its ceiling does not rise with the number of rows.")


def _constants_say_nothing(estimator: Estimator | type[Estimator]) -> None:
    x, y = _dependent(estimator, seed=13)
    instrument = _prototype(estimator, x, y)
    if not instrument.zero_when_independent:
        return
    constant = torch.full_like(x, 3.0)
    fitted = _fit(instrument, constant, y, seed=13)
    value = _value(fitted, constant, y)
    allowed = 0.05 if instrument.learned else 1e-6
    _require(abs(value) <= allowed, f"constant x gives {value!r}; a constant carries no information.")


def _bad_input_is_refused(estimator: Estimator | type[Estimator]) -> None:
    x, y = _dependent(estimator, seed=14)
    instrument = _prototype(estimator, x, y)
    for bad in (float("nan"), float("inf")):
        spoilt = x.clone()
        spoilt[7, 0] = bad
        _refuses(partial(measure, spoilt, y, instrument), f"x with {bad}", "row 7")
    _refuses(lambda: measure(x[:1], y[:1], instrument), "one row", "")
    if instrument.needs_pairs:
        fitted = _fit(instrument, x, y, seed=14)
        _refuses(lambda: fitted.estimate(x, y[:-1]), "one row fewer in y", "")
        _refuses(lambda: measure(x, y[:-1], instrument), "one row fewer in y", "")


def _parameters_reach_the_optimiser(estimator: Estimator | type[Estimator]) -> None:
    x, y = _dependent(estimator, seed=15)
    instrument = _built(estimator, x, y)
    parameters = {name: p for name, p in instrument.named_parameters() if p.requires_grad}
    handed = {id(p) for group in instrument.param_groups() for p in group["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in handed]
    _require(not missing, f"param_groups() leaves out {', '.join(missing)}.")
    if not parameters or not instrument.differentiable:
        return
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimiser = torch.optim.SGD(instrument.param_groups(), lr=0.05)
    for _ in range(10):
        optimiser.zero_grad()
        instrument(x, y).backward()
        optimiser.step()
    still = [name for name, p in parameters.items() if torch.equal(p, before[name])]
    _require(not still, f"ten steps of SGD did not move {', '.join(still)}.")


def _fresh_copies_are_independent(estimator: Estimator | type[Estimator]) -> None:
    x, y = _dependent(estimator, seed=16)
    original = _prototype(estimator, x, y)
    before = copy.deepcopy(original.state_dict())
    other = _fit(original, x, y, seed=16)
    same = all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    _require(same, "fitting a fresh copy changed the original.")
    _require(type(other) is type(original), "fresh() returned another class.")
    _require(other.describe() == original.describe(), f"fresh() turned {original.describe()} into {other.describe()}.")


def _state_survives(estimator: Estimator | type[Estimator]) -> None:
    instrument, x, y = _fitted(estimator, seed=17)
    reference = _value(instrument, x, y)
    _require(_value(copy.deepcopy(instrument), x, y) == reference, "a deep copy gives another number.")
    if not any(True for _ in instrument.parameters()):
        return
    reloaded = instrument.fresh(x, y, generator=torch.Generator().manual_seed(99))
    reloaded.load_state_dict(instrument.state_dict())
    reloaded.eval()
    _require(_value(reloaded, x, y) == reference, "its state dict does not hold all it has learned.")


def _measures_end_to_end(estimator: Estimator | type[Estimator]) -> None:
    x, y = _dependent(estimator, seed=18)
    measured = measure(x.numpy(), y.numpy(), estimator, permutations=1, training=_QUICK)
    text = measured.to_json()
    _require(Measurement.from_json(text).to_json() == text, "its measurement does not survive JSON.")
    again = measure(x.numpy(), y.numpy(), estimator, permutations=1, training=_QUICK)
    _require(again.value == measured.value, "measuring twice with one seed gives two numbers.")


def _dependent(
    estimator: Estimator | type[Estimator], *, seed: int, independent: bool = False, noise: float = 0.6
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(_ROWS, _WIDTH, generator=g)
    source = torch.randn(_ROWS, _WIDTH, generator=g) if independent else x
    y = (source + noise * torch.randn(_ROWS, _WIDTH, generator=g)) / math.sqrt(1 + noise**2)
    if estimator.reads == "categories":
        return (x > 0).float(), (y[:, 0] > 0).long()
    return x, (y[:, 0] > 0).long() if estimator.explains == "labels" else y


def _another_sample(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1000 + seed))


def _prototype(estimator: Estimator | type[Estimator], x: Tensor, y: Tensor) -> Estimator:
    if isinstance(estimator, Estimator):
        return estimator
    return estimator.between(x, y, generator=torch.Generator().manual_seed(0))


def _built(estimator: Estimator | type[Estimator], x: Tensor, y: Tensor) -> Estimator:
    """Return an instrument of one's own that is sized for the data, in training mode."""
    return _prototype(estimator, x, y).fresh(x, y, generator=torch.Generator().manual_seed(0)).train()


def _fit(prototype: Estimator, x: Tensor, y: Tensor, *, seed: int) -> Estimator:
    generator = torch.Generator().manual_seed(seed)
    instrument = prototype.fresh(x, y, generator=generator)
    half = x.shape[0] // 2
    instrument.fit(x[:half], y[:half], select=(x[half:], y[half:]), generator=generator, training=_QUICK)
    instrument.eval()
    return instrument


def _fitted(
    estimator: Estimator | type[Estimator], *, seed: int, independent: bool = False, noise: float = 0.6
) -> tuple[Estimator, Tensor, Tensor]:
    """Return a fitted instrument and rows of the same law that it was not fitted to."""
    x, y = _dependent(estimator, seed=seed, independent=independent, noise=noise)
    instrument = _fit(_prototype(estimator, x, y), x, y, seed=seed)
    return instrument, *_dependent(estimator, seed=seed + 500, independent=independent, noise=noise)


def _value(instrument: Estimator, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(instrument.estimate(x, y))


def _value_and_error(instrument: Estimator, x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """Return both, in one pass where the instrument has one that fits itself once."""
    if type(instrument).read is Estimator.read:
        return _value(instrument, x, y), instrument.standard_error(x, y)
    with torch.no_grad():
        reading = instrument.read(x, y)
    return float(reading.value), reading.standard_error


def _refuses(call: Callable[[], object], what: str, said: str) -> None:
    try:
        call()
    except InputError as refusal:
        _require(said in str(refusal), f'the refusal of {what} does not say "{said}": {refusal}')
        return
    raise ContractError(f"it accepted {what} instead of raising InputError.")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise[0].upper() + otherwise[1:])
