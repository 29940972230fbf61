"""Draw the gallery's figures from a demo folder, or run the demo first.

    mikit demo --out mikit-demo
    python docs/make_gallery.py mikit-demo
    python docs/make_gallery.py mikit-demo --only phases information_plane
    python docs/make_gallery.py --speed docs/tables/speed.json
    python docs/make_gallery.py --training results/flow/flow

Without an argument the demo is run in a temporary folder. It is seeded (seeds 0, 1 and 2), so the numbers come out the
same. Writes a PNG for every function of ``mikit.plot`` (a GIF for the animation) and the
run's findings into ``docs/gallery/``. The information plane is traced from the demo's stores, which takes a minute
or two, and kept beside them.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

import mikit
from mikit.activations import ActivationStore
from mikit.bench.speed.plot import draw_speed
from mikit.bench.speed.results import SpeedReport
from mikit.datasets import digits
from mikit.experiments import run_demo, settings_for
from mikit.flow import Flow, match_flow, read_phases, trace

WIDEST, LARGEST = 1400, 250_000
HERE = Path(__file__).parent / "gallery"


def write_png(figure: Figure, path: Path, colours: int | None = None) -> None:
    """Write a figure in the highest resolution at which it is at most 1,400 pixels wide and smaller than 250 kB.

    Lines on white need few colours; given their number, the file is a quarter of the size.
    """
    for dpi in (220, 200, 180, 160, 140, 120, 100):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        picture = Image.open(buffer).convert("RGB")
        (picture if colours is None else picture.quantize(colours)).save(path, optimize=True)
        size = path.stat().st_size
        if picture.width <= WIDEST and size < LARGEST:
            print(f"{path.name}: {picture.width} × {picture.height} pixels, {size / 1000:.0f} kB")  # noqa: T201
            return
    raise RuntimeError(f"{path} is too large for the repository at 100 dots per inch.")


def draw(demo: Path, out: Path, only: Sequence[str]) -> None:
    """Draw every figure of the demo's flow, and write down what the run was and found."""
    flow = Flow.load(demo / "flow")
    content = json.loads((demo / "demo.json").read_text(encoding="utf-8"))
    taught = next(name for name in flow.settings["networks"] if "VID" in name and "broken" not in name)
    phases = sorted(int(phase) for phase in flow.frame.loc[flow.frame["role"].eq("student"), "phase"].unique())
    weight = float(content["settings"]["vid_weight"])
    figures: dict[str, Callable[[], Figure]] = {
        "phases": lambda: mikit.plot.phases(flow),
        "flow": lambda: mikit.plot.flow(flow),
        "maps": lambda: mikit.plot.maps(flow),
        "gap": lambda: mikit.plot.gap(flow),
        "cka": lambda: mikit.plot.phases(flow, quantity="cka"),
        "accuracy": lambda: mikit.plot.accuracy(flow, percent=True),
        "students": lambda: mikit.plot.students(flow, taught, "alone"),
        "information_plane": lambda: mikit.plot.information_plane(_plane(demo)),
        "matching": lambda: mikit.plot.matching(match_flow(flow, networks=[taught])),
        "change_points": lambda: mikit.plot.change_points(read_phases(flow)),
        "divergence": lambda: mikit.plot.divergence(read_phases(flow), schedule=dict.fromkeys(phases, weight)),
    }
    for name, figure in figures.items():
        if not only or name in only:
            write_png(figure(), out / f"{name}.png", colours=None if name in ("maps", "matching") else 256)
    if not only or "animate_maps" in only:
        for path in mikit.plot.animate_maps(flow, out / "animate_maps.gif", networks=["alone", taught], dpi=80):
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")  # noqa: T201
    if not only:
        _write_findings(content, out)


def _write_findings(content: dict[str, Any], out: Path) -> None:
    data, settings = content["data"], content["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines = [
        f"{data['name']}: {data['train']} images to train on, {data['test']:,} for everything that is reported here. "
        f"Students: seeds {', '.join(map(str, settings['seeds']))}, {settings['per_class']} labelled images a class, "
        f"{settings['student_epochs']} epochs. One teacher. {versions}.",
        "",
        "What the run printed:",
        "",
        *(f"{number}. {line}" for number, line in enumerate(content["findings"], start=1)),
        "",
    ]
    (out / "findings.md").write_text("\n".join(lines), encoding="utf-8")


def _plane(demo: Path) -> Flow:
    """The demo's students with what every layer plus noise tells of the input."""
    kept = demo / "plane"
    if not (kept / "flow.json").is_file():
        stores = sorted(path for path in (demo / "stores").iterdir() if path.name != "teacher")
        teacher = ActivationStore.open(demo / "stores" / "teacher")
        students = [ActivationStore.open(path) for path in stores]
        trace(teacher, students, noise=0.3, information_plane=True, seed=0).save(kept)
    return Flow.load(kept)


def draw_instruments(out: Path) -> None:
    """Draw instruments beside each other on two Gaussian variables, one of them cubed; their information is known."""
    rng = np.random.default_rng(0)
    strength, width = 0.85, 4
    student = rng.standard_normal((2000, width))
    teacher = (strength * student + math.sqrt(1 - strength**2) * rng.standard_normal(student.shape)) ** 3
    instruments: dict[str, mikit.Estimator | str] = {
        "GaussianMI": mikit.GaussianMI(),
        "GaussianMI, copula": mikit.GaussianMI(copula=True),
        "KSG, k = 5": mikit.KSG(k=5),
        "InfoNCE": "infonce",
        "NWJ": "nwj",
        "VID": "vid",
    }
    found = {name: mikit.measure(student, teacher, one, seed=0) for name, one in instruments.items()}
    for one in found.values():
        print(one)  # noqa: T201
    truth = -width / 2 * math.log(1 - strength**2)
    write_png(mikit.plot.estimator_panel(found, truth=truth), out / "estimator_panel.png", colours=256)


def draw_two_axes(out: Path) -> None:
    """Draw a gap and an information for four partners of one layer of a teacher, whose features are digits' own.

    The teacher's features are 16 principal components of the digits. Its partners: a student that is a noisy, shrunk
    turn of them; the teacher with noise; the teacher with its rows shuffled; and independent Gaussian features.
    """
    pixels = load_digits().data
    pixels = pixels - pixels.mean(axis=0)
    teacher = pixels @ np.linalg.svd(pixels, full_matrices=False)[2][:16].T
    teacher = teacher / teacher.std()
    rng = np.random.default_rng(0)
    spread = teacher.std(axis=0)
    turn = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    partners = {
        "teacher, with a little noise": teacher + 0.2 * rng.standard_normal(teacher.shape),
        "student: turned and noisy": 0.8 * teacher @ turn + 0.4 * rng.standard_normal(teacher.shape),
        "teacher, rows shuffled": rng.permutation(teacher),
        "independent Gaussian": spread * rng.standard_normal(teacher.shape),
    }
    gap, known = mikit.EnergyDistance(paired=True), mikit.GaussianMI(copula=True)
    pairs = [mikit.both_axes(rows, teacher, gap, known, name=name, seed=0) for name, rows in partners.items()]
    for pair in pairs:
        print(pair)  # noqa: T201
    write_png(mikit.plot.both_axes(pairs), out / "two_axes.png", colours=256)


def draw_training(flow: Flow, out: Path) -> None:
    """Draw a flow over training: shares by phase, label information by layer, and maps of the first two students."""
    first, second = flow.settings["networks"][:2]
    figures = {
        "training_phases": mikit.plot.phases(flow),
        "training_flow": mikit.plot.flow(flow),
        "training_maps": mikit.plot.maps(flow, networks=[first, second]),
    }
    for name, figure in figures.items():
        write_png(figure, out / f"{name}.png", colours=128)


def main() -> None:
    """Draw from the folder given, or from a demo run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", help="folder that mikit demo made")
    parser.add_argument("--speed", type=Path, help="draw the speed figure from what mikit bench speed --json wrote")
    parser.add_argument("--training", type=Path, help="draw the run of analysis/09_flow_over_training.py from its flow")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="draw these pictures and no others")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    if given.speed is not None:
        report = SpeedReport.from_json(given.speed.read_text(encoding="utf-8"))
        write_png(draw_speed(report), given.out / "speed.png", colours=256)
        return
    if given.training is not None:
        draw_training(Flow.load(given.training), given.out)
        return
    apart = {"two_axes": draw_two_axes, "estimator_panel": draw_instruments}
    for name, drawn in apart.items():
        if not given.only or name in given.only:
            drawn(given.out)
    if given.only and set(given.only) <= set(apart):
        return
    if given.demo is not None:
        draw(given.demo, given.out, given.only)
        return
    with tempfile.TemporaryDirectory() as folder:
        images = digits()
        run_demo(Path(folder) / "demo", images, settings_for(images))
        draw(Path(folder) / "demo", given.out, given.only)


if __name__ == "__main__":
    main()
