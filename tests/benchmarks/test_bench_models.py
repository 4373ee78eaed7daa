"""The command line of bench_models, and what it makes of this machine: nothing is timed or quantized here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import bench_models
import peers
import pytest
from bench_models import machine, networks, parse, target_of

from hwq.target import Target

AMX = frozenset({"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"})


def _with_flags(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]) -> None:
    monkeypatch.setattr(bench_models, "cpu_flags", lambda: flags)


def test_everything_runs_by_default() -> None:
    options = parse([])
    assert options.networks == bench_models.NAMES
    assert (options.threads, options.schemes, options.no_amx) == ((1, 2), ("f32", "w8a8"), False)
    assert (options.rounds, options.runs, options.time_compile, options.json) == (10, 30, True, None)


def test_options_are_read(tmp_path: Path) -> None:
    options = parse(
        [
            *("--networks", "dscnn,resnet8", "--threads", "4", "--schemes", "w8a8,mixed"),
            *("--no-amx", "--quick", "--json", str(tmp_path / "found.json")),
        ]
    )
    assert (options.networks, options.threads, options.schemes) == (("dscnn", "resnet8"), (4,), ("w8a8", "mixed"))
    assert (options.no_amx, options.time_compile, options.json) == (True, False, tmp_path / "found.json")
    assert (options.rounds, options.runs) == bench_models.QUICK


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--networks", "resnet51"], "resnet51 are not known; accepted: resnet50"),
        (["--schemes", "w9a9"], "w9a9 are not known; accepted: f32"),
        (["--threads", "0"], "--threads"),
        (["--threads", "two"], "--threads"),
    ],
)
def test_what_is_not_known_is_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "arguments", "words", "amx"),
    [
        (frozenset(), [], "AMX is absent from this CPU", False),
        (frozenset(), ["--no-amx"], "AMX is absent from this CPU", False),
        (AMX, [], "AMX is there and in use", True),
        (AMX, ["--no-amx"], "AMX is there and switched off for hwq and OpenVINO", False),
    ],
)
def test_the_header_says_what_amx_is(
    flags: frozenset[str], arguments: list[str], words: str, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_flags(monkeypatch, flags)
    options = parse(arguments)
    assert words in machine(options)
    assert options.amx is amx


def test_without_amx_hwq_ends_with_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_flags(monkeypatch, frozenset(Target.load("x86-amx").cpu_flags) | AMX)
    assert "amx_int8" in target_of(parse([])).cpu_flags
    plain = target_of(parse(["--no-amx"]))
    assert "avx512_vnni" in plain.cpu_flags
    assert not AMX.intersection(plain.cpu_flags)
    assert plain.mattr == Target.load("x86-avx512-vnni").mattr


def test_a_network_without_data_is_made_up_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_models, "data_dir", lambda: None)
    found = list(networks(["resnet20", "mobilenetv2", "dscnn"], tmp_path))
    assert [it.name for it in found] == ["mobilenetv2", "dscnn"]
    assert next(iter(found[1].samples.values())).shape == (bench_models.CALIBRATION, 1, 49, 10)
    assert "resnet20 is left out" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [line.split(" is left out")[0] for line in peers.absent()] == ["ONNX Runtime", "OpenVINO", "OpenVINO int8"]
    assert peers.versions() == ""
    monkeypatch.setattr(bench_models, "data_dir", lambda: None)
    (network,) = networks(["dscnn"], tmp_path)
    assert peers.peers(network, 1) == {}
