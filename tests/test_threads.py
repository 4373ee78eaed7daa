"""Worker threads: as many as asked for, never more than CPUs, and the caller keeps its own freedom to move."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import tvm

from hwq import threads
from hwq.cpu import available_cpus
from hwq.threads import use_threads


@pytest.fixture(autouse=True)
def _back() -> Iterator[None]:
    yield
    use_threads(1)


def now() -> int:
    return int(tvm.get_global_func("runtime.NumThreads")())


def test_cpus_are_those_of_this_process() -> None:
    assert available_cpus() == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("wanted", [1, 2, 1000])
def test_as_many_threads_as_wanted_and_there_are(wanted: int) -> None:
    before = os.sched_getaffinity(0)
    use_threads(wanted)
    assert now() == min(wanted, len(available_cpus()))
    assert os.sched_getaffinity(0) == before, "the calling thread is not pinned"


def test_nothing_is_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the pool costs more than a small network's run."""
    use_threads(1)
    real = tvm.get_global_func
    asked: list[str] = []

    def watched(name: str) -> object:
        asked.append(name)
        return real(name)

    monkeypatch.setattr(threads.tvm, "get_global_func", watched)
    use_threads(1)
    assert asked == ["runtime.NumThreads"]
    if len(available_cpus()) > 1:
        use_threads(2)
        assert "runtime.config_threadpool" in asked


def test_a_fresh_process_gets_all_its_cpus() -> None:
    """TVM by itself takes half of them, for good, once its pool is made."""
    script = (
        "from hwq.threads import use_threads; use_threads(64)\n"
        "import tvm; print(tvm.get_global_func('runtime.NumThreads')())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) == len(available_cpus())
