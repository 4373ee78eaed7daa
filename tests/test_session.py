"""Sessions: each is a sequence of its own, from any thread and file, until it is full; an interrupt breaks none."""

from __future__ import annotations

import json
import threading
import time
import zipfile
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
        ([[1], [2, 3]], "input-shape", "rows of different lengths"),
        (10**18, "input-range", "1000000000000000000"),
        (2**64, "input-type", "object"),
        (np.uint64(2**63), "input-range", "accepted: -32 to 31"),
        ([3, 32], "input-range", "holds 32, which is beyond a table of 32 rows; accepted: -32 to 31"),
        (-33, "input-range", "holds -33"),
        (True, "input-type", "bool"),
    ],
)
def test_what_is_no_token_is_refused(ids: Any, code: str, found: str) -> None:
    with pytest.raises(HwqError, match=r"'ids'.*accepted: ") as caught:
        read_ids(ids, "ids", "int64", 32)
    assert caught.value.code == code
    assert found in caught.value.message


def test_a_session_on_a_board_keeps_its_state_there(artifact: hwq.Artifact, near_name: str) -> None:
    expected = artifact.start()(IDS[0])
    with artifact.on(near_name) as there:
        one = there.start()
        found = [one(IDS[0, :3]), one(IDS[0, 3]), one(IDS[0, 4:])]
        assert np.array_equal(np.concatenate(found, axis=1), expected)


def test_calls_of_one_session_follow_one_another(artifact: hwq.Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """From two threads, each feeds all of its tokens before the other."""
    fed: list[int] = []
    feed = session_of.Session._step

    def slowly(self: Any, token: Any) -> Any:
        fed.append(threading.get_ident())
        time.sleep(0.005)
        return feed(self, token)

    monkeypatch.setattr(session_of.Session, "_step", slowly)
    one = artifact.start()
    halves = [threading.Thread(target=one, args=(half,)) for half in (IDS[0, :6], IDS[0, 6:])]
    for thread in halves:
        thread.start()
    for thread in halves:
        thread.join()
    assert one.position == 12
    assert [len(set(half)) for half in (fed[:6], fed[6:])] == [1, 1]


def test_tokens_that_the_table_lacks_are_refused(artifact: hwq.Artifact, tmp_path: Path) -> None:
    """By sessions and calls, of a file too; negative ones count from the end, as the kernel has it."""
    artifact.save(tmp_path / "step.hwq")
    for one in (artifact, hwq.Artifact.load(tmp_path / "step.hwq")):
        session = one.start()
        for wrong in (language.VOCABULARY, -language.VOCABULARY - 1, 10**6):
            for use in (session, lambda ids, one=one: one([[0, ids]])):
                with pytest.raises(HwqError, match=f"{wrong}, which is beyond a table of 29 rows") as caught:
                    use(wrong)
                assert caught.value.code == "input-range"
        assert session.position == 0
        assert np.array_equal(session(-1), one.start()(language.VOCABULARY - 1))


def test_whole_sequences_with_tokens_that_the_table_lacks_are_refused() -> None:
    whole = hwq.compile(language.llama(), "host", schemes=["f32"], threads=1, measure=False)
    ids = IDS[:1].copy()
    ids[0, 3] = 10**6
    with pytest.raises(HwqError, match="holds 1000000, which is beyond a table of 29 rows") as caught:
        whole(ids)
    assert caught.value.code == "input-range"


def test_sequences_of_unlike_lengths_are_refused(artifact: hwq.Artifact) -> None:
    with pytest.raises(HwqError, match="rows of different lengths; accepted: rows of one length") as caught:
        artifact([[1, 2, 3], [1, 2]])
    assert caught.value.code == "input-shape"


def test_only_files_with_a_state_have_the_newer_format(artifact: hwq.Artifact, tmp_path: Path) -> None:
    whole, lengths = (
        hwq.compile(language.llama(), "host", schemes=["f32"], threads=1, measure=False, dynamic=dynamic)
        for dynamic in (None, {"ids": {1: (1, 12)}})
    )
    for one, expected in ((artifact, 3), (whole, 2), (lengths, 3)):
        one.save(tmp_path / "one.hwq")
        with zipfile.ZipFile(tmp_path / "one.hwq") as pack:
            assert json.loads(pack.read("manifest.json"))["format"] == expected
        found, ids = hwq.Artifact.load(tmp_path / "one.hwq"), IDS[:1]
        assert np.array_equal(found(ids), one(ids))
