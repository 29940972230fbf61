"""The frame of the analyses: searched weights, records that resume, paired tables, retrieval."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))
from comparison.comparing import chosen_methods, train_all
from comparison.methods import METHODS
from comparison.report import interval, method_table, verdict, write_results
from comparison.retrieval import average_precision, ranked, released_evaluator
from comparison.runs import TRIALS, Comparison, Settings, searched_weight

sys.path.pop(0)

TINY = Settings(per_class=3, validation=40, teacher_epochs=1, teacher_width=0.5, student_width=0.25, epochs=2)


def trials(**accuracies: float) -> list[dict[str, object]]:
    return [
        {"weight": float(weight[1:].replace("_", ".")), "validation": value, "failed": None}
        for weight, value in accuracies.items()
    ]


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ({}, 1.0),
        ({"w1": 0.5}, 3.0),
        ({"w1": 0.5, "w3": 0.6}, 9.0),
        ({"w1": 0.6, "w3": 0.5}, 0.333),
        ({"w1": 0.5, "w3": 0.6, "w9": 0.55}, 5.2),  # between the best and the better of its neighbours
        ({"w1": 0.5, "w3": 0.6, "w9": 0.4}, 1.73),
    ],
)
def test_the_search_for_a_weight_follows_the_better_end(tried, expected):
    assert searched_weight(trials(**tried)) == pytest.approx(expected)


def test_a_comparison_searches_pairs_and_resumes(tmp_path):
    methods = chosen_methods("vid", METHODS, quick=False)
    comparison = Comparison(
        name="methods", out=tmp_path, file=None, data_key="digits", settings=TINY, methods=methods, seeds=(0, 1)
    )
    (tmp_path / "runs").mkdir()
    train_all(comparison, 1)
    assert comparison.finished() == comparison.planned() == 2 + TRIALS + 1
    found = {run["weight"]: run["validation"] for run in comparison.trials("vid")}
    assert len(found) == TRIALS
    assert found[comparison.chosen("vid")] == max(found.values())
    table = method_table(comparison).set_index("method")
    alone = [run["test"] for run in comparison.reported("alone")]
    vid = [run["test"] for run in comparison.reported("vid")]
    gain = 100 * np.mean(np.subtract(vid, alone))
    assert table.loc["vid", "gain"] == pytest.approx(gain)
    assert set(comparison.reported("vid")[0]["looks"]) == {"stage1", "stage2", "stage3"}
    # A run that is lost is done again, alike; the others are not touched.
    lost = comparison.record("vid", 1, comparison.chosen("vid"))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir() if file != lost}
    content = json.loads(lost.read_text())
    lost.unlink()
    train_all(comparison, 1)
    again = json.loads(lost.read_text())
    assert again["test"] == content["test"]
    assert [line["loss"] for line in again["curve"]] == [line["loss"] for line in content["curve"]]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    write_results(comparison)
    assert {"table.md", "results.json", "trials.csv", "methods.png"} <= {file.name for file in tmp_path.iterdir()}


def test_verdicts_ask_for_an_interval_off_zero():
    for gains, expected in (
        ([1.0, 1.2, 1.1], "helped"),
        ([-1.0, -1.2, -1.1], "hurt"),
        ([2.0, -1.0, 1.0], "not settled"),
    ):
        assert verdict(np.array(gains), *interval(np.array(gains))) == expected
    assert verdict(np.array([1.0]), *interval(np.array([1.0]))) == "too few seeds"


def test_retrieval_is_that_of_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    database, queries = (torch.randn(n, 3, generator=generator) for n in (40, 7))
    labels, wanted = (torch.randint(0, 3, (n,), generator=generator) for n in (40, 7))
    relevant = ranked(database, queries, "euclidean", labels, wanted)
    values = []
    for query, label in zip(queries, wanted, strict=True):
        order = sorted(range(40), key=lambda row: float((database[row] - query).norm()))
        hits, precisions = 0, []
        for rank, row in enumerate(order, start=1):
            if labels[row] == label:
                hits += 1
                precisions.append(hits / rank)
        values.append(sum(precisions) / len(precisions))
    assert average_precision(relevant) == pytest.approx(np.mean(values))
    cosine = ranked(database, 5 * queries, "cosine", labels, wanted)
    assert (cosine == ranked(database, queries, "cosine", labels, wanted)).all()


def test_the_released_evaluator_is_never_below_the_honest_precision():
    generator = np.random.default_rng(0)
    relevant = generator.random((130, 300)) < np.linspace(0.6, 0.1, 300)
    _, top = released_evaluator(relevant)
    assert top > relevant[:, :100].mean()
    perfect = np.zeros((4, 20), dtype=bool)
    perfect[:, :5] = True
    assert released_evaluator(perfect)[0] == pytest.approx(1.0)
