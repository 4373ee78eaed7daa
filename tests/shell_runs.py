"""Commands as a user gives them, run in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_study import CALIBRATION, demo_pictures

from hwq.cli import main
from hwq.demo import load_demo

DEMO = str(load_demo()[0])


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON value and nothing else, without NaN or infinities."""

        def refuse(name: str) -> None:
            pytest.fail(f"{name} is no JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def sentence(self) -> str:
        """The one line that says what was wrong."""
        lines = self.err.splitlines()
        assert "Traceback" not in self.err
        assert sum(line.startswith("error: ") for line in lines) == 1, self.err
        assert lines[-1].startswith("error: ")
        return lines[-1].removeprefix("error: ")


def hwq(capsys: pytest.CaptureFixture[str], *args: str | Path) -> Ended:
    """Run ``hwq args...``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main.main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return Ended(status=int(ended.value.code or 0), out=printed.out, err=printed.err)


def write_samples(folder: Path) -> tuple[Path, Path]:
    """(calibration, evaluation) .npz of the demo network."""
    pictures, labels = demo_pictures()
    np.savez(folder / "calibration.npz", x=load_demo()[1][:CALIBRATION])
    np.savez(folder / "evaluation.npz", image=pictures, labels=labels)
    return folder / "calibration.npz", folder / "evaluation.npz"
