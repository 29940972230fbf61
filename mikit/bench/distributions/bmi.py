"""The 40 tasks of the first BMI benchmark, from closed forms and injective maps.

Source: Czyż, Grabowski, Vogt, Beerenwinkel and Marx, "Beyond Normal: On the Evaluation of Mutual Information
Estimators", NeurIPS 2023. Features are standardized neither there nor here; estimators do it.
"""

from __future__ import annotations

import numpy as np

from mikit.bench.distributions import maps
from mikit.bench.distributions.bases import additive_uniform, gaussian, gaussian_pairs, student
from mikit.bench.distributions.task import Pair, Task

__all__ = ["bmi_tasks"]


def bmi_tasks() -> list[Task]:
    """Return the 40 tasks, named as the benchmark names its tasks."""
    return [Task(name, "bmi", pair) for name, pair in _pairs().items()]


def dense(d_x: int, d_y: int) -> Pair:
    """Return Gaussian features with all correlations equal to one half."""
    d = d_x + d_y
    return gaussian(np.full((d, d), 0.5) + 0.5 * np.eye(d), d_x)


def _pairs() -> dict[str, Pair]:
    normal = gaussian_pairs([0.75], 1)
    found = {
        "1v1-normal-0.75": normal,
        "normal_cdf-1v1-normal-0.75": normal.seen_through(maps.normal_cdf, maps.normal_cdf),
        "1v1-additive-0.1": additive_uniform(0.1),
        "1v1-additive-0.75": additive_uniform(0.75),
        "1v1-bimodal-0.75": normal.seen_through(maps.bimodal_x, maps.bimodal_y),
        "wiggly-1v1-normal-0.75": normal.seen_through(maps.wiggly_x, maps.wiggly_y),
        "half_cube-1v1-normal-0.75": normal.seen_through(maps.half_cube, maps.half_cube),
        "student-identity-1-1-1": student(1, 1, 1),
        "asinh-student-identity-1-1-1": student(1, 1, 1).seen_through(maps.asinh, maps.asinh),
        "swissroll_x-normal_cdf-1v1-normal-0.75": normal.seen_through(
            lambda rows: maps.swiss_roll(maps.normal_cdf(rows)), maps.normal_cdf
        ),
    }
    for d in (2, 3, 5, 25, 50):
        found[f"multinormal-dense-{d}-{d}-0.5"] = dense(d, d)
    for d in (2, 3, 5, 25):
        found[f"multinormal-sparse-{d}-{d}-2-2.0"] = gaussian_pairs([0.8, 0.8], d)
    for d, degrees in ((2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3)):
        found[f"student-identity-{d}-{d}-{degrees}"] = student(degrees, d, d)
    for d in (3, 5, 25):
        sparse = f"multinormal-sparse-{d}-{d}-2-2.0"
        base = found[sparse]
        uniform = base.seen_through(maps.normal_cdf, maps.normal_cdf)
        found[f"normal_cdf-{sparse}"] = uniform
        found[f"half_cube-{sparse}"] = base.seen_through(maps.half_cube, maps.half_cube)
        found[f"spiral-{sparse}"] = base.seen_through(maps.spiral(0, 1), maps.spiral(1, 2))
        found[f"spiral-normal_cdf-{sparse}"] = uniform.seen_through(maps.spiral(0, 1), maps.spiral(1, 2))
    for d, degrees in ((2, 1), (3, 2), (5, 2)):
        name = f"student-identity-{d}-{d}-{degrees}"
        found[f"asinh-{name}"] = found[name].seen_through(maps.asinh, maps.asinh)
    return found
