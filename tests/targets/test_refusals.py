"""A target file that is wrong is refused with file, key, value, and what would be accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwq.errors import HwqError
from hwq.target import TARGETS_AT, Target

GOOD = (TARGETS_AT / "x86-avx512-vnni.toml").read_text()


def refused(folder: Path, text: str) -> str:
    """The message with which a file of this text is refused; it names the file."""
    path = folder / "mine.toml"
    path.write_text(text)
    with pytest.raises(HwqError) as caught:
        Target.load(path)
    assert caught.value.code == "target-invalid"
    assert str(path) in caught.value.message
    return caught.value.message


def with_line(pattern: str, line: str) -> str:
    """The good file with the first line that starts with ``pattern`` replaced."""
    text, count = re.subn(rf"(?m)^{pattern}.*$", line.replace("\\", r"\\"), GOOD, count=1)
    assert count == 1, pattern
    return text


def test_the_unchanged_file_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    assert Target.load(tmp_path / "mine.toml") == Target.load("x86-avx512-vnni")


@pytest.mark.parametrize(
    ("key", "line", "value", "accepted"),
    [
        ("kind", 'kind = "opencl"', "'opencl'", "llvm, cuda"),
        ("mcpu", 'mcpu = ""', "''", "non-empty text"),
        ("mcpu", "mcpu = 4", "4", "non-empty text"),
        ("mattr", 'mattr = "+avx512vnni"', "'+avx512vnni'", "a list of texts"),
        ("mattr", "mattr = [1]", "[1]", "a list of texts"),
        ("builds", "builds = 1", "1", "true or false"),
        ("device", 'device = "rpc@"', "'rpc@'", "local, KEY"),
        ("activation_storage", 'activation_storage = "int16"', "'int16'", "uint8, int8"),
        ("requantize", 'requantize = "dyadic"', "'dyadic'", "float32"),
        ("cores", "cores = 2", "2", "source ="),
        ("cores", 'cores = { value = 0, source = "x" }', "0", "a positive whole number"),
        ("cores", 'cores = { value = -1, source = "x" }', "-1", "a positive whole number"),
        ("cores", 'cores = { value = 1.5, source = "x" }', "1.5", "a positive whole number"),
        ("cores", 'cores = { value = true, source = "x" }', "True", "a positive whole number"),
        ("clock_hz", 'clock_hz = { value = "fast", source = "x" }', "'fast'", "a positive number"),
        ("clock_hz", 'clock_hz = { value = nan, source = "x" }', "nan", "a positive number"),
        ("clock_hz", 'clock_hz = { value = inf, source = "x" }', "inf", "a positive number"),
        ("clock_hz", 'clock_hz = { value = 0.0, source = "x" }', "0.0", "a positive number"),
        ("clock_hz", 'clock_hz = { value = 1e9, source = " " }', "' '", "a non-empty text"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_accepted(
    tmp_path: Path, key: str, line: str, value: str, accepted: str
) -> None:
    message = refused(tmp_path, with_line(f"{key} =", line))
    assert re.search(rf"target\.{key}\S* is {re.escape(value)}", message)
    assert accepted in message.split("accepted:")[1]


@pytest.mark.parametrize(
    ("key", "line", "value", "accepted"),
    [
        ("ops", "ops = []", "[]", "at least one of *, conv2d"),
        ("ops", 'ops = ["conv3d"]', "'conv3d'", "depthwise_conv2d"),
        ("ops", 'ops = "conv2d"', "'conv2d'", "a list of texts"),
        ("weight", 'weight = "int2"', "'int2'", "int4"),
        ("weight", 'weight = "float32"', "'float32'", "one of none, int8, int4, int4_g64 for int8"),
        ("act", 'act = "float16"', "'float16'", "int8, int8_dyn, bfloat16, float32"),
        ("weight", 'weight = "bfloat16"', "'bfloat16'", "one of bfloat16 for bfloat16"),
        ("instruction", 'instruction = "avx512.vpdpbuds"', "'avx512.vpdpbuds'", "avx512.vpdpbusd"),
        ("macs_per_cycle", "macs_per_cycle = 0", "0", "a positive number"),
        ("macs_per_cycle", "macs_per_cycle = -2.0", "-2.0", "a positive number"),
        ("native", 'native = "yes"', "'yes'", "true or false"),
        ("schedules", 'schedules = ["x86/no_such"]', "'x86/no_such'", "a file of schedules/"),
        ("schedules", 'schedules = ["x86/__init__"]', "'x86/__init__'", "a file of schedules/"),
        ("schedules", 'schedules = ["../hwq/target"]', "'../hwq/target'", "a file of schedules/"),
        ("source", 'source = ""', "''", "a non-empty text"),
    ],
)
def test_a_wrong_row_names_its_number(tmp_path: Path, key: str, line: str, value: str, accepted: str) -> None:
    message = refused(tmp_path, with_line(f"{key} =", line))
    assert f"compute[0].{key} is {value}" in message
    assert accepted in message.split("accepted:")[1]


@pytest.mark.parametrize("key", ["name", "mcpu", "cores", "clock_hz", "builds", "cpu_flags", "l2_bytes_per_s"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    assert f"missing key target.{key};" in refused(tmp_path, without(key))


@pytest.mark.parametrize(
    "key", ["ops", "weight", "act", "instruction", "macs_per_cycle", "native", "schedules", "source"]
)
def test_a_key_missing_in_a_row_is_named(tmp_path: Path, key: str) -> None:
    assert f"missing key compute[0].{key};" in refused(tmp_path, without(key))


def without(key: str) -> str:
    """The good file without its first ``key``, however many lines the value has."""
    text, count = re.subn(rf"(?ms)^{key} = (\[\n.*?^\]|[^\n]*)\n", "", GOOD, count=1)
    assert count == 1
    return text


@pytest.mark.parametrize("key", ["l3_bytes", "l3_bytes_per_s"])
def test_half_a_third_level_is_refused(tmp_path: Path, key: str) -> None:
    assert "both or neither" in refused(tmp_path, without(key))


def test_no_third_level_at_all_is_accepted(tmp_path: Path) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith("l3_bytes")]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    assert Target.load(tmp_path / "mine.toml").l3_bytes == 0


def test_a_number_without_a_source_is_refused(tmp_path: Path) -> None:
    assert "missing key target.cores.source" in refused(tmp_path, with_line("cores =", "cores = { value = 2 }"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("surprise = 1\n" + GOOD, "surprise"),
        (with_line("name =", 'name = "x"\ncors = 3'), "target.cors"),
        (with_line("native =", "native = true\nspeed = 3"), "compute[0].speed"),
        (with_line("cores =", 'cores = { value = 2, source = "x", unit = "y" }'), "target.cores.unit"),
    ],
)
def test_an_unknown_key_is_named_with_its_value(tmp_path: Path, text: str, key: str) -> None:
    message = refused(tmp_path, text)
    assert f"unknown key {key} (value " in message
    assert "accepted: " in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing key target, compute"),
        ("target = 3\ncompute = []", "target is 3"),
        (GOOD.split("[[compute]]")[0], "missing key compute"),
        ("compute = []\n" + GOOD.split("[[compute]]")[0], "compute is []"),
        ("compute = [3]\n" + GOOD.split("[[compute]]")[0], "compute[0] is 3"),
    ],
)
def test_a_file_without_its_tables_is_refused(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    at = next(number for number, line in enumerate(lines, 1) if line.startswith("mcpu"))
    lines[at - 1] = "mcpu = = 3"
    message = refused(tmp_path, "\n".join(lines))
    assert "not valid TOML" in message
    assert f"line {at}" in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HwqError, match="not UTF-8") as caught:
        Target.load(tmp_path / "mine.toml")
    assert caught.value.code == "target-invalid"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mine.toml"
    folder.mkdir()
    with pytest.raises(HwqError, match="cannot be read") as caught:
        Target.load(folder)
    assert caught.value.code == "target-missing"
