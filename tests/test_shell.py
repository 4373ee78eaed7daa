"""How commands end, whatever happens inside them, and where output goes."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import threading
from typing import Any

import click
import pytest
from shell_runs import Ended

from hwq import shell
from hwq.errors import HwqError
from hwq.shell import Shell, count, emit, stages


def run(capsys: pytest.CaptureFixture[str], body: Any, *args: str, name: str = "work", debug: bool = False) -> Ended:
    """Run a made-up command whose body is ``body``."""

    @click.group(cls=Shell)
    def group() -> None:
        pass

    @group.command(name)
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--times", type=count, default=1)
    def command(as_json: bool, times: int) -> None:
        body()
        emit(as_json, {"times": times}, lambda console: console.print(f"{times} times"))

    with pytest.raises(SystemExit) as ended:
        group.main([name, *args])
    printed = capsys.readouterr()
    return Ended(status=int(ended.value.code or 0), out=printed.out, err=printed.err)


def raising(error: BaseException) -> Any:
    def body() -> None:
        raise error

    return body


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWQ_DEBUG", raising=False)


def test_done(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, lambda: None, "--times", "3")
    assert (ended.status, ended.out, ended.err) == (0, "3 times\n", "")
    assert run(capsys, lambda: None, "--json").json == {"times": 1}


def test_an_error_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    body = raising(HwqError("model-missing", "there is no model 'x'"))
    ended = run(capsys, body)
    assert (ended.status, ended.out, ended.err) == (1, "", "error: there is no model 'x'\n")
    ended = run(capsys, body, "--json")
    assert ended.json == {"error": {"code": "model-missing", "message": "there is no model 'x'"}}
    assert ended.err == "error: there is no model 'x'\n", "also where a person looks"


def test_a_defect_of_hwq_is_one_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    body = raising(ValueError("first line\nwhat was wrong"))
    ended = run(capsys, body)
    assert ended.status == 1
    assert ended.err == (
        "error: hwq itself failed (ValueError: what was wrong); please report this with what HWQ_DEBUG=1 prints\n"
    )
    assert run(capsys, raising(ValueError()), "--json").json["error"]["code"] == "internal"


def test_whole_tracebacks_where_wanted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWQ_DEBUG", "1")
    ended = run(capsys, raising(HwqError("model-missing", "there is no model 'x'")))
    assert "Traceback" in ended.err
    assert ended.err.endswith("error: there is no model 'x'\n")


@pytest.mark.parametrize("wrong", [["--times", "0"], ["--times", "-2"], ["--times", "x"], ["--times", "1.5"]])
def test_wrong_usage(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    ended = run(capsys, lambda: None, *wrong)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.endswith(f"Error: Invalid value for '--times': {wrong[1]!r} is no whole number of at least 1.\n")
    assert run(capsys, lambda: None, *wrong, "--json").json["error"]["code"] == "usage"
    assert run(capsys, lambda: None, "--nothing").status == 2


# Ctrl-C


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", ["work", "compile"])
def test_an_interrupt_is_one_sentence(capsys: pytest.CaptureFixture[str], name: str) -> None:
    ended = run(capsys, press, name=name)
    assert (ended.status, ended.out) == (130, "")
    assert (
        ended.err.strip()
        == {
            "work": "interrupted",
            "compile": "interrupted: what was finished is kept, and the same command goes on from there",
        }[name]
    )
    assert run(capsys, press, "--json", name=name).json["error"]["code"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "as it was before"


def test_an_interrupt_that_became_another_error_is_one_still(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        try:
            press()
        except KeyboardInterrupt as error:
            raise RuntimeError("callback failed") from error

    ended = run(capsys, body)
    assert (ended.status, ended.err.strip()) == (130, "interrupted")


@pytest.mark.parametrize("at", ["step", "end"])
def test_an_interrupt_that_was_swallowed_is_seen_at_the_next_step(capsys: pytest.CaptureFixture[str], at: str) -> None:
    reached = []

    def body() -> None:
        with stages()("measure") as step:
            try:
                press()
            except KeyboardInterrupt:
                pass
            if at == "step":
                step(1, 2)
                reached.append("after the step")
        reached.append("after the stage")

    ended = run(capsys, body)
    assert ended.status == 130
    assert reached == []


def test_other_threads_may_run_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Where signals cannot be caught."""
    found: list[Ended] = []
    thread = threading.Thread(target=lambda: found.append(run(capsys, lambda: None)))
    thread.start()
    thread.join()
    assert [ended.status for ended in found] == [0]


# Output


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    emit(True, {"inf": float("inf"), "rows": [(1, float("nan")), {"a": -float("inf")}], 3: None}, lambda _: None)
    printed = capsys.readouterr().out
    assert Ended(status=0, out=printed, err="").json == {"inf": None, "rows": [[1, None], {"a": None}], "3": None}


@pytest.mark.parametrize(
    ("columns", "width"), [(None, shell.FILE_WIDTH), ("wide", shell.FILE_WIDTH), ("80", 80), ("30", shell.LEAST_WIDTH)]
)
def test_tables_for_a_file_are_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str | None, width: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    emit(False, {}, lambda console: console.print("x" * 500))
    assert len(capsys.readouterr().out.splitlines()[0]) == width


def test_progress_is_lines_on_stderr_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        with stages()("calibrate") as step:
            step(1, 2)

    ended = run(capsys, body, "--json")
    assert ended.json == {"times": 1}
    assert ended.err == "calibrate: done in 0.0 s\n"


def test_progress_is_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    main_end, other_end = pty.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # once the other end is closed
            while chunk := os.read(main_end, 4096):
                chunks.append(chunk)

    def body() -> None:
        with stages()("calibrate") as step:
            for done in range(1, 4):
                step(done, 3)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(other_end, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        ended = run(capsys, body, "--json")
    reader.join(timeout=30)
    os.close(main_end)
    seen = b"".join(chunks).decode()
    assert ended.json == {"times": 1}, "bars do not get into JSON"
    assert "calibrate" in seen
    assert "3/3" in seen
    assert "\x1b[" in seen
