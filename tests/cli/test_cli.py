from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import mikit
from mikit.activations import ActivationStore
from mikit.cli import app
from mikit.core.measurement import Measurement
from mikit.flow import Flow

N = 600


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a Gaussian pair (1.022 nats), labels and groups, and everything that can be wrong."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    student = rng.standard_normal((N, 2))
    teacher = 0.8 * student + 0.6 * rng.standard_normal((N, 2))
    np.save("student.npy", student)
    np.save("teacher.npy", teacher)
    np.save("short.npy", teacher[:-1])
    np.save("labels.npy", np.where(teacher[:, 0] > 0, "yes", "no"))
    np.save("groups.npy", np.arange(N) // 2)
    np.save("independent.npy", rng.standard_normal((N, 2)))
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        broken = teacher.copy()
        broken[[7, 9], 1] = value
        np.save(f"{name}.npy", broken)
    np.save("few.npy", student[:3])
    np.save("cube.npy", rng.standard_normal((N, 2, 2, 2, 2)))
    np.save("complex.npy", student.astype(complex))
    np.savez("two.npz", a=teacher, b=student)
    content = (tmp_path / "teacher.npy").read_bytes()
    (tmp_path / "truncated.npy").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1,2,3\n4,5,6\n")
    np.save("objects.npy", np.array([{}] * N), allow_pickle=True)
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.fixture
def stores(files):
    """A teacher and a student of two layers on the same samples, with labels and accuracies."""
    rng = np.random.default_rng(1)
    labels = np.arange(N) % 3
    hidden = rng.standard_normal((N, 4)) + labels[:, None]
    for name, network, noise in (("T", "teacher", 0.0), ("S", "student", 1.0)):
        store = ActivationStore(files / name, network=network, seed=0)
        for phase in (0, 5):
            noisy = hidden + (noise + (5 - phase)) * rng.standard_normal((N, 4))
            store.append({"conv": noisy[:, :2], "fc": noisy}, ids=np.arange(N), phase=phase)
            store.note(phase, accuracy=0.5)
        store.set_labels(np.arange(N), labels)
    return files


def mikit_run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *said):
    """Exit code 2, nothing on standard output, and one line of whole sentences on standard error."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", ".)"))
    assert "Traceback" not in result.output
    for words in said:
        assert words in lines[0]
    return lines[0]


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- estimate -------------------------------------------------------------------------------------------------------


def test_estimate_prints_the_number_and_its_checks(files):
    result = mikit_run("estimate", "teacher.npy", "student.npy", "--estimator", "gaussian")
    assert result.exit_code == 0, result.output
    expected = mikit.measure(np.load("student.npy"), np.load("teacher.npy"), "gaussian")
    assert result.stdout.splitlines()[0] == str(expected).splitlines()[0]
    assert "sampling error" in result.stdout
    assert result.stderr == ""


def test_the_student_conditions_and_the_teacher_is_explained(files):
    np.save("wide.npy", np.random.default_rng(0).standard_normal((N, 5)))
    result = mikit_run("estimate", "teacher.npy", "wide.npy", "--estimator", "vid", "--json", "-")
    sizes = json.loads(result.stdout)["sizes"]
    assert (sizes["d_x"], sizes["d_y"]) == (5, 2)


def test_estimate_writes_a_measurement_that_can_be_read_back(files):
    result = mikit_run("estimate", "teacher.npy", "student.npy", "--estimator", "gaussian", "--json", "m.json")
    assert result.exit_code == 0
    read = Measurement.from_json((files / "m.json").read_text())
    expected = mikit.measure(np.load("student.npy"), np.load("teacher.npy"), "gaussian")
    assert (read.value, read.interval, read.checks) == (expected.value, expected.interval, expected.checks)
    assert read.data_hash == expected.data_hash


def test_json_to_standard_output_is_nothing_but_json(files):
    result = mikit_run("estimate", "teacher.npy", "student.npy", "--estimator", "gaussian", "--json", "-")
    assert Measurement.from_json(result.stdout).unit == "nats"


def test_options_reach_the_measurement(files):
    result = mikit_run(
        *("estimate", "two.npz", "two.npz", "--teacher-key", "a", "--student-key", "b", "--estimator", "vid"),
        *("--groups", "groups.npy", "--folds", "4", "--rotations", "2", "--permutations", "0", "--seed", "3"),
        *("--json", "-"),
    )
    assert result.exit_code == 0, result.output
    read = Measurement.from_json(result.stdout)
    assert read.seed == 3
    assert read.null is None
    assert read.sizes == {"fit": 300, "select": 150, "report": 300, "d_x": 2, "d_y": 2}


def test_estimate_reads_labels(files):
    result = mikit_run("estimate", "student.npy", "--labels", "labels.npy", "--json", "-")
    assert result.exit_code == 0, result.output
    read = Measurement.from_json(result.stdout)
    assert read.kind == "V-information"
    assert 0 < read.value < np.log(2)


def test_estimate_joins_stores_by_id(stores):
    result = mikit_run(
        *("estimate", "T", "S", "--teacher-key", "fc", "--student-key", "conv@5", "--estimator", "gaussian"),
        *("--json", "-"),
    )
    assert result.exit_code == 0, result.output
    assert Measurement.from_json(result.stdout).sizes["d_x"] == 2


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        (
            "nan.npy",
            "student.npy",
            ("y contains 2 NaN values in 2 of 600 samples", "the first is row 7", "teacher, nan.npy"),
        ),
        ("teacher.npy", "inf.npy", ("x contains 2 infinite values", "the first is row 7", "student, inf.npy")),
        ("teacher.npy", "short.npy", ("x has 599 samples and y has 600", "student, short.npy")),
        ("few.npy", "few.npy", ("3 samples",)),
        ("teacher.npy", "cube.npy", ("x has shape (600, 2, 2, 2, 2)",)),
        ("teacher.npy", "complex.npy", ("complex",)),
        ("missing.npy", "student.npy", ("missing.npy",)),
        ("truncated.npy", "student.npy", ("truncated.npy", "bytes")),
        ("empty.npy", "student.npy", ("empty.npy", "empty")),
        ("text.npy", "student.npy", ("text.npy",)),
        ("objects.npy", "student.npy", ("objects.npy",)),
        ("folder", "student.npy", ("folder",)),
        ("two.npz", "student.npy", ("two.npz",)),
    ],
)
def test_estimate_refuses_bad_files(files, teacher, student, said):
    before = contents(files)
    result = mikit_run("estimate", teacher, student, "--estimator", "gaussian", "--json", "m.json")
    refused(result, *said)
    assert contents(files) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("teacher.npy",), "Pass two files"),
        (("teacher.npy", "student.npy", "--labels", "labels.npy"), "Pass two files"),
        (("teacher.npy", "student.npy", "--estimator", "ksgg"), 'no estimator "ksgg"'),
        (("teacher.npy", "student.npy", "--folds", "2"), "folds is 2"),
        (("teacher.npy", "student.npy", "--rotations", "9"), "rotations is 9"),
        (("teacher.npy", "student.npy", "--permutations", "-1"), "permutations is -1"),
        (("teacher.npy", "student.npy", "--require", "certain"), '"certain"'),
        (("two.npz", "student.npy", "--teacher-key", "c"), "two.npz"),
        (("teacher.npy", "student.npy", "--groups", "few.npy"), "groups has"),
        (("student.npy", "--labels", "student.npy"), "labels has shape"),
        (("teacher.npy", "student.npy", "--json", "teacher.npy/m.json"), "teacher.npy is not a folder"),
    ],
)
def test_estimate_refuses_bad_options(files, arguments, said):
    before = contents(files)
    refused(mikit_run("estimate", *arguments), said)
    assert contents(files) == before


def test_ids_that_do_not_match_are_refused(stores):
    other = ActivationStore(stores / "other", network="student", seed=1)
    other.append({"fc": np.random.default_rng(0).standard_normal((N, 2))}, ids=np.arange(N) + 1, phase=0)
    refused(mikit_run("estimate", "T", "other", "--teacher-key", "fc"), "1 of the 600 sample ids")


def test_a_wrong_layer_name_is_refused_with_the_names_there_are(stores):
    refused(mikit_run("estimate", "T", "S", "--teacher-key", "fv", "--student-key", "fc"), "fv", "fc")


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16, bool])
def test_integers_and_half_precision_are_measured(files, dtype):
    np.save(
        "cast.npy",
        (4 * np.load("student.npy") + 20).astype(dtype) if dtype is not bool else np.eye(2)[np.arange(N) % 2] > 0,
    )
    result = mikit_run("estimate", "teacher.npy", "cast.npy", "--estimator", "ksg", "--json", "-")
    assert result.exit_code == 0, result.output
    assert np.isfinite(Measurement.from_json(result.stdout).value)


def test_a_constant_column_is_measured_and_told(files):
    np.save("constant.npy", np.ones((N, 2)))
    result = mikit_run("estimate", "teacher.npy", "constant.npy", "--estimator", "gaussian", "--json", "-")
    assert result.exit_code == 0, result.output
    read = Measurement.from_json(result.stdout)
    assert abs(read.value) <= 1e-6
    assert next(check for check in read.checks if check.name == "constant columns").outcome == "warn"


def test_an_existing_json_file_is_kept_unless_told(files):
    (files / "m.json").write_text("precious")
    arguments = ("estimate", "teacher.npy", "student.npy", "--estimator", "gaussian", "--json", "m.json")
    refused(mikit_run(*arguments), "m.json already exists", "--overwrite")
    assert (files / "m.json").read_text() == "precious"
    assert mikit_run(*arguments, "--overwrite").exit_code == 0
    Measurement.from_json((files / "m.json").read_text())


def test_a_json_file_never_replaces_an_input(files):
    before = contents(files)
    arguments = ("estimate", "teacher.npy", "student.npy", "--json", "student.npy", "--overwrite")
    refused(mikit_run(*arguments), "student.npy, which is an input")
    assert contents(files) == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_place_for_json_that_takes_no_files_is_told_before_measuring(files, monkeypatch):
    monkeypatch.setattr("mikit.measuring.pipeline.measure", lambda *_, **__: pytest.fail("it must not measure"))
    refused(mikit_run("estimate", "teacher.npy", "student.npy", "--json", "/proc/x.json"), "/proc/x.json")
    refused(mikit_run("estimate", "teacher.npy", "student.npy", "--json", "folder"), "folder is a folder")


def test_a_json_file_that_cannot_be_written_is_named(files, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", ".tmp-1")

    monkeypatch.setattr("mikit.core.files.write_atomically", full)
    arguments = ("estimate", "teacher.npy", "student.npy", "--estimator", "gaussian", "--json", "m.json")
    refused(mikit_run(*arguments), "m.json: No space left on device")


def test_require_decides_the_exit_code_and_the_result_is_still_there(files):
    np.save("constant.npy", np.ones((N, 2)))
    arguments = ("estimate", "teacher.npy", "constant.npy", "--estimator", "gaussian", "--json", "m.json")
    result = mikit_run(*arguments, "--require", "trustworthy")
    assert result.exit_code == 3
    assert "nats" in result.stdout
    assert result.stderr.splitlines() == ["The verdict is caution; --require needs trustworthy."]
    assert Measurement.from_json((files / "m.json").read_text()).verdict == "caution"
    assert mikit_run(*arguments, "--require", "caution", "--overwrite").exit_code == 0
    plain = ("estimate", "teacher.npy", "student.npy", "--estimator", "gaussian", "--require", "trustworthy")
    assert mikit_run(*plain).exit_code == 0


def test_a_defect_is_not_called_bad_input(files, monkeypatch):
    def fail(*_, **__):
        raise KeyError("inside")

    monkeypatch.setattr("mikit.measuring.pipeline.measure", fail)
    result = mikit_run("estimate", "teacher.npy", "student.npy")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "bug in mikit (KeyError)" in result.stderr
    assert "mikit doctor" in result.stderr


# --- trace and report -----------------------------------------------------------------------------------------------


def test_trace_and_report(stores):
    result = mikit_run("trace", "T", "S", "--out", "run", "--noise", "0.3", "--probe", "lda", "--json", "trace.json")
    assert result.exit_code == 0, result.output
    assert "mikit report run" in result.stdout
    flow = Flow.load(stores / "run")
    assert set(flow.frame["noise"].dropna()) == {0.3}
    assert flow.settings["probe"] == "lda"
    told = json.loads((stores / "trace.json").read_text())
    assert told["rows"] == len(flow.frame)
    assert sum(told["verdicts"].values()) == len(flow.frame)
    assert told["settings"]["n"] == N

    result = mikit_run("report", "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "run/report/index.html"
    assert (stores / "run" / "report" / "index.html").is_file()
    refused(mikit_run("report", "run"), "run/report already exists")
    assert mikit_run("report", "run", "--overwrite").exit_code == 0
    result = mikit_run("trace", "T", "S", "--out", "run")
    assert result.exit_code == 2
    assert "run already contains another run of mikit trace: its noise is [0.3]" in result.stderr
    again = mikit_run("trace", "T", "S", "--out", "run", "--noise", "0.3", "--probe", "lda")
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(Flow.load(stores / "run").frame, flow.frame, check_exact=True)


def test_overwrite_replaces_an_earlier_result_and_nothing_else(stores, monkeypatch):
    trace = ("trace", "T", "S", "--noise", "0.3", "--probe", "lda", "--overwrite", "--out")
    assert mikit_run(*trace, "run").exit_code == 0
    assert mikit_run("report", "run").exit_code == 0
    before = contents(stores)
    refused(mikit_run(*trace, "T"), "it is T, which is an input")
    refused(mikit_run(*trace, "S"), "it is S, which is an input")
    refused(mikit_run(*trace, "."), "which is an input")
    refused(mikit_run(*trace, "run/report"), "run/report", "not part of a result of mikit trace")
    refused(mikit_run("report", "run", "--out", "run", "--overwrite"), "it is run, which is an input")
    refused(mikit_run("report", "run", "--out", "T", "--overwrite"), "not part of a result of mikit report")
    refused(mikit_run("demo", "--out", "run", "--overwrite"), "not part of a result of mikit demo")
    (stores / "project").mkdir()
    (stores / "project" / "paper.tex").write_text("precious")
    with monkeypatch.context() as here:
        here.chdir(stores / "project")
        refused(mikit_run("trace", "../T", "../S", "--out", ".", "--overwrite"), "it is the current folder")
    refused(mikit_run(*trace, "project"), "paper.tex, which is not part")
    assert (stores / "project" / "paper.tex").read_text() == "precious"
    shutil.rmtree(stores / "project")
    assert contents(stores) == before
    assert mikit_run(*trace, "run").exit_code == 0
    # The same trace again: its table is the same, and so the report is still that of it.
    kept = ["flow.csv", "flow.json", "flow.parquet", "records", "report", "trace.json"]
    assert sorted(path.name for path in (stores / "run").iterdir()) == kept


def test_trace_takes_labels_from_a_file_and_tells_json_alone(stores):
    np.save("y.npy", np.arange(N) % 2)
    arguments = ("trace", "T", "S", "--out", "run", "--noise", "0.3", "--probe", "lda", "--labels", "y.npy")
    result = mikit_run(*arguments, "--json", "-", "--jobs", "1", "--seed", "4")
    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout)["settings"]
    assert settings["label_entropy"] == pytest.approx(np.log(2))
    assert settings["seed"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("missing", "S"), "missing"),
        (("T", "missing"), "missing"),
        (("folder", "S"), "folder"),
        (("T", "S", "--noise", "0"), "noise"),
        (("T", "S", "--folds", "1"), "fold"),
        (("T", "S", "--probe", "forest"), '"forest"'),
        (("T", "S", "--budget", "0"), "minutes"),
        (("T", "S", "--labels", "few.npy"), "labels"),
        (("T", "S", "--labels", "missing.npy"), "missing.npy"),
        (("T", "shifted"), "ids"),
        (("T", "seen"), "train"),
        (("T", "torn"), "torn"),
    ],
)
def test_trace_refuses_bad_input_and_leaves_nothing(stores, arguments, said):
    rng = np.random.default_rng(0)
    shifted = ActivationStore(stores / "shifted", network="student", seed=1)
    shifted.append({"fc": rng.standard_normal((N, 2))}, ids=np.arange(N) + 1, phase=0)
    seen = ActivationStore(stores / "seen", network="student", seed=1)
    seen.append({"fc": rng.standard_normal((N, 2))}, ids=np.arange(N), phase=0)
    seen.set_training_ids(np.array([5, 1000]))
    torn = ActivationStore(stores / "torn", network="student", seed=1)
    torn.append({"fc": rng.standard_normal((N, 2))}, ids=np.arange(N), phase=0)
    shard = max((stores / "torn").rglob("*fc.npy"))
    shard.write_bytes(shard.read_bytes()[:-8])
    before = contents(stores)
    result = mikit_run("trace", *arguments, "--out", "run", "--json", "trace.json")
    assert result.exit_code == 2, result.output
    *notices, last = result.stderr.splitlines()
    assert notices in ([], ["Tracing the information flow"])
    assert last.startswith("Error: ")
    assert said in last
    assert contents(stores) == before


def test_report_refuses_what_is_no_run(stores):
    before = contents(stores)
    refused(mikit_run("report", "folder"), "folder", "flow.json")
    refused(mikit_run("report", "missing"), "missing")
    refused(mikit_run("report", "teacher.npy"), "teacher.npy")
    assert contents(stores) == before


# --- demo and doctor ------------------------------------------------------------------------------------------------


def test_demo_refuses_bad_input_at_once(files, monkeypatch):
    monkeypatch.setattr("mikit.experiments.demo._train_all", lambda *_: pytest.fail("it must not train"))
    before = contents(files)
    refused(mikit_run("demo", "--out", "folder"), "folder already exists", "--overwrite")
    refused(mikit_run("demo", "--data", "missing.npz"), "missing.npz")
    refused(mikit_run("demo", "--data", "two.npz"), "two.npz", "train_images")
    refused(mikit_run("demo", "--data", "text.npy"), "text.npy")
    refused(mikit_run("demo", "--seeds", "0"), "--seeds is 0")
    refused(mikit_run("demo", "--out", "teacher.npy/demo"), "teacher.npy is not a folder")
    assert contents(files) == before


def test_demo_prints_five_lines_and_where_to_look(files, monkeypatch):
    """The settings that are passed on, and what is printed; the run itself is tested with the demo."""
    from mikit.experiments import DemoResult

    asked = {}

    def stand_in(out, data, settings, *, overwrite, jobs, stages):
        stages.begin("Training", 2.0)
        stages.advance(1.0)
        with stages.aside("Tracing") as shown:
            asked.update(out=out, data=data, settings=settings, overwrite=overwrite, jobs=jobs, shown=shown)
        return DemoResult(out, tuple(f"Line {i}." for i in range(5)), 12.3)

    monkeypatch.setattr("mikit.experiments.run_demo", stand_in)
    result = mikit_run("demo", "--quick", "--seeds", "2", "--jobs", "1", "--out", "here")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        *(f"{i + 1}. Line {i}." for i in range(5)),
        "A quick run only shows that everything works; leave out --quick for results.",
        "Open here/report/index.html (12 s)",
    ]
    assert result.stderr.splitlines() == ["Training", "Tracing"]
    assert asked["settings"].seeds == (0, 1)
    assert asked["settings"].probe == "lda"
    assert (asked["jobs"], asked["overwrite"], asked["shown"]) == (1, False, False)
    assert mikit_run("demo").exit_code == 0
    assert len(asked["settings"].seeds) == 3
    assert asked["settings"].probe == "logistic"


def test_doctor_is_well_here(files):
    before = contents(files)
    result = mikit_run("doctor")
    assert result.exit_code == 0, result.output
    for words in ("torch " + torch.__version__, "CUDA", "is writable", "0.446 nats was estimated"):
        assert words in " ".join(result.stdout.split())
    assert contents(files) == before


def test_doctor_says_what_is_wrong(files, monkeypatch):
    monkeypatch.setattr(
        "mikit.cli.self_check.measure", lambda *args, **kwargs: mikit.measure(args[0], args[0][::-1], "gaussian")
    )
    result = mikit_run("doctor")
    assert result.exit_code == 1
    assert "the interval does not contain the truth" in " ".join(result.stdout.split())
    assert "fail" in result.stdout


# --- as a program ---------------------------------------------------------------------------------------------------


def succeeds(script, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


def test_help_is_quick_because_it_imports_nothing_heavy():
    script = """
        import sys
        from mikit.cli import main
        for arguments in (["--help"], ["estimate", "--help"], ["trace", "-h"], ["demo", "-h"], ["--version"]):
            sys.argv = ["mikit", *arguments]
            try:
                main()
            except SystemExit as end:
                assert end.code == 0
            heavy = {"torch", "numpy", "pandas", "matplotlib", "scipy", "sklearn", "joblib"} & set(sys.modules)
            assert not heavy, (arguments, heavy)
            print("shown:", *arguments)
    """
    result = succeeds(script)
    before_each = re.split(r"^shown:.*\n", result.stdout, flags=re.MULTILINE)
    assert len(before_each) == 6
    assert all(text.strip() for text in before_each[:-1])


def test_the_program_ends_with_the_codes_that_are_promised(files):
    np.save("constant.npy", np.ones((N, 2)))
    good = ("estimate", "teacher.npy", "student.npy", "--estimator", "gaussian")
    bad = ("estimate", "nan.npy", "student.npy")
    unsure = ("estimate", "teacher.npy", "constant.npy", "--estimator", "gaussian", "--require", "trustworthy")
    # Each call is a process of its own, forked from one that has imported everything: importing, and taking down an
    # interpreter that holds torch, would be most of the time.
    script = """
        import json, os, sys
        from mikit.cli import main
        for number, arguments in enumerate(json.loads(sys.argv[1])):
            if arguments[:2] == ["estimate", "teacher.npy"]:
                import mikit
                mikit.measure
            child = os.fork()
            if child == 0:
                for stream, name in ((1, "out"), (2, "err")):
                    os.dup2(os.open(f"{name}{number}", os.O_WRONLY | os.O_CREAT), stream)
                sys.argv = ["mikit", *arguments]
                try:
                    main()
                except SystemExit as end:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(end.code)
                os._exit(99)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
    calls = [("--version",), (), ("estimate", "--no-such-option"), good, bad, unsure]
    assert succeeds(script, json.dumps(calls)).stdout.split() == ["0", "2", "2", "0", "2", "3"]
    assert (files / "out0").read_text().strip() == mikit.__version__
    assert (files / "out4").read_text() == ""
    said = (files / "err4").read_text()
    assert said.startswith("Error: y contains 2 NaN values")
    assert said.count("\n") == 1
