from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mikit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks processes and kills them")


def under_fire(mode: str, folder: Path, *numbers: int) -> str:
    driver = Path(__file__).with_name("killed_writers.py")
    root = str(Path(mikit.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(driver), mode, str(folder), *map(str, numbers)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_at_random_times(tmp_path: Path) -> None:
    assert under_fire("kill", tmp_path / "s", 20).startswith("20 kills")


def test_dead_at_every_system_call(tmp_path: Path) -> None:
    assert "old or new" in under_fire("vanish", tmp_path / "s")


def test_several_writers_lose_no_rows(tmp_path: Path) -> None:
    under_fire("writers", tmp_path / "s", 4, 12)


@pytest.mark.slow
def test_eight_writers_lose_no_rows_in_a_hundred_appends_each(tmp_path: Path) -> None:
    under_fire("writers", tmp_path / "s", 8, 100)
