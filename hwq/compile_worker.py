"""A helper process of ``hwq.compile_kernel.compile_many``.

Reads one job a line (JSON: functions, instruction, target, path), compiles it to an object file, and answers with
one line: {} or {"code", "message"} of the HwqError. It ends when its input does, so it outlives its parent by a kernel
at most.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Answers jobs from stdin on stdout until stdin ends."""
    # Ctrl-C is the parent's to answer: this process finishes the file it is writing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever TVM or LLVM prints must not mix with the answers
        import tvm

        from hwq.compile_kernel import compile_to
        from hwq.errors import HwqError

        for line in sys.stdin:
            if not line.endswith("\n"):  # the parent was killed while it wrote
                break
            job = json.loads(line)
            symbol = next(iter(job["functions"]))
            answer: dict[str, str] = {}
            try:
                functions = {symbol: tvm.ir.load_json(text) for symbol, text in job["functions"].items()}
                config = tvm.target.Target(json.loads(job["target"]))
                compile_to(Path(job["path"]), functions, job["instruction"], config)
            except HwqError as error:
                answer = {"code": error.code, "message": error.message}
            except Exception as error:  # the parent must hear of every job
                answer = {"code": "compile-failed", "message": f"kernel {symbol} does not compile: {error!r}"}
            try:
                answers.write(json.dumps(answer) + "\n")
                answers.flush()
            except BrokenPipeError:  # the parent was killed
                os._exit(1)
