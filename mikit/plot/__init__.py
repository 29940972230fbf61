"""Pictures of a flow: matplotlib figures that say what they show, in which unit, from how many samples and seeds.

Every function takes the :class:`mikit.flow.Flow` that :func:`mikit.trace` returned and gives back a
``matplotlib.figure.Figure``; neither backend nor settings of matplotlib are touched.
"""

from __future__ import annotations

from mikit.plot.curves import flow, gap
from mikit.plot.heatmaps import maps
from mikit.plot.progress import accuracy, phases
from mikit.plot.saving import save_figure

__all__ = ["accuracy", "flow", "gap", "maps", "phases", "save_figure"]
