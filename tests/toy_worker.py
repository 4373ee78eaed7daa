"""A worker for the tests of ``hwq.crew`` that does as it is told: no TVM, so that it starts at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwq.crew import answer_jobs, die_with


def main(parent: int) -> None:
    """As ``hwq.trial_worker.main``."""
    die_with(parent)
    answer_jobs(_answer)


def _answer(content: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    for step in content.get("steps", []):
        if step == "hang":
            time.sleep(600)
        elif step == "child":  # something that would stay, and holds on to the output
            Path(content["pid"]).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        elif step == "quiet":
            os.close(1)
        elif step == "long":
            sys.stdout.write("x" * 100_000)  # of no concern to the answers
            sys.stdout.flush()
        elif step == "temporary":  # it has a temporary folder when it is killed
            tempfile.mkdtemp()
            os.kill(os.getpid(), signal.SIGKILL)
        elif step == "once":  # the first who comes here is killed
            try:
                Path(content["flag"]).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        elif isinstance(step, int):
            os.kill(os.getpid(), step)
        elif isinstance(step, float):
            time.sleep(step)
        else:
            tell(step)
    return {"pid": os.getpid(), **content.get("answer", {})}
