"""Job files are read strictly: every error names file, key, value and what is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwq.errors import HwqError
from hwq.job_file import Job, JobModel, JobTarget, read_job

WHOLE = """
trials = 400
hours = 1.5
seed = 7
work_dir = "found"

[[model]]
path = "net.onnx"
batch = 4
shapes = { x = [4, 3, 8, 8] }
schemes = ["w8a8", "f32"]
calibration = "x.npz"
priority = 2

[[model]]
path = "/elsewhere/other.onnx"

[[target]]
name = "host"
devices = ["local"]
threads = 2

[[target]]
name = "mine.toml"
devices = ["board", "far@lab.example:9190"]
"""
LEAST = 'trials = 8\n[[model]]\npath = "net.onnx"\n[[target]]\nname = "host"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "night.toml"


def test_a_whole_job_is_read(path: Path) -> None:
    path.write_text(WHOLE)
    folder = path.parent
    assert read_job(path) == Job(
        path=path,
        models=(
            JobModel(
                path=folder / "net.onnx",
                batch=4,
                shapes=(("x", (4, 3, 8, 8)),),
                schemes=("w8a8", "f32"),
                calibration=folder / "x.npz",
                priority=2.0,
            ),
            JobModel(path=Path("/elsewhere/other.onnx")),
        ),
        targets=(
            JobTarget(name="host", devices=("local",), threads=2),
            JobTarget(name=str(folder / "mine.toml"), devices=("board", "far@lab.example:9190")),
        ),
        trials=400,
        hours=1.5,
        work_dir=folder / "found",
        seed=7,
    )


def test_what_is_left_out_has_its_default(path: Path) -> None:
    path.write_text(LEAST)
    job = read_job(path)
    assert (job.hours, job.seed, job.work_dir) == (None, 0, path.parent / "night.work")
    assert job.models == (JobModel(path=path.parent / "net.onnx"),)
    assert job.targets == (JobTarget(name="host"),)


@pytest.mark.parametrize(
    ("old", "new", "tells"),
    [
        ("trials = 8", "", ("trials and hours are both missing",)),
        ("trials = 8", "trials = 0", ("trials is 0", "a whole number of at least 1")),
        ("trials = 8", "trials = true", ("trials is True", "a whole number of at least 1")),
        ("trials = 8", "hours = 0", ("hours is 0", "a number above 0")),
        ("trials = 8", "hours = inf", ("hours is inf", "a number above 0")),
        ("trials = 8", "trials = 8\nseed = -1", ("seed is -1", "a whole number of at least 0")),
        ("trials = 8", "trials = 8\nfoo = 1", ("unknown key foo (value 1)", "trials, hours, seed")),
        ("trials = 8", "trials = 8\nwork_dir = 1", ("work_dir is 1", "a text")),
        ('path = "net.onnx"', "", ("model 1: path is missing", "a text")),
        ('path = "net.onnx"', "path = 3", ("model 1: path is 3",)),
        ('path = "net.onnx"', 'path = "n"\npaht = "m"', ("unknown key model 1: paht (value 'm')",)),
        ('path = "net.onnx"', 'path = "n"\nbatch = 0', ("model 1: batch is 0",)),
        ('path = "net.onnx"', 'path = "n"\npriority = 0', ("model 1: priority is 0", "a number above 0")),
        ('path = "net.onnx"', 'path = "n"\nschemes = ["w9"]', ("model 1: schemes is ['w9']", "w8a8")),
        ('path = "net.onnx"', 'path = "n"\nschemes = []', ("model 1: schemes is []",)),
        ('path = "net.onnx"', 'path = "n"\nschemes = ["f32", "f32"]', ("a list of different schemes",)),
        ('path = "net.onnx"', 'path = "n"\nshapes = { x = [0] }', ("model 1: shapes is {'x': [0]}",)),
        ('name = "host"', "", ("target 1: name is missing",)),
        ('name = "host"', 'name = "host"\ndevices = ["a@b:99999"]', ("devices is ['a@b:99999']", "KEY@HOST:PORT")),
        ('name = "host"', 'name = "host"\ndevices = ["-a"]', ("target 1: devices is ['-a']",)),
        ('name = "host"', 'name = "host"\ndevices = ["local@b:1"]', ("target 1: devices is ['local@b:1']",)),
        ('name = "host"', 'name = "host"\nthreads = 1.5', ("target 1: threads is 1.5",)),
        ('[[target]]\nname = "host"', "", ("target is missing", "one or more tables [[target]]")),
        ('[[target]]\nname = "host"', "[target]", ("target is {}", "one or more tables [[target]]")),
        ("trials = 8", "trials 8", ("is no TOML",)),
    ],
)
def test_what_is_wrong_is_named(path: Path, old: str, new: str, tells: tuple[str, ...]) -> None:
    assert old in LEAST
    path.write_text(LEAST.replace(old, new))
    with pytest.raises(HwqError) as caught:
        read_job(path)
    assert caught.value.code == "job-invalid"
    assert str(path) in caught.value.message
    for text in tells:
        assert text in caught.value.message


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(HwqError, match=r"night\.toml cannot be read") as caught:
        read_job(path)
    assert caught.value.code == "job-missing"


def test_the_example_of_the_readme_is_a_job(path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(trials.*?)```", readme, re.DOTALL)
    path.write_text(example)
    job = read_job(path)
    assert (job.models[0].priority, job.targets[0].name, job.work_dir.name) == (2.0, "host", "night.work")
