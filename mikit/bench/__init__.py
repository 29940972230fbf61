"""What mikit costs: its formulas and their peers on the same samples, side by side.

:func:`mikit.bench.speed.run.measure_speed` is behind ``mikit bench speed``. The cases are data
(:mod:`mikit.bench.speed.cases`), so are the bars (:mod:`mikit.bench.speed.targets`); the measuring itself knows neither
(:mod:`mikit.bench.speed.timing`).
"""

from __future__ import annotations

__all__: list[str] = []
