"""What mikit costs: its formulas and their peers on the same samples, side by side.

:func:`mikit.bench.speed.measure_speed` is behind ``mikit bench speed``. The cases are data (:mod:`mikit.bench.cases`),
so are the bars (:mod:`mikit.bench.bars`); the measuring itself knows neither (:mod:`mikit.bench.timing`).
"""

from __future__ import annotations

__all__: list[str] = []
