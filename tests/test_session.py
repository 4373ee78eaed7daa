"""Sessions: each is a sequence of its own, from any thread and file, until it is full; an interrupt breaks none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import language
import numpy as np
import pytest
from click.testing import CliRunner

import hwq
from hwq import session as session_of
from hwq.cli import main
from hwq.errors import HwqError
from hwq.session import read_ids

IDS = np.random.default_rng(2).integers(0, language.VOCABULARY, (2, 12))


@pytest.fixture(scope="module")
def artifact() -> hwq.Artifact:
    return hwq.compile(hwq.decoder(language.llama()), "host", schemes=["f32"], threads=1, measure=False)


def test_tokens_together_are_tokens_one_by_one(artifact: hwq.Artifact) -> None:
    together, single = artifact.start(), artifact.start()
    rows = [single(int(token)) for token in IDS[0]]
    assert rows[0].shape == (1, 1, language.VOCABULARY)
    first, rest = together(IDS[0, :5]), together(IDS[:1, 5:])
    assert np.array_equal(np.concatenate([first, rest], axis=1), np.concatenate(rows, axis=1))
    assert together.position == single.position == 12


def test_sessions_are_independent(artifact: hwq.Artifact) -> None:
    """Interleaved, and from two threads at once."""
    alone = [artifact.start()(ids) for ids in IDS]
    assert not np.array_equal(alone[0][0, -1], alone[1][0, -1])
    sessions = [artifact.start() for _ in IDS]
    rows: list[list[Any]] = [[], []]
    for at in range(12):
        for turn, one in enumerate(sessions):
            rows[turn].append(one(IDS[turn, at]))
    for found, expected in zip(rows, alone, strict=True):
        assert np.array_equal(np.concatenate(found, axis=1), expected)
    both: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda turn=turn: both.update({turn: artifact.start()(IDS[turn])})) for turn in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(both[turn], alone[turn]) for turn in (0, 1))


def test_a_token_depends_on_those_before_it(artifact: hwq.Artifact) -> None:
    ids = IDS[0].copy()
    first = artifact.start()(ids)
    ids[2] = (ids[2] + 1) % language.VOCABULARY
    found = artifact.start()(ids)
    same = [np.array_equal(a, b) for a, b in zip(first[0], found[0], strict=True)]
    assert same == [True] * 2 + [False] * 10


def test_reset_begins_anew(artifact: hwq.Artifact) -> None:
    one = artifact.start()
    first = one(IDS[0])
    one.reset()
    assert one.position == 0
    assert np.array_equal(one(IDS[0]), first)


def test_a_full_session_says_so_and_stays_as_it_is(artifact: hwq.Artifact) -> None:
    one = artifact.start()
    expected = artifact.start()(IDS[0])
    one(IDS[0, :10])
    with pytest.raises(
        HwqError, match=r"position 10 and is given 3 tokens, but its length is 12; accepted: 2 more"
    ) as caught:
        one(IDS[0, :3])
    assert caught.value.code == "session-full"
    assert one.position == 10
    assert np.array_equal(one(IDS[0, 10:]), expected[:, 10:])
    with pytest.raises(HwqError, match="accepted: 0 more, reset"):
        one(1)


def test_an_interrupt_leaves_what_was_fed(artifact: hwq.Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a kernel has run, and after all have: the token that was cut off is fed again, to the same state."""
    expected = artifact.start()(IDS[0])
    kernel = session_of.run
    for after in (False, True):
        one, left = artifact.start(), iter([None] * 4)

        def cut(*arguments: Any, after: bool = after, left: Any = left) -> Any:
            if next(left, cut) is None:
                return kernel(*arguments)
            if after:
                kernel(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(session_of, "run", cut)
        with pytest.raises(KeyboardInterrupt):
            one(IDS[0])
        assert one.position == 4
        monkeypatch.setattr(session_of, "run", kernel)
        assert np.array_equal(one(IDS[0, 4:]), expected[:, 4:])


def test_a_saved_artifact_goes_on_with_the_same_bits(artifact: hwq.Artifact, tmp_path: Path) -> None:
    artifact.save(tmp_path / "language.hwq")
    loaded = hwq.Artifact.load(tmp_path / "language.hwq")
    assert (loaded.length, loaded.library) == (artifact.length, artifact.library)
    assert (
        loaded.library.state_bytes == 4 * 12 * 12 * 4
    )  # two blocks of keys and values, 12 floats for each of 12 tokens
    assert np.array_equal(loaded.start()(IDS[0]), artifact.start()(IDS[0]))


def test_a_call_goes_through_each_sequence_anew(artifact: hwq.Artifact) -> None:
    expected = np.concatenate([artifact.start()(ids) for ids in IDS])
    assert np.array_equal(artifact(IDS), expected)
    assert np.array_equal(artifact({"ids": IDS[:, :3]}), expected[:, :3])
    for value, code in ((IDS[0], "input-shape"), ({"x": IDS}, "input-name"), (IDS[:0], "samples-empty")):
        with pytest.raises(HwqError) as caught:
            artifact(value)
        assert caught.value.code == code


def test_the_shell_runs_sequences_and_times_a_token(artifact: hwq.Artifact, tmp_path: Path) -> None:
    artifact.save(tmp_path / "language.hwq")
    np.savez(tmp_path / "ids.npz", x=IDS)
    paths = [str(tmp_path / name) for name in ("language.hwq", "ids.npz", "out.npz")]
    result = CliRunner().invoke(main, ["run", *paths[:2], "-o", paths[2]])
    assert result.exit_code == 0, result.output
    with np.load(paths[2]) as found:
        assert np.array_equal(found["logits"], artifact(IDS))
    result = CliRunner().invoke(main, ["bench", paths[0], "--runs", "3"])
    assert result.exit_code == 0, result.output


def test_times_are_those_of_a_token(artifact: hwq.Artifact) -> None:
    times = artifact.layer_times(artifact.made_up_inputs(), runs=3)
    assert {"0.k.turned@cache", "0.attention", "logits:rows"} <= times.keys()
    assert artifact.benchmark([[3]], runs=3).runs == 3


def test_other_artifacts_have_no_sessions() -> None:
    whole = hwq.compile(language.llama(), "host", schemes=["f32"], threads=1, measure=False)
    with pytest.raises(HwqError, match="keeps nothing between calls") as caught:
        whole.start()
    assert caught.value.code == "session-none"


@pytest.mark.parametrize("ids", [5, [5], (5,), np.int32(5), np.array([[5]]), np.array([5], np.uint8)])
def test_one_token_in_any_form(ids: Any) -> None:
    found = read_ids(ids, "ids", "int64")
    assert found.dtype == np.int64
    assert found.tolist() == [5]


def test_several_tokens() -> None:
    assert read_ids([[3, 1, 2]], "ids", "int32").tolist() == [3, 1, 2]
    assert read_ids(range(4), "ids", "int32").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("ids", "code", "found"),
    [
        (1.5, "input-type", "float64"),
        ("one", "input-type", "<U3"),
        ([], "samples-empty", "(0,)"),
        ([[1, 2], [3, 4]], "input-shape", "(2, 2)"),
        ([[[1]]], "input-shape", "(1, 1, 1)"),
        ([[1], [2, 3]], "input-type", "no array"),
        (True, "input-type", "bool"),
    ],
)
def test_what_is_no_token_is_refused(ids: Any, code: str, found: str) -> None:
    with pytest.raises(HwqError, match=r"'ids'.*accepted: ") as caught:
        read_ids(ids, "ids", "int64")
    assert caught.value.code == code
    assert found in caught.value.message


def test_a_session_on_a_board_keeps_its_state_there(artifact: hwq.Artifact, near_name: str) -> None:
    expected = artifact.start()(IDS[0])
    with artifact.on(near_name) as there:
        one = there.start()
        found = [one(IDS[0, :3]), one(IDS[0, 3]), one(IDS[0, 4:])]
        assert np.array_equal(np.concatenate(found, axis=1), expected)
