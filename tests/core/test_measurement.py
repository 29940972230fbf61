"""The frozen result: verdicts, findings, JSON and what a person reads."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from mikit.core.errors import InputError
from mikit.core.measurement import Check, Measurement, Null


def _measurement(**changes: object) -> Measurement:
    fields = {
        "value": 2.3141,
        "unit": "nats",
        "kind": "estimate",
        "interval": (2.24, 2.38),
        "standard_error": 0.0357,
        "ceiling": 9.2,
        "checks": (Check("a", "pass", 0.1, 0.2, "Fine."),),
        "null": Null((0.01, -0.02), "rows"),
        "estimator": "GaussianMI()",
        "chosen": "",
        "seed": 0,
        "sizes": {"fit": 0, "select": 0, "report": 10000, "d_x": 5, "d_y": 5},
        "parts": {},
        "versions": {"mikit": "0"},
        "data_hash": "00",
        "wall_time": 0.5,
    }
    return Measurement(**(fields | changes))


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["pass", "not applicable"], "trustworthy"),
        (["pass", "warn"], "caution"),
        (["warn", "fail", "pass"], "unreliable"),
        ([], "trustworthy"),
    ],
)
def test_the_verdict_is_the_worst_check(outcomes: list[str], verdict: str) -> None:
    checks = tuple(Check(str(i), outcome, None, None, f"Check {i}.") for i, outcome in enumerate(outcomes))
    assert _measurement(checks=checks).verdict == verdict


def test_reasons_put_failures_first() -> None:
    checks = (Check("w", "warn", 1.0, 0.5, "Warned."), Check("f", "fail", 1.0, 0.5, "Failed."))
    assert _measurement(checks=checks).reasons == ("Failed.", "Warned.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Information was detected"),
        ({"interval": (-0.01, 0.03)}, "No information was detected by this estimator: the interval includes 0"),
        ({"interval": (0.4, 0.5), "null": Null((0.45,), "groups")}, "the estimates on permuted data"),
        ({"interval": (math.nan, math.nan), "standard_error": None}, "there is no conclusion"),
        ({"kind": "discrepancy", "interval": (-0.1, 0.1)}, "No difference"),
        ({"kind": "discrepancy"}, "The two distributions differ"),
    ],
)
def test_the_finding_claims_no_more_than_the_interval(changes: dict[str, object], said: str) -> None:
    assert said in _measurement(**changes).finding


@pytest.mark.parametrize(
    "changes", [{}, {"null": None, "ceiling": None}, {"standard_error": math.inf, "interval": (-math.inf, math.inf)}]
)
def test_json_round_trip(changes: dict[str, object]) -> None:
    measured = _measurement(**changes)
    assert Measurement.from_json(measured.to_json()) == measured
    content = json.loads(measured.to_json(), parse_constant=pytest.fail)
    assert content["verdict"] == measured.verdict


def test_foreign_json_is_refused() -> None:
    with pytest.raises(InputError, match="not JSON"):
        Measurement.from_json("{")
    with pytest.raises(InputError, match="schema version 99"):
        Measurement.from_dict({"schema_version": 99})
    with pytest.raises(InputError, match="not a measurement"):
        Measurement.from_json("[]")
    with pytest.raises(InputError, match="malformed"):
        Measurement.from_dict(_measurement().to_dict() | {"interval": None})
    content = _measurement().to_dict()
    del content["interval"]
    with pytest.raises(InputError, match="lacks the fields interval"):
        Measurement.from_dict(content)


@pytest.mark.parametrize(
    ("value", "p_value"),
    [(0.5, 0.2), (0.2, 0.4), (0.15, 0.4), (0.0, 0.8), (-1.0, 1.0), (math.inf, 0.2), (math.nan, math.nan)],
)
def test_the_p_value_counts_the_observed_pairing_and_ties(value: float, p_value: float) -> None:
    null = Null((0.2, 0.1, 0.0, -0.1), "rows")
    assert null.p_value(value) == pytest.approx(p_value, nan_ok=True)
    measured = _measurement(value=value, null=null)
    assert measured.p_value == pytest.approx(p_value, nan_ok=True)


def test_an_estimate_on_permuted_data_that_is_no_number_counts_against_the_value() -> None:
    assert Null((math.nan, 0.1, 0.0), "rows").p_value(0.5) == 0.5


def test_without_permuted_data_there_is_no_p_value() -> None:
    assert _measurement(null=None).p_value is None
    assert _measurement(null=None).to_dict()["p_value"] is None
    assert _measurement().to_dict()["p_value"] == pytest.approx(1 / 3)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _measurement().value = 3.0


def test_print_shows_the_number_its_interval_and_the_verdict() -> None:
    text = str(_measurement())
    assert text.startswith("2.314 nats  [2.240, 2.380]  estimate, N = 10000, upper limit 9.2  ·  verdict: trustworthy")


def test_the_notebook_rendering_escapes_what_it_shows() -> None:
    page = _measurement(estimator="<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(InputError, match='outcome "fine"'):
        Check("a", "fine", None, None, "")
