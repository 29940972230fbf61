"""Driven by test_crashes in a process of its own: forks writers of a store, kills them, looks at what is left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mikit.activations import ActivationStore

ROWS = 40


def append(store: ActivationStore, start: int, phase: int = 0) -> None:
    base = np.arange(start, start + ROWS, dtype=np.float32)
    values = {f"layer{i}": np.stack([base + i] * 50, 1) for i in range(3)}
    store.append(values, ids=np.arange(start, start + ROWS), phase=phase)


def consistent_rows(path: Path) -> int:
    """Return how many rows the store holds, after a look at every byte."""
    store = ActivationStore.open(path)
    store.verify()
    if not store.phases:
        return 0
    ids = store.ids(0)
    for i, layer in enumerate(store.layers):
        rows = store.read(layer, 0)
        assert rows.shape == (ids.size, 50)
        assert (rows == (ids + i)[:, None]).all()
    return int(ids.size)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def killed_at_random_times(path: Path, kills: int) -> None:
    """Each writer resumes where the last one was killed; nothing acknowledged may be missing."""
    ActivationStore(path)
    draw = random.Random(0)
    lost = []
    for _ in range(kills):
        held = consistent_rows(path)
        reader, writer = os.pipe()

        def write(start: int = held, out: int = writer) -> None:
            store = ActivationStore.open(path)
            while True:
                append(store, start)
                start += ROWS
                os.write(out, start.to_bytes(8, "little"))

        child = forked(write)
        os.close(writer)
        time.sleep(draw.uniform(0.01, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        acknowledged = int.from_bytes(told[-8:], "little") if told else held
        found = consistent_rows(path)
        assert found in (acknowledged, acknowledged + ROWS), (found, acknowledged)
        lost.append(found == acknowledged)
    last = consistent_rows(path)
    append(ActivationStore.open(path), last)
    whole = ActivationStore.open(path)
    assert whole.ids(0).tolist() == list(range(last + ROWS)), "rows are missing or out of order"
    assert not [entry for entry in path.rglob("*") if entry.name.startswith(".tmp-")]
    assert len(list((path / "data").iterdir())) == 4 * (last + ROWS) // ROWS
    sys.stdout.write(f"{kills} kills, {last} rows, {sum(lost)} kills in the middle of an append")


def dead_at_every_system_call(path: Path) -> None:
    """The process vanishes before, then after, every call that makes a change last."""
    ActivationStore(path)
    append(ActivationStore.open(path), 0)
    states = set()
    for after in (False, True):
        for nth in range(1, 100):
            copy = path.parent / f"{path.name}-{after}-{nth}"
            shutil.copytree(path, copy)
            child = forked(lambda copy=copy, nth=nth, after=after: vanish(copy, nth, after))
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 9), code
            rows = consistent_rows(copy)
            assert rows in (ROWS, 2 * ROWS)
            states.add(rows)
            if rows == ROWS:
                append(ActivationStore.open(copy), ROWS)
            else:
                ActivationStore.open(copy).note(0, accuracy=1.0)
            assert consistent_rows(copy) == 2 * ROWS
            assert not [entry for entry in copy.rglob("*") if entry.name.startswith(".tmp-")]
            shutil.rmtree(copy)
            if code == 0:
                break
        else:
            raise AssertionError("the append never finished")
        assert nth > 10, nth
    assert states == {ROWS, 2 * ROWS}
    sys.stdout.write("old or new at every call")


def vanish(path: Path, nth: int, after: bool) -> None:
    calls = 0

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth and not after:
                os._exit(9)
            result = call(*arguments)
            if calls == nth:
                os._exit(9)
            return result

        return wrapped

    store = ActivationStore.open(path)
    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
    append(store, ROWS)


def many_writers(path: Path, writers: int, appends: int) -> None:
    """No rows are lost when several processes append to one store."""

    def work(writer: int) -> None:
        store = ActivationStore(path, network="shared")
        for i in range(appends):
            append(store, ROWS * (appends * writer + i))

    children = [forked(lambda writer=writer: work(writer)) for writer in range(writers)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * writers, codes
    total = ROWS * writers * appends
    assert consistent_rows(path) == total
    assert sorted(ActivationStore.open(path).ids(0).tolist()) == list(range(total))
    sys.stdout.write(f"{total} rows of {writers} writers")


if __name__ == "__main__":
    mode, folder, *numbers = sys.argv[1:]
    modes: dict[str, Callable[..., None]] = {
        "kill": killed_at_random_times,
        "vanish": dead_at_every_system_call,
        "writers": many_writers,
    }
    modes[mode](Path(folder), *map(int, numbers))
