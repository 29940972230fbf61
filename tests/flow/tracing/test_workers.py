"""How a trace tells its progress."""

from __future__ import annotations

import joblib
from joblib._parallel_backends import ThreadingBackend

from mikit.flow.tracing.workers import Budget, _Lines, done, progress_bar


def test_lines_come_every_half_minute_with_the_time_left() -> None:
    now, lines = [0.0], []
    advance = _Lines(100, lines.append, lambda: now[0]).advance
    for _ in range(100):
        now[0] += 6.0
        advance("student, phase 3")
    assert lines[0] == "5 of 100 measured, about 10 min left (student, phase 3)"
    assert len(lines) == 19  # every fifth task takes half a minute; of the last one the table itself tells
    assert lines[-1] == "95 of 100 measured, under a minute left (student, phase 3)"


def test_quick_work_away_from_a_terminal_is_silent(capsys) -> None:
    with progress_bar(True, 3) as advance:
        for _ in range(3):
            advance("student [bold], phase 0")
    assert capsys.readouterr() == ("", "")


class _WithoutGenerator(ThreadingBackend):
    """As Ray's: results come only when all are there."""

    supports_return_generator = False


def test_a_backend_without_a_generator_works_some_tasks_at_a_time() -> None:
    joblib.register_parallel_backend("without generator", _WithoutGenerator)
    with joblib.parallel_config(backend="without generator", n_jobs=2):
        found = done(abs, range(-20, 0), jobs=None, budget=Budget(None))
        assert next(found) == (-20, 20)
        assert list(found) == [(task, -task) for task in range(-19, 0)]
        assert list(done(abs, range(5), jobs=2, budget=Budget(1e-12))) == []
