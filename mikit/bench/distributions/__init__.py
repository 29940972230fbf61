"""Tasks with known mutual information, in suites.

:mod:`mikit.bench.distributions.suites` builds the suites by name; :class:`mikit.bench.distributions.task.Task` is one
task.
"""

from __future__ import annotations

__all__: list[str] = []
