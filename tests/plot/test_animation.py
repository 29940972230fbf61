"""Animations: one frame a phase, the same colours in every frame, whole files, and a sentence where ffmpeg is not."""

from __future__ import annotations

import stat
import sys

import numpy as np
import pytest
from PIL import Image

from mikit import plot
from mikit.core.errors import InputError
from mikit.plot import animation as maps_animation
from mikit.plot.drawing.cells import MapTable, map_table
from mikit.plot.drawing.style import figure_style


@pytest.fixture(scope="module")
def small(make_flow):
    return make_flow(phases=(0, 4, 30), seeds=(0, 1), layers=("stem", "mid", "fc"), noises=(0.3,), accuracy=False)


@pytest.fixture
def film(small):
    rows, pair = map_table(small, "recovered_share", None, None, None)
    with figure_style():
        yield maps_animation._Film(small, MapTable(rows, rows.phases, pair), True)


def test_a_gif_has_one_frame_a_phase_and_leaves_nothing_else_behind(small, tmp_path):
    (path,) = plot.animate_maps(small, tmp_path / "out" / "maps.gif", seconds=0.5)
    assert sorted(p.name for p in path.parent.iterdir()) == ["maps.gif"]
    with Image.open(path) as picture:
        assert (picture.n_frames, picture.info["loop"]) == (3, 0)
        times = []
        for place in range(3):
            picture.seek(place)
            times.append(picture.info["duration"])
    assert times == [500, 500, 1500]


def test_frames_differ_in_what_was_measured_and_in_nothing_else(film):
    frames = [np.asarray(film.frame(place)).astype(int) for place in range(3)]
    assert len({frame.shape for frame in frames}) == 1
    changed = np.abs(frames[2] - frames[0]).sum(axis=2) > 0
    height, width = changed.shape
    allowed = np.zeros_like(changed)
    film.figure.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in film.axes]
    boxes += [film.progress.title.get_window_extent(), *(box.get_window_extent() for box in film.progress.boxes)]
    for box in boxes:
        rows = slice(max(int(height - box.y1) - 3, 0), int(height - box.y0) + 4)
        allowed[rows, max(int(box.x0) - 3, 0) : int(box.x1) + 40] = True
    assert changed.any()
    assert not (changed & ~allowed).any()
    assert changed.sum() < 0.5 * width * height


def test_a_frame_holds_its_phase_on_the_scale_of_all(film, small):
    film.frame(1)
    frame = small.frame
    for name, ax in zip(("student alone", "student + VID"), film.axes, strict=False):
        rows = frame[frame["quantity"].eq("recovered_share") & frame["network"].eq(name) & frame["phase"].eq(4)]
        means = rows.groupby(["layer", "teacher_layer"])["value"].mean().unstack().loc[["stem", "mid", "fc"]]
        drawn = np.asarray(ax.collections[0].get_array()).reshape(3, 3)
        np.testing.assert_allclose(drawn, means[["stem", "mid", "fc"]].to_numpy())
        assert len(ax.texts) == 9
        assert ax.collections[0].norm is film.table.scale
    assert film.progress.title.get_text() == "phase 4  (2 of 3 recordings)"
    assert [box.get_gid() for box in film.progress.boxes] == ["progress done", "progress done", "progress to come"]
    assert film.axes[2].get_title(loc="left") == "student + VID − student alone"
    assert "Every phase is shown for the same time" in " ".join(film.figure.texts[-1].get_text().split())


def test_without_ffmpeg_there_is_a_gif_and_a_sentence(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"ffmpeg is not on the PATH, so no MP4 can be written\. Install"):
        plot.animate_maps(small, tmp_path / "maps.mp4")
    with pytest.warns(UserWarning, match=r"Only maps\.gif was written\. ffmpeg is not on the PATH"):
        written = plot.animate_maps(small, tmp_path / "maps", phases=[0, 30])
    assert [path.name for path in written] == ["maps.gif"]


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for ffmpeg")
def test_ffmpeg_gets_every_frame_and_its_failure_is_told(small, tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nrows = sys.stdin.buffer.read()\nat = sys.argv.index('-s') + 1\n"
        "open(sys.argv[-1], 'w').write(sys.argv[at] + ' ' + str(len(rows)))\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    gif, mp4 = plot.animate_maps(small, tmp_path / "both", phases=[0, 30])
    size, count = mp4.read_text().split()
    width, height = map(int, size.split("x"))
    with Image.open(gif) as picture:
        assert picture.size == (width, height)
    assert int(count) == (2 + 2) * 3 * width * height
    fake.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.buffer.read()\nsys.exit('Unknown encoder libx264')\n")
    with pytest.raises(InputError, match=r"could not write the MP4 \(Unknown encoder libx264\)"):
        plot.animate_maps(small, tmp_path / "again.mp4", phases=[0, 30])
    assert not (tmp_path / "again.mp4").exists()


def test_what_cannot_be_animated_is_refused(small, tmp_path):
    for path, given, said in (
        (tmp_path, {}, "is a folder"),
        (tmp_path / "a.gif", {"seconds": 0}, "seconds is 0"),
        (tmp_path / "a.gif", {"dpi": 0}, "dpi is 0"),
        (tmp_path / "a.gif", {"phases": [7]}, r"no phase \[7\]"),
        (tmp_path / "a.gif", {"quantity": "accuracy"}, "no map of layers"),
    ):
        with pytest.raises(InputError, match=said):
            plot.animate_maps(small, path, **given)
    assert not list(tmp_path.iterdir())
