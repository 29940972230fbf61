"""Benchmarks of mikit and other libraries: speed, accuracy on tasks with known mutual information, and peers.

``mikit bench speed`` runs :func:`mikit.bench.speed.run.measure_speed`, ``mikit bench accuracy`` runs
:func:`mikit.bench.accuracy.run.measure_accuracy`, and ``mikit bench peers`` runs
:func:`mikit.bench.accuracy.peers.compare`.
"""

from __future__ import annotations

__all__: list[str] = []
