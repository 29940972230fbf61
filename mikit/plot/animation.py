"""Animated layer maps: one frame per phase of training, as GIF and as MP4."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import seaborn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mikit.core.errors import InputError
from mikit.core.files import sync_folder, write_atomically
from mikit.plot.drawing.bands import BAND_COLORS, Band, Progress, verdict_bar
from mikit.plot.drawing.cells import DIVERGING, OUTLINE, QUANTITIES, SEQUENTIAL, MapTable, map_table, name_layers
from mikit.plot.drawing.names import clip_text
from mikit.plot.drawing.style import figure_style, finish
from mikit.plot.drawing.tables import choose_phases
from mikit.plot.layer_maps import TITLES, map_facts, map_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mikit.flow import Flow

__all__ = ["animate_maps"]

_NO_FFMPEG = (
    "ffmpeg is not on the PATH, so no MP4 can be written. Install ffmpeg, or use the GIF, which does not need it."
)


def animate_maps(
    flow: Flow,
    path: str | os.PathLike[str],
    *,
    quantity: str = "recovered_share",
    noise: float | None = None,
    networks: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
    difference: tuple[str, str] | None = None,
    seconds: float = 0.9,
    dpi: int = 110,
    verdicts: bool = True,
) -> tuple[Path, ...]:
    """Maps of :func:`mikit.plot.maps` as an animation over the phases: a GIF, and an MP4 if ffmpeg is installed.

    Every frame is one phase, named below the maps beside a bar of all phases. Scales, colors, legend and caption are
    identical in all frames, so only the measured values change.

    Args:
        flow: A flow returned by :func:`mikit.trace`.
        path: Output file. ``.gif`` and ``.mp4`` write that format; a name without either extension writes the GIF and,
            if ffmpeg is installed, the MP4, with a warning if it is not. Existing files are replaced atomically.
        quantity: ``"recovered_share"`` or ``"cka"``.
        noise: Teacher noise of the recovered fraction. Default: 0.3 if measured.
        networks: Student networks to draw, in this order. Default: all.
        phases: Phases to show, any number. Default: all.
        difference: See :func:`mikit.plot.maps`.
        seconds: Duration of a phase; the last one is shown three times as long.
        dpi: Pixels per inch; the figure is about 10 inches wide for two networks and their difference.
        verdicts: Whether to draw the verdict bar, by phase.

    Returns:
        The files written.

    Raises:
        InputError: In the cases of :func:`mikit.plot.maps`, if the path is a folder, if the duration or the resolution
            is not positive, or for an MP4 without ffmpeg.

    Cost:
        About half a second per frame; a megabyte for 30 phases of two networks with six layers.

    Pitfalls:
        Every phase is shown for the same time, however far apart phases are. Motion draws attention to small changes:
        judge by the map of differences, which prints values above three seed SD.

    Examples:
        >>> import mikit, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = mikit.plot.animate_maps(run, folder + "/maps.gif", phases=[0, 30])
        ...     [file.name for file in written]
        ['maps.gif']
    """
    targets = _targets(Path(path))
    if not (np.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds is {seconds}; it must be positive and finite.")
    if dpi <= 0:
        raise InputError(f"dpi is {dpi}; it must be positive.")
    rows, pair = map_table(flow, quantity, noise, networks, difference)
    chosen = choose_phases(rows.phases, len(rows.phases), phases)
    with figure_style():
        film = _Film(flow, MapTable(rows, chosen, pair), verdicts, dpi)
        frames = [film.frame(place) for place in range(len(chosen))]
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    for target in targets:
        content = _gif(frames, seconds) if target.suffix == ".gif" else _mp4(frames, seconds)
        write_atomically(target, partial(_put, content))
    sync_folder(targets[0].parent)
    return tuple(targets)


def _targets(path: Path) -> list[Path]:
    if path.is_dir():
        raise InputError(f"{path} is a folder; pass a file in it, such as {path / 'maps.gif'}.")
    found = shutil.which("ffmpeg") is not None
    if path.suffix == ".gif":
        return [path]
    if path.suffix == ".mp4":
        if not found:
            raise InputError(_NO_FFMPEG)
        return [path]
    targets = [path.with_name(path.name + ".gif")]
    if found:
        return [*targets, path.with_name(path.name + ".mp4")]
    warnings.warn(f"Only {targets[0].name} was written. {_NO_FFMPEG}", stacklevel=3)
    return targets


class _Film:
    """One figure whose maps are redrawn for every phase."""

    def __init__(self, flow: Flow, table: MapTable, verdicts: bool, dpi: int = 110) -> None:
        self.table = table
        self.progress = Progress(table.phases)
        names = [*table.networks, *(table.pair[:1] if table.pair else ())]
        across = min(len(names), 4)
        lines = -(-len(names) // across)
        tall = max(len(layers) for layers in table.layers.values())
        width = max(across * (table.cell * len(table.theirs) + 0.8) + 0.9, 5.2)
        self.figure = Figure(figsize=(width, lines * (table.cell * tall + 0.95)), dpi=dpi)
        self.canvas = FigureCanvasAgg(self.figure)
        grid = self.figure.subplots(lines, across, squeeze=False)
        for spare in grid.flat[len(names) :]:
            spare.remove()
        self.axes: list[Axes] = list(grid.flat[: len(names)])
        self._lay_out(flow, verdicts)

    def _lay_out(self, flow: Flow, verdicts: bool) -> None:
        table, mesh = self.table, None
        for name, ax in zip(table.networks, self.axes, strict=False):
            mesh = table.draw(ax, name, table.phases[0])
            name_layers(ax, table.layers[name], table.theirs, table.cell)
            ax.set_title(clip_text(name, 28))
        self.axes[0].set_ylabel("student layer")
        for ax in self.axes:
            ax.set_xlabel("teacher layer")
        maps = self.axes[: len(table.networks)]
        extend = "min" if table.below else "neither"
        bar = self.figure.colorbar(mesh, ax=maps, shrink=0.8, aspect=18, pad=0.015, extend=extend)  # type: ignore[arg-type]
        bar.set_label(QUANTITIES[table.rows.quantity])
        bar.outline.set_visible(False)
        if table.pair is not None:
            first, second = table.pair
            ax = self.axes[-1]
            gaps = table.draw_gap(ax, table.phases[0])
            name_layers(ax, table.layers[first], table.theirs, table.cell)
            ax.set_title(f"{clip_text(first, 20)} − {clip_text(second, 20)}")
            bar = self.figure.colorbar(gaps, ax=[ax], shrink=0.8, aspect=18, pad=0.03)
            bar.set_label("difference")
            bar.outline.set_visible(False)
        bands: list[Band] = [self.progress]
        if verdicts:
            drawn = table.rows.students[table.rows.students["phase"].isin(table.phases)]
            bands.append(verdict_bar(drawn, "phase", table.phases))
        facts = [*map_facts(flow, table), "Every phase is shown for the same time"]
        finish(self.figure, TITLES[table.rows.quantity], map_keys(table), facts, bands=bands)

    def frame(self, place: int) -> Image.Image:
        """Draw a phase and return it as an image."""
        table, phase = self.table, self.table.phases[place]
        for ax in self.axes:
            for artist in [*ax.collections, *ax.texts, *ax.patches, *ax.lines]:
                artist.remove()
        for name, ax in zip(table.networks, self.axes, strict=False):
            table.draw(ax, name, phase)
        if table.pair is not None:
            table.draw_gap(self.axes[-1], phase)
        self.progress.show(place)
        self.canvas.draw()  # type: ignore[no-untyped-call]
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]


def _gif(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """Encode the frames with one palette of the scales' colors, so that a value has one color in all frames."""
    colors = [
        *seaborn.color_palette(SEQUENTIAL, 110),
        *seaborn.color_palette(DIVERGING, 80),
        *seaborn.color_palette("Greys", 50),
        *(to_rgb(name) for name in (OUTLINE, "#ffffff", "#000000", *BAND_COLORS)),
    ]
    numbers = [round(255 * part) for color in colors for part in color[:3]]
    palette = Image.new("P", (1, 1))
    palette.putpalette(numbers + numbers[:3] * (256 - len(colors)))
    shown = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [round(1000 * seconds)] * (len(frames) - 1) + [round(3000 * seconds)]
    buffer = io.BytesIO()
    # With one palette and without optimize=, a color has the same index in every frame.
    shown[0].save(buffer, "GIF", save_all=True, append_images=shown[1:], duration=times, loop=0, optimize=False)
    return buffer.getvalue()


def _mp4(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """Encode the frames as H.264 that every player supports: even sides, 4:2:0, the last phase three times as long."""
    width, height = frames[0].size
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "maps.mp4"
        command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        command += ["-framerate", f"{1 / seconds:.6f}", "-i", "-", "-an", "-r", "25", "-c:v", "libx264"]
        command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p"]
        command += ["-movflags", "+faststart", str(made)]
        rows = b"".join(frame.tobytes() for frame in [*frames, frames[-1], frames[-1]])
        done = subprocess.run(command, input=rows, capture_output=True, check=False)  # noqa: S603 - no shell and no user input
        if done.returncode or not made.is_file():
            reasons = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise InputError(
                f"ffmpeg could not write the MP4 ({reasons[-1]}). Use a build of ffmpeg with libx264, or write the GIF."
            )
        return made.read_bytes()


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)
