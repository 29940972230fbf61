"""Draw the gallery's figures from a demo folder, or run the demo first.

    mikit demo --out mikit-demo
    python docs/make_gallery.py mikit-demo
    python docs/make_gallery.py --speed docs/tables/speed.json
    python docs/make_gallery.py --two-axes
    python docs/make_gallery.py mikit-demo --readings

Without an argument the demo is run in a temporary folder. It is seeded (seeds 0, 1 and 2), so the numbers come out the
same. Writes PNG figures and the run's findings into ``docs/gallery/``.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

import mikit
from mikit.bench.results import SpeedReport
from mikit.bench.speed_plot import draw_speed
from mikit.datasets import digits
from mikit.demo import run_demo, settings_for
from mikit.flow import Flow, match_flow, read_phases

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


def draw(demo: Path, out: Path) -> None:
    """Draw every figure of the demo's flow, and write down what the run was and found."""
    flow = Flow.load(demo / "flow")
    content = json.loads((demo / "demo.json").read_text(encoding="utf-8"))
    out.mkdir(exist_ok=True)
    figures = {
        "phases": mikit.plot.phases(flow),
        "flow": mikit.plot.flow(flow),
        "maps": mikit.plot.maps(flow),
        "gap": mikit.plot.gap(flow),
        "cka": mikit.plot.phases(flow, quantity="cka"),
        "accuracy": mikit.plot.accuracy(flow, percent=True),
    }
    for name, figure in figures.items():
        write_png(figure, out / f"{name}.png")
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


def draw_readings(demo: Path, out: Path) -> None:
    """Draw what is read off the demo's flow: which layer with which, where curves change, the distance of the flows."""
    flow = Flow.load(demo / "flow")
    taught = next(name for name in flow.settings["networks"] if "VID" in name and "broken" not in name)
    match, reading = match_flow(flow, networks=[taught]), read_phases(flow)
    print(mikit.suggest_pairs(match))  # noqa: T201
    print(reading)  # noqa: T201
    figures = {
        "matching": mikit.plot.matching(match),
        "change_points": mikit.plot.change_points(reading),
        "divergence": mikit.plot.divergence(reading),
    }
    for name, figure in figures.items():
        write_png(figure, out / f"{name}.png", colours=256)


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


def main() -> None:
    """Draw from the folder given, or from a demo run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?", help="folder that mikit demo made")
    parser.add_argument("--speed", type=Path, help="draw the speed figure from what mikit bench speed --json wrote")
    parser.add_argument("--two-axes", action="store_true", help="draw the gap and the information of four pairs")
    parser.add_argument("--readings", action="store_true", help="draw only matching, change points and divergence")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    if given.speed is not None:
        report = SpeedReport.from_json(given.speed.read_text(encoding="utf-8"))
        write_png(draw_speed(report), given.out / "speed.png", colours=256)
        return
    if given.two_axes:
        draw_two_axes(given.out)
        return
    if given.demo is not None:
        if not given.readings:
            draw(given.demo, given.out)
        draw_readings(given.demo, given.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        images = digits()
        run_demo(Path(folder) / "demo", images, settings_for(images))
        draw(Path(folder) / "demo", given.out)
        draw_readings(Path(folder) / "demo", given.out)


if __name__ == "__main__":
    main()
