"""Laws whose mutual information is known: samplers that know their truth, in suites.

:mod:`mikit.bench.distributions.suites` names the suites and builds them; :class:`mikit.bench.distributions.task.Law` is
one law.
"""

from __future__ import annotations

__all__: list[str] = []
