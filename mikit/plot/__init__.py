"""Matplotlib figures of an information flow, with units, sample sizes and seeds stated in the figure.

Most functions take the :class:`mikit.flow.Flow` returned by :func:`mikit.trace`. :func:`change_points` and
:func:`divergence` take a reading of phases, :func:`matching` a match of layers, :func:`both_axes` the result of
:func:`mikit.both_axes`, and :func:`estimator_panel` measurements. All return a ``matplotlib.figure.Figure`` whose
``axes`` are its panels, except :func:`animate_maps`, which writes files and returns their paths. The backend and
settings of matplotlib are not changed. A notebook shows the figures after ``%matplotlib inline``.

Every figure of a flow has a verdict bar of the plotted rows below its panels; ``verdicts=False`` leaves it out.
Rows that are not comparable raise an error: different units, kinds, probes, sample sizes, or poolings of one layer.

Examples:
    >>> import tempfile
    >>> import numpy as np
    >>> from mikit import plot
    >>> from mikit.activations import ActivationStore
    >>> from mikit.flow import trace
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((600, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     teacher = ActivationStore(folder + "/t", network="teacher")
    ...     teacher.append({"fc": x}, ids=np.arange(600), phase=3)
    ...     student = ActivationStore(folder + "/s", network="student", seed=0)
    ...     student.append({"fc": x[:, :2]}, ids=np.arange(600), phase=0)
    ...     run = trace(teacher, student, noise=0.3)
    ...     figure = plot.phases(run)
    ...     [path.name for path in plot.save_figure(figure, folder, "phases")]
    ['phases.png', 'phases.svg']
    >>> figure.axes[0].get_ylabel()
    'fraction recovered (0 to 1)'
"""

from __future__ import annotations

from mikit.plot.animation import animate_maps
from mikit.plot.drawing.saving import save_figure
from mikit.plot.estimator_panels import estimator_panel
from mikit.plot.information_planes import information_plane
from mikit.plot.layer_maps import maps
from mikit.plot.matches import matching
from mikit.plot.over_layers import flow, gap
from mikit.plot.over_phases import accuracy, phases
from mikit.plot.readings import change_points, divergence
from mikit.plot.student_pairs import students
from mikit.plot.two_axes import both_axes

__all__ = [
    "accuracy",
    "animate_maps",
    "both_axes",
    "change_points",
    "divergence",
    "estimator_panel",
    "flow",
    "gap",
    "information_plane",
    "maps",
    "matching",
    "phases",
    "save_figure",
    "students",
]
