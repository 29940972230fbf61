"""How a trace tells its progress."""

from __future__ import annotations

from mikit.flow.working import _Lines, progress_bar


def test_lines_come_every_half_minute_with_the_time_left() -> None:
    now, lines = [0.0], []
    told = _Lines(100, lines.append, lambda: now[0]).told
    for _ in range(100):
        now[0] += 6.0
        told("student, phase 3")
    assert lines[0] == "5 of 100 measured, about 10 min left (student, phase 3)"
    assert len(lines) == 19  # every fifth task takes half a minute; of the last one the table itself tells
    assert lines[-1] == "95 of 100 measured, under a minute left (student, phase 3)"


def test_quick_work_away_from_a_terminal_is_silent(capsys) -> None:
    with progress_bar(True, 3) as told:
        for _ in range(3):
            told("student [bold], phase 0")
    assert capsys.readouterr() == ("", "")
