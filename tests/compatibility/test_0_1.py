"""What mikit 0.1.0 offered and wrote still works: names, signatures, commands, options, and files."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mikit
from mikit import InputError
from mikit.bench.accuracy.results import AccuracyReport, Estimate
from mikit.bench.speed.results import SpeedReport

WRITTEN = Path(__file__).parents[1] / "data" / "from_0_1"
OLD = json.loads((WRITTEN / "api.json").read_text())
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())


@cache
def present() -> dict[str, Any]:
    """Return the public API of this version, described as that of 0.1.0 was."""
    spec = importlib.util.spec_from_file_location("public_api", Path(__file__).with_name("public_api.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"names": module.public_names(), "commands": module.commands(), "described": module.described}


def calls_break(old: list[str], new: list[str]) -> Iterator[str]:
    """Yield why a call that 0.1.0 accepted could fail or mean something else."""
    if any(name.startswith("any **") for name in new) and not any(name.startswith("any **") for name in old):
        yield "named parameters became **options"
    by_place = [name for name in new if not name.startswith(("*", "any"))]
    old_by_place = [name for name in old if not name.startswith(("*", "any"))]
    if by_place[: len(old_by_place)] != old_by_place:
        yield f"parameters by place were {old_by_place} and are {by_place}"
    if lost := {name for name in old if name.startswith(("*", "any"))} - set(new):
        yield f"parameters by name were lost or have another default: {sorted(lost)}"
    added = set(by_place[len(old_by_place) :]) | {name for name in new if name.startswith("*")} - set(old)
    if required := [name for name in added if "=" not in name]:
        yield f"new parameters have no default: {required}"


def object_named(module: str, name: str) -> dict[str, Any]:
    return present()["described"](getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("module", sorted(OLD["names"]))
def test_public_names_and_signatures(module: str) -> None:
    now = importlib.import_module(module)
    wrong = []
    for name, old in OLD["names"][module].items():
        if name not in now.__all__:
            wrong.append(f"{name} is no longer public")
            continue
        if isinstance(old, str):  # Compared under the module that comes first.
            home, _, first = old.rpartition(".")
            assert getattr(importlib.import_module(home), first) is getattr(now, name)
            continue
        new = object_named(module, name)
        if new["kind"] != old["kind"]:
            wrong.append(f"{name} was a {old['kind']} and is a {new['kind']}")
            continue
        pairs = [("", old.get("parameters", []), new.get("parameters", []))]
        for member, described in old.get("members", {}).items():
            found = new["members"].get(member)
            if found is None or (found == "attribute") != (described == "attribute"):
                wrong.append(f"{name}.{member} was {described} and is {found}")
            elif found != "attribute":
                pairs.append((f".{member}", described, found))
        wrong += [f"{name}{where}: {why}" for where, before, after in pairs for why in calls_break(before, after)]
    assert not wrong, "\n".join(wrong)


def test_commands_and_options() -> None:
    now = present()["commands"]
    for command, options in OLD["commands"].items():
        for name, option in options.items():
            found = now[command].get(name)
            assert found is not None, f"{command} has lost {option['names']}"
            assert set(option["names"]) <= set(found["names"]), f"{command} {name}"
            assert {key: option[key] for key in ("default", "required", "multiple")} == {
                key: found[key] for key in ("default", "required", "multiple")
            }, f"{command} {name}"
        added = [name for name in now[command] if name not in options and now[command][name]["required"]]
        assert not added, f"{command} now requires {added}"


def test_measure_is_still_imported_from_its_old_place() -> None:
    assert importlib.import_module("mikit.measuring").measure is mikit.measure


def test_the_list_is_that_of_0_1() -> None:
    assert OLD["version"] == "0.1.0"
    assert len(OLD["names"]["mikit"]) == 72
    assert sum(len(options) for options in OLD["commands"].values()) > 100


def test_a_store(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "teacher", tmp_path / "teacher")
    store = mikit.ActivationStore.open(tmp_path / "teacher")
    assert (store.layers, store.phases, store.notes[3]["accuracy"]) == (("early", "late"), (0, 3), 0.8)
    np.testing.assert_array_equal(store.read("late", 3)[0], np.float32(EXPECTED["late at phase 3, first row"]))
    store.verify()
    layers = {"early": np.ones((60, 3), np.float32), "late": np.ones((60, 3), np.float32)}
    store.append(layers, ids=range(60), phase=5)  # It can also be continued.
    assert store.phases == (0, 3, 5)


def test_a_trace(tmp_path: Path) -> None:
    flow = mikit.Flow.load(WRITTEN / "trace")
    assert len(flow.frame) == EXPECTED["rows of the trace"]
    assert sorted(flow.frame.columns) == EXPECTED["columns"]
    assert float(flow.frame["value"].sum()) == EXPECTED["sum of the values"]
    page = mikit.report(flow, tmp_path)
    assert page.exists()


def test_a_trace_is_resumed(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "trace", tmp_path / "trace")
    description = tmp_path / "trace" / "trace.json"
    by_module = ["mikit.estimators.gaussian.GaussianMI by default", "mikit.estimators.label_hsic.LabelHSIC by default"]
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"pairs_with": by_module}))  # As 0.1.0 named them.
    teacher, student = (mikit.ActivationStore.open(WRITTEN / name) for name in ("teacher", "student"))
    labels = np.random.default_rng(0).standard_normal((60, 2))[:, 0] > 0
    asked = {"labels": labels.astype(np.int64), "noise": 0.3, "folds": 3, "out": tmp_path / "trace"}
    with pytest.raises(InputError, match="pairs_with is"):
        mikit.trace(teacher, student, pairs_with="gaussian", **asked)
    flow = mikit.trace(teacher, student, pairs_with=["gaussian", "label_hsic"], **asked)
    assert {"gaussian", "label_hsic"} <= set(flow.frame["quantity"])


def test_a_measurement() -> None:
    teacher, student = (mikit.ActivationStore.open(WRITTEN / name) for name in ("teacher", "student"))
    now = mikit.measure(student.read("late", 3), teacher.read("late", 3), "gaussian")
    assert (now.value, now.verdict) == (pytest.approx(EXPECTED["measurement"], rel=1e-9), EXPECTED["verdict"])
    text = (WRITTEN / "measurement.json").read_text()
    assert json.loads(mikit.Measurement.from_json(text).to_json()) == json.loads(text) | {
        "finding": mikit.Measurement.from_json(text).finding  # Sentences may be worded anew; keys and numbers stay.
    }
    before, after = json.loads(text), json.loads(now.to_json())
    assert set(before) <= set(after)
    assert {check["name"] for check in before["checks"]} <= {check["name"] for check in after["checks"]}
    assert set(before["checks"][0]) <= set(after["checks"][0])


def test_a_record_and_reports_of_benchmarks() -> None:
    (record,) = (WRITTEN / "bench_records").glob("*.json")
    content = json.loads(record.read_text())
    assert Estimate.from_dict(content).to_dict() == content
    text = (WRITTEN / "bench_accuracy.json").read_text()
    assert json.loads(AccuracyReport.from_json(text).to_json()) == json.loads(text)
    text = (WRITTEN / "bench_speed.json").read_text()
    assert json.loads(SpeedReport.from_json(text).to_json()) == json.loads(text)
