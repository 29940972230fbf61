"""Size of the report and time to open it: 30 phases × 100 pairs of layers, two students, three seeds.

    python benchmarks/costs/report_size.py --out docs/tables/report_size

needs Playwright and Chromium (``CHROMIUM`` names another path). Opening is the time from navigation to the frame after
the first paint with the figures in view, as the page itself notes it; the fastest and the median of ``--times`` loads.
The time for which the page's main thread ran until then is reported as well; it hardly depends on other load.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import mikit
from mikit.flow import Flow
from mikit.flow.result import COLUMNS, frame_of

PHASES, LAYERS, SEEDS, NOISES = 30, 10, 3, (0.1, 0.3, 1.0)
MOST_BYTES, MOST_SECONDS = 15e6, 2.0
STEP = """() => {
    const slider = document.getElementById('phase');
    slider.value = 12;
    const start = performance.now();
    slider.dispatchEvent(new Event('input'));
    return performance.now() - start;
}"""
ARGS = ["--headless", "--no-sandbox", "--disable-gpu"]
NETWORKS = ("student alone", "student + VID")


def make_flow(seed: int = 0) -> Flow:
    """A flow of random numbers in every quantity that the report draws: nothing in it compresses by being smooth."""
    rng = np.random.default_rng(seed)
    rows = []

    def add(**given: object) -> None:
        value = float(rng.uniform(0, 1))
        row = dict.fromkeys(COLUMNS, math.nan) | {
            "teacher_layer": "", "teacher_layer_index": -1, "teacher_phase": -1, "kind": "estimate", "probe": "",
            "readout": "pool", "n": 5000, "d_x": 64, "d_y": 64, "verdict": "trustworthy", "reasons": "", "value": value,
        } | given  # fmt: skip
        error = float(rng.uniform(0.005, 0.02))
        row |= {
            "standard_error": error,
            "low": value - 2 * error,
            "high": value + 2 * error,
            "null": float(rng.normal(0, 0.01)),
        }
        row |= {
            "held_out": value - error,
            "in_sample": value + error,
            "untrained": float(rng.uniform(0, 1)),
            "ceiling": 20.0,
        }
        rows.append(row)

    names = [f"stage{i}.block" for i in range(LAYERS)]
    teacher = {"network": "teacher", "role": "teacher", "seed": 0, "phase": 200}
    for i, name in enumerate(names):
        add(**teacher, layer=name, layer_index=i, quantity="label_information", unit="nats")
    for network in NETWORKS:
        for run in range(SEEDS):
            for phase in range(PHASES):
                base = {"network": network, "role": "student", "seed": run, "phase": phase}
                add(**base, layer="", layer_index=-1, quantity="accuracy", unit="fraction")
                for i, name in enumerate(names):
                    where = base | {"layer": name, "layer_index": i}
                    add(**where, quantity="label_information", unit="nats")
                    pair = where | {"teacher_layer": name, "teacher_layer_index": i, "teacher_phase": 200}
                    add(**pair, quantity="label_gap", unit="nats")
                    for j, other in enumerate(names):
                        pair |= {"teacher_layer": other, "teacher_layer_index": j}
                        add(**pair, quantity="cka", unit="dimensionless")
                        for noise in NOISES:
                            add(**pair, quantity="recovered_share", unit="share", noise=noise)
    return Flow(frame_of(rows), {"label_entropy": math.log(10), "teacher": "teacher", "student_noise": 0.03})


def opened(page_file: Path, times: int) -> tuple[list[float], list[float], list[float], str]:
    """Seconds until the page is ready, those its main thread ran, those of one step of the slider, and the browser."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    ready, busy, steps = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        for _ in range(times):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(300_000)
            watch = page.context.new_cdp_session(page)
            watch.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(page_file.as_uri(), wait_until="commit")
            page.wait_for_selector("html[data-ready]", state="attached")
            ready.append(float(page.evaluate("document.documentElement.dataset.ready")) / 1000)
            metrics = {one["name"]: one["value"] for one in watch.send("Performance.getMetrics")["metrics"]}
            busy.append(float(metrics["TaskDuration"]))
            page.locator("#figure-maps").scroll_into_view_if_needed()
            page.wait_for_selector("#figure-maps[data-phase]")
            steps.append(float(page.evaluate(STEP)) / 1000)
            page.close()
        version = f"Chromium {browser.version}"
        browser.close()
    return ready, busy, steps, version


def main() -> None:
    """Measure, print and, with ``--out``, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Where to write, without the suffix.")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument(
        "--priority",
        type=int,
        default=0,
        help="Raise the priority of this script and its browser by so much, where a machine is shared; needs root.",
    )
    given = parser.parse_args()
    if given.priority:
        os.nice(-given.priority)
    flow = make_flow()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = mikit.report(flow, Path(folder) / "report")
        wrote = time.perf_counter() - start
        size = path.stat().st_size
        ready, busy, steps, browser = opened(path, given.times)
    result = {
        "rows": len(flow.frame), "phases": PHASES, "pairs": LAYERS**2, "networks": len(NETWORKS), "seeds": SEEDS,
        "noises": len(NOISES),
        "bytes": size, "write_s": wrote, "ready_s": ready, "main_thread_s": busy, "step_s": steps, "browser": browser,
        "machine": platform.machine(),
        "processors": os.cpu_count(), "load": os.getloadavg()[0], "priority": given.priority,
    }  # fmt: skip
    table = "\n".join([
        f"{PHASES} phases × {LAYERS**2} pairs, {len(NETWORKS)} students × {SEEDS} seeds × {len(NOISES)} noise levels: "
        f"{len(flow.frame):,} rows of random numbers. {browser}, {os.cpu_count()} processors, shared; load average "
        f"{result['load']:.1f}{f', priority raised by {given.priority}' if given.priority else ''}.",
        "",
        "| what | measured | bar |",
        "|---|---|---|",
        f"| size | {size / 1e6:.1f} MB | {MOST_BYTES / 1e6:.0f} MB |",
        f"| opens, fastest of {given.times} | {min(ready):.2f} s | {MOST_SECONDS:.0f} s |",
        f"| opens, median | {statistics.median(ready):.2f} s | {MOST_SECONDS:.0f} s |",
        f"| its main thread until then, median | {statistics.median(busy):.2f} s | |",
        f"| one step of the phase, median | {statistics.median(steps):.2f} s | |",
        f"| written in | {wrote:.1f} s | |",
        "",
    ])  # fmt: skip
    print(table)
    if given.out:
        given.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
