from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import math
import os
import re
import time
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from mikit.activations import ActivationStore
from mikit.core.errors import InputError
from mikit.flow import trace
from mikit.reporting import report

HOSTILE = "<script>alert(1)</script>\"'&</pre></script><!--"
FIGURES = ["phases", "flow", "maps", "gap", "label-phases", "cka", "accuracy"]
READINGS = ["changes", "divergence", "paths", "match"]
VOID = {"meta", "link", "img", "input", "br", "hr"}
PLOTLY = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order, ids unique."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.tags, self.text, self.scripts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    @property
    def table(self):
        return {column["key"]: column for column in self.data["table"]}

    @property
    def data(self):
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[0])))

    @property
    def drawn(self):
        return [attrs["data-figure"] for tag, attrs in self.tags if tag == "section" and "data-figure" in attrs]


@pytest.fixture(scope="module")
def path(run, tmp_path_factory):
    return report(run, tmp_path_factory.mktemp("report") / "out")


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_valid_and_asks_the_network_for_nothing(path):
    assert path.name == "index.html"
    assert path.parent.name == "out"
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert PLOTLY in text
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace(PLOTLY, "").replace(parsed.scripts[0], ""))
    for tag, attrs in parsed.tags:
        for name in ("src", "href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_the_policy_allows_exactly_the_two_scripts(page):
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    assert page.scripts[1] == PLOTLY
    assert "script-src 'sha256-{}' 'sha256-{}';".format(*digests) in policy
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy


def test_figures_hold_the_averages_of_the_frame(page, run):
    """Against a loop over the rows of the frame, at every place."""
    data, names = page.data, ["student alone", "student + VID"]
    assert page.drawn == [*FIGURES, *READINGS]
    assert [one["name"] for one in data["networks"]] == names
    for quantity, found in data["quantities"].items():
        rows = run.frame[run.frame["quantity"].eq(quantity) & run.frame["role"].eq("student")]
        assert [level["noise"] for level in found["levels"]] == (
            [0.1, 0.3, 1.0] if rows["noise"].notna().any() else [None]
        )
        kept = {}
        for row in rows.to_dict("records"):
            level = 0 if math.isnan(row["noise"]) else [0.1, 0.3, 1.0].index(row["noise"])
            other = row["teacher_layer"] if quantity in ("recovered_share", "cka") else ""
            kept.setdefault((level, row["network"], row["phase"], row["layer"], other), []).append(row)
        places = 0
        for k, level in enumerate(found["levels"]):
            for part in level["parts"]:
                assert part["seeds"] == 3
                grid = [(p, i, j) for p in data["phases"] for i in part["layers"] for j in part["others"]]
                for spot, (phase, layer, other) in enumerate(grid):
                    own = kept[k, names[part["network"]], phase, layer, other]
                    values = [row["value"] for row in own]
                    assert part["mean"][spot] == pytest.approx(np.mean(values), rel=6e-4, abs=1e-9)
                    assert part["sd"][spot] == pytest.approx(np.std(values, ddof=1), rel=6e-4, abs=1e-9)
                    assert part["smallest"][spot] == pytest.approx(min(values), rel=6e-4, abs=1e-9)
                    assert part["largest"][spot] == pytest.approx(max(values), rel=6e-4, abs=1e-9)
                    assert part["low"][spot] == pytest.approx(np.mean([r["low"] for r in own]), rel=6e-4, abs=1e-9)
                    worst = max(own, key=lambda r: data["verdicts"].index(r["verdict"]))
                    assert data["verdicts"][part["verdict"][spot]] == worst["verdict"]
                    assert (data["reasons"][part["reason"][spot]] == "") == (worst["reasons"] == "")
                    assert level["range"][0] <= min(values) <= max(values) <= level["range"][1]
                    places += 1
        assert places == len(kept)


def test_skipped_and_missing_places_are_said(make_flow, tmp_path):
    flow = make_flow(seeds=(0,), phases=(0, 3), noises=(0.3,), networks=("student alone",))
    share = flow.frame["quantity"].eq("recovered_share")
    gone = share & flow.frame["layer"].eq("stem") & flow.frame["teacher_layer"].eq("logits") & flow.frame["phase"].eq(3)
    frame = flow.frame.assign(verdict=flow.frame["verdict"].where(~gone, "skipped"))
    frame["value"] = frame["value"].where(~gone)
    lost = share & frame["layer"].eq("stage1") & frame["teacher_layer"].eq("logits") & frame["phase"].eq(3)
    page = Page(report(dataclasses.replace(flow, frame=frame[~lost]), tmp_path / "r").read_text(encoding="utf-8"))
    (part,) = page.data["quantities"]["recovered_share"]["levels"][0]["parts"]
    width, first = len(part["others"]), len(part["layers"]) * len(part["others"])
    assert page.data["verdicts"][part["verdict"][first + 5]] == "skipped"
    assert part["mean"][first + 5] is None
    assert part["verdict"][first + width + 5] == -1
    assert part["count"][first : first + 5] == [1] * 5


def test_other_layers_keep_their_depth(make_flow, tmp_path):
    flow = make_flow(teacher_layers=("a", "b", "c", "d"), seeds=(0,), phases=(0, 3), noises=(0.3,))
    level = Page(report(flow, tmp_path / "r").read_text(encoding="utf-8")).data["quantities"]["label_information"][
        "levels"
    ][0]
    assert level["teacher"]["x"] == pytest.approx([0, 5 / 3, 10 / 3, 5])
    assert "same relative depth" in level["facts"]


def test_what_the_page_may_not_be_used_for_stays(page):
    assert "A share above 0 does not show transfer" in page.words
    assert "three seeds are exploratory, not a test" in page.words


def test_the_words_are_computed_from_the_frame(page, run):
    frame = run.frame
    rows = frame[frame["quantity"].eq("label_information") & frame["network"].eq("student + VID")]
    means = rows[rows["phase"].eq(30)].groupby("layer")["value"]
    best = means.mean().idxmax()
    low, high = means.min()[best], means.max()[best]
    assert (
        f"student + VID has the most label information in layer {best} at phase 30: {means.mean()[best]:.2f} nats "
        f"({low:.2f} to {high:.2f} over 3 seeds)" in page.words
    )
    share = frame[frame["quantity"].eq("recovered_share") & frame["network"].eq("student alone")]
    share = share[share["phase"].eq(30) & share["layer"].eq(share["teacher_layer"])]
    average = share.groupby("layer")["value"].mean().mean()
    assert f"student alone recovers a share of {average:.2f} of the matching teacher layer on average" in page.words
    score = frame[frame["quantity"].eq("accuracy") & frame["network"].eq("student alone") & frame["phase"].eq(30)]
    assert f"student alone {score['value'].mean():.1%}" in page.words
    assert "2 student networks: student alone (3 runs, seeds 0, 1 and 2); and student + VID" in page.words
    assert "N = 5,000; pooling (readout): pool" in page.words
    assert "exploratory, not a test" in page.words


def test_other_numbers_give_other_words(run, tmp_path):
    frame = run.frame[run.frame["quantity"].eq("label_information")]
    changed = dataclasses.replace(run, frame=frame.assign(value=frame["value"].where(frame["layer"].ne("stem"), 2.0)))
    words = Page(report(changed, tmp_path / "r").read_text(encoding="utf-8")).words
    assert "in layer stem at phase 30: 2.00 nats" in words


def test_verdicts_are_counted_with_their_reasons(page, run):
    frame = run.frame
    unreliable = frame[frame["verdict"].eq("unreliable") & frame["quantity"].eq("recovered_share")]
    assert f"{len(unreliable):,} rows (unreliable): below the null" in page.words
    counts = frame[frame["quantity"].eq("recovered_share")]["verdict"].value_counts()
    row = " ".join(f"{counts[name]:,}" for name in ("trustworthy", "caution", "unreliable"))
    assert f"recovered_share {row}" in page.words


def test_the_table_holds_every_row(page, run):
    table = page.table
    assert "layer_index" not in table
    assert all(len(column["values"]) == len(run.frame) for column in table.values())
    values = np.array(table["value"]["values"], dtype=float)
    np.testing.assert_allclose(values, run.frame["value"], rtol=1e-4, atol=1e-9)
    words = [table["layer"]["words"][code] for code in table["layer"]["values"]]
    assert words == run.frame["layer"].tolist()
    noise = [math.nan if v is None else v for v in table["noise"]["values"]]
    np.testing.assert_array_equal(noise, run.frame["noise"])


def test_hostile_names_are_inert_everywhere(make_flow, tmp_path):
    hostile = make_flow(layers=(HOSTILE, "{{rows}}", "a\0b"), phases=(0, 3), seeds=(0,), noises=(0.3,))
    drawn = hostile.frame[hostile.frame["quantity"].isin(["label_information", "recovered_share"])]
    frame = drawn.assign(reasons=HOSTILE, verdict="caution", readout=HOSTILE)
    frame["network"] = frame["network"].replace("student alone", f"alone {HOSTILE}")
    hostile = dataclasses.replace(hostile, frame=frame, settings=hostile.settings | {"teacher": HOSTILE})
    text = report(hostile, tmp_path / "r").read_text(encoding="utf-8")
    parsed = Page(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 3
    assert "alert(1)" not in parsed.scripts[2]
    assert not set("<>&") & set(parsed.scripts[0])
    assert HOSTILE in parsed.table["layer"]["words"]
    assert HOSTILE in parsed.words
    assert "{{rows}}" in parsed.table["layer"]["words"]
    assert "{{rows}}" in parsed.data["quantities"]["label_information"]["levels"][0]["parts"][0]["layers"]


def test_frames_with_nothing_to_draw_still_make_a_page(make_flow, tmp_path):
    bare = make_flow(labels=False, accuracy=False, seeds=(0,), phases=(5,), noises=(0.3,))
    bare = dataclasses.replace(bare, frame=bare.frame[bare.frame["quantity"].ne("cka")])
    words = Page(report(bare, tmp_path / "bare").read_text(encoding="utf-8")).words
    assert "Not drawn: the flow has no student rows of label_information" in words
    assert "No labels were given" in words
    empty = dataclasses.replace(bare, frame=bare.frame.iloc[:0])
    page = Page(report(empty, tmp_path / "empty").read_text(encoding="utf-8"))
    assert "nothing was measured" in page.words
    assert page.drawn == []


def test_an_existing_folder_is_kept_unless_told_otherwise(run, tmp_path):
    small = dataclasses.replace(run, frame=run.frame[run.frame["quantity"].eq("accuracy")])
    path = report(small, tmp_path / "r")
    other = path.with_name("notes.txt")
    other.write_text("mine")
    before = path.read_bytes()
    with pytest.raises(InputError, match="overwrite=True"):
        report(run, tmp_path / "r")
    assert path.read_bytes() == before
    more = dataclasses.replace(small, settings=small.settings | {"n": 1})
    assert report(more, tmp_path / "r", overwrite=True).read_bytes() != before
    assert other.read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        report(small, tmp_path / "file")


def test_a_failing_write_leaves_the_old_page(run, tmp_path, monkeypatch):
    small = dataclasses.replace(run, frame=run.frame[run.frame["quantity"].eq("accuracy")])
    path = report(small, tmp_path / "r")
    before = path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        report(dataclasses.replace(small, settings={}), tmp_path / "r", overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_the_same_flow_gives_the_same_bytes(run, tmp_path):
    small = dataclasses.replace(run, frame=run.frame[run.frame["quantity"].isin(["accuracy", "label_gap"])])
    assert report(small, tmp_path / "a").read_bytes() == report(small, tmp_path / "b").read_bytes()


def test_many_rows_stay_small_and_quick(run, tmp_path):
    scores = run.frame[run.frame["quantity"].eq("accuracy")]
    many = [scores.assign(seed=seed) for seed in range(20_000 // len(scores))]
    big = dataclasses.replace(
        run, frame=pd.concat(many, ignore_index=True).drop_duplicates(["network", "seed", "phase"])
    )
    start = time.perf_counter()
    path = report(big, tmp_path / "r")
    assert time.perf_counter() - start < 20
    assert path.stat().st_size < 5_000_000 + 40 * len(big.frame)


def test_a_real_trace_becomes_a_page(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(700) % 2
    deep = {"conv": rng.standard_normal((700, 4)) + labels[:, None]}
    deep["fc"] = deep["conv"] @ rng.standard_normal((4, 3)) + 0.1 * rng.standard_normal((700, 3))
    teacher = ActivationStore(tmp_path / "teacher", network="teacher", seed=0)
    teacher.append(deep, ids=np.arange(700), phase=5)
    students = []
    for seed in (0, 1):
        student = ActivationStore(tmp_path / f"student{seed}", network="student alone", seed=seed)
        for phase in (0, 2):
            noise = 2.0 if phase == 0 else 0.5
            layers = {name: x[:, :2] + noise * rng.standard_normal((700, 2)) for name, x in deep.items()}
            student.append(layers, ids=np.arange(700), phase=phase)
            student.note(phase, accuracy=0.5 + 0.1 * phase)
        students.append(student)
    flow = trace(teacher, students, labels=labels, noise=(0.3, 1.0), probe="lda")
    page = Page(report(flow, tmp_path / "report").read_text(encoding="utf-8"))
    assert page.drawn == [*FIGURES, "changes", "divergence", "match"]
    assert "No comparison: the flow has fewer than two students." in page.words
    assert "student alone has the most label information in layer" in page.words
    assert "N = 700" in page.words
