"""The environment variables that hwq reads, all of them.

| variable          | meaning                                                                                  |
|-------------------|------------------------------------------------------------------------------------------|
| `HWQ_DEBUG=1`     | debug lines on stderr: why a rule declined, what a stage skipped                          |
| `HWQ_DUMP=dir`    | the IR after every pass, in numbered files                                                |
| `HWQ_VERIFY=1`    | every compile checks its integer kernels against the NumPy reference on a real sample     |
| `HWQ_CACHE=dir`   | where compiled kernels and measured records are kept (``hwq.cache``)                      |
| `HWQ_DATA=dir`    | where the tests look for real networks and samples                                        |
"""

from __future__ import annotations

import os


def debug_wanted() -> bool:
    return bool(os.environ.get("HWQ_DEBUG"))


def verify_wanted() -> bool:
    return bool(os.environ.get("HWQ_VERIFY"))
