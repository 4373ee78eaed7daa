"""The house's own rules, checked on its files: layers, lengths, a test for each, no hidden state, no private paths.

A new module has to be placed in LAYERS; a new pass, schedule or target is found by itself and asked for its test.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwq.target import Target

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400

# Lowest first. A module imports from its own layer and those before it, and never in a circle. "passes" and "schedules"
# stand for all files of those folders, "__init__" for the package's face. The second field is what the layer may import
# from outside the standard library; None is anything.
LAYERS: tuple[tuple[str, tuple[str, ...] | None, tuple[str, ...]], ...] = (
    (
        "values",
        ("numpy", "scipy"),
        (
            *(
                "errors",
                "scheme",
                "numerics",
                "group_scales",
                "weight_only",
                "operators",
                "transformer",
                "integer_attention",
                "row_scales",
                "observers",
                "rounding",
                "loss",
                "ridge",
            ),
            *("assignment", "mixed_integer", "assign", "explain"),
            *("address", "cache", "cpu", "crew", "files", "process", "switches", "units"),
        ),
    ),
    (
        "network and machine",
        None,
        (
            *("graph", "tables", "workload", "samples", "masks", "ties", "quantize", "smooth", "reference", "progress"),
            *("target", "target_file", "threads", "store_file", "store", "store_text", "cost", "boosting"),
            *("board_server", "tracker", "made_up"),
            *("relax_tools", "relax_numpy", "arithmetic", "follow", "scores", "layer_functions"),
            *("lengths", "token_func", "tokens", "baked", "onnx_prepare", "einsum", "onnx_convert", "onnx_modules"),
            *(
                "onnx_import",
                "torch_program",
                "torch_export",
                "torch_call",
                "torch_views",
                "torch_convert",
                "torch_import",
                "layer_names",
            ),
            *("passes", "layer_ops", "float_ops", "layers"),
        ),
    ),
    (
        "kernels",
        None,
        (
            *(
                "schedules",
                "schedule",
                "lowering",
                "compile_kernel",
                "compile_worker",
                "kernel_constants",
                "lower",
                "execute",
                "padding",
                "probe",
            ),
            *("board_facts", "device", "space"),
            *("compose", "price_features", "learned_price", "decided", "memory_plan", "library", "placed"),
        ),
    ),
    (
        "stages",
        None,
        (
            *(
                "calibrate",
                "moments",
                "correct",
                "in_sequence",
                "sensitivity",
                "nominal",
                "measure",
                "verify",
                "evaluate",
                "certificate",
            ),
            *("trial", "trial_data", "trial_worker"),
            *("lab",),
        ),
    ),
    (
        "assembly",
        None,
        (
            *("pipeline", "model", "work", "plan", "arguments", "decode"),
            *("observe", "study", "pricing", "reanchor", "judge", "choose", "settle", "session", "artifact"),
            *("tasks", "rounds", "tune"),
            *("deliver", "inplace", "contest", "dispose"),
        ),
    ),
    ("whole", None, ("compiler", "explore", "demo", "report", "page", "job_file", "job")),
    ("face", None, ("__init__",)),
    ("shell", None, ("wording", "shell", "options", "cli_store", "cli_tune", "cli_lab", "cli")),
)
LEVEL = {module: level for level, (_, _, modules) in enumerate(LAYERS) for module in modules}

# Paths of one machine: home and scratch folders.
PRIVATE_PATH = re.compile(r"(?<![\w.~$}])/(work|farm|root|home|opt|tmp)/\w")
MUTABLE_DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
MUTABLE_CALLS = ("dict", "list", "set", "defaultdict", "Counter", "OrderedDict", "deque", "bytearray")


def _sources(*folders: str) -> list[Path]:
    """The Python files in and below these folders, relative to the root."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


TOP = sorted(path.relative_to(ROOT) for path in ROOT.glob("hwq/*.py"))
PACKAGE = [*TOP, *_sources("passes", "schedules", "targets")]
EVERYTHING = [*PACKAGE, *_sources("tests", "tools", "tutorials", "benchmarks")]


def _module(path: Path) -> str:
    """The name in LAYERS of a file of the package: its folder's, or its own."""
    return path.stem if path.parts[0] == "hwq" else path.parts[0]


def _imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that the source imports, wherever it does; ``from a import b`` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def _own_imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, name in LAYERS) of the imports from hwq itself."""
    for line, name in _imports(source):
        parts = name.split(".")
        if parts[0] == "hwq":
            known = len(parts) > 1 and (parts[1] in LEVEL or (ROOT / "hwq" / f"{parts[1]}.py").exists())
            yield line, parts[1] if known else "__init__"


def upward_imports(source: str, module: str) -> list[str]:
    """What ``module`` imports from a layer above its own, or by a relative import, or from outside where it may not."""
    level = LEVEL[module]
    layer, allowed, _ = LAYERS[level]
    found = [
        f"line {line}: {module} ({layer}) imports {name} ({LAYERS[LEVEL[name]][0]}), which stands above it"
        for line, name in _own_imports(source)
        if LEVEL.get(name, level) > level
    ]
    for line, name in _imports(source):
        top = name.split(".")[0]
        if not top:
            found.append(f"line {line}: relative import {name}; accepted: the full name")
        elif allowed is not None and top not in (*allowed, "hwq", "__future__") and top not in sys.stdlib_module_names:
            found.append(f"line {line}: {module} ({layer}) imports {top}; accepted: {', '.join(allowed)}")
    return found


def mutable_globals(source: str) -> list[str]:
    """Module-level names bound to a dict, list or set without being written as constants, and ``global`` statements."""
    tree, found = ast.parse(source), []
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        call = node.value.func if isinstance(node.value, ast.Call) else None
        called = call.attr if isinstance(call, ast.Attribute) else call.id if isinstance(call, ast.Name) else None
        if isinstance(node.value, MUTABLE_DISPLAYS) or called in MUTABLE_CALLS:
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            found += [f"line {node.lineno}: {name}" for name in names if name != name.upper() and name != "__all__"]
    found += [f"line {node.lineno}: global" for node in ast.walk(tree) if isinstance(node, ast.Global)]
    return found


def undocumented(source: str) -> list[str]:
    """The module, and its public functions and classes, that lack a docstring. A prim_func cannot have one."""
    tree = ast.parse(source)
    found = ["the module"] if tree.body and not ast.get_docstring(tree) else []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            script = any("prim_func" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not script and not ast.get_docstring(node):
                found.append(f"line {node.lineno}: {node.name}")
    return found


def _own_test(path: Path) -> Path:
    """Where the test of a file of the package stands."""
    folder = Path("tests", *path.parent.parts) if path.parts[0] != "hwq" else Path("tests")
    return folder / f"test_{path.stem}.py"


def _needs_own_test(path: Path) -> bool:
    """A pass, or a schedule: a file with an ``apply``. Others may be tested along with what they are a part of."""
    tree = ast.parse(_text(path))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return path.parts[0] == "passes" or (path.parts[0] == "schedules" and "apply" in functions)


def _text(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def _names_under_test() -> frozenset[str]:
    """What the tests, and the schedules that have a test of their own, import."""
    schedules = [path for path in PACKAGE if path.parts[0] == "schedules" and _own_test(path) in EVERYTHING]
    users = [path for path in EVERYTHING if path.parts[0] == "tests"] + schedules
    return frozenset(name for user in users for _, name in _imports(_text(user)))


def _tracked() -> list[Path]:
    """Every file that is committed or about to be."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("path", PACKAGE, ids=str)
def test_module_keeps_the_rules(path: Path) -> None:
    source, module = _text(path), _module(path)
    if module == "targets":  # only data: no module of it stands in a layer
        assert not list(_imports(source))
        return
    assert module in LEVEL, f"{path} is new: place {module!r} in LAYERS of tests/test_house.py, as low as it may stand"
    assert upward_imports(source, module) == []
    assert mutable_globals(source) == []
    assert undocumented(source) == []


def test_layers_name_no_module_that_is_gone() -> None:
    there = {_module(path) for path in PACKAGE}
    assert sorted(set(LEVEL) - there) == []


def test_modules_import_each_other_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in PACKAGE:
        name = str(path) if path.parts[0] != "hwq" else path.stem  # each pass and schedule for itself
        graph.setdefault(name, set()).update(imported for _, imported in _own_imports(_text(path)) if imported != name)
    for group in ("passes", "schedules"):  # an import of the folder stands for all its files
        files = {name for name in graph if name.startswith(f"{group}/")}
        for name, imported in graph.items():
            if group in imported:
                imported.remove(group)
                imported |= files if name not in files else set()
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", EVERYTHING, ids=str)
def test_file_is_short_enough(path: Path) -> None:
    lines = len(_text(path).splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; accepted: at most {MAX_LINES}, so split it"


@pytest.mark.parametrize("path", [path for path in PACKAGE if not path.stem.startswith("_")], ids=str)
def test_file_has_its_test(path: Path) -> None:
    test = _own_test(path)
    if _needs_own_test(path) or (ROOT / test).exists():
        assert (ROOT / test).exists(), f"{path} has no test; expected {test}"
        assert re.search(r"^ *def test_", _text(test), re.MULTILINE), f"{test} holds no test"
        return
    dotted = ".".join(path.with_suffix("").parts if path.parts[0] == "hwq" else ("hwq", *path.with_suffix("").parts))
    assert any(f"{name}.".startswith(f"{dotted}.") for name in _names_under_test()), (
        f"{path} is not tested: there is no {test}, and neither a test nor a tested schedule imports {dotted}"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "targets").glob("*.toml")), ids=lambda path: path.stem)
def test_target_loads_by_its_name(path: Path) -> None:
    assert Target.load(path.stem).name == path.stem


def test_targets_are_there() -> None:
    assert {path.stem for path in (ROOT / "targets").glob("*.toml")} >= {"x86-avx2", "x86-avx512-vnni", "x86-amx"}


@pytest.mark.parametrize("name", ["passes", "schedules", "targets"])
def test_folder_is_reached_by_a_relative_link(name: str) -> None:
    link = ROOT / "hwq" / name
    assert link.is_symlink(), f"hwq/{name} must be a symlink to ../{name}"
    assert str(link.readlink()) == f"../{name}"


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in _tracked():
        if path.is_file() and path.suffix not in (".onnx", ".npz", ".png"):
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            found += [f"{path.relative_to(ROOT)}:{n}: {line}" for n, line in lines if PRIVATE_PATH.search(line)]
    assert found == []


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    block = re.search(r"```sh\n(.*?)```", _text("README.md"), re.DOTALL)
    assert block is not None, "README.md has no ```sh block"
    commands = [line.split("  #")[0].strip() for line in block[1].splitlines() if line.strip()]
    assert commands == ["pip install . && hwq demo", "pip install '.[test]' && pytest"]
    assert re.findall(r'^step "(.*)"', _text(".ci/run"), re.MULTILINE)[:2] == commands


def test_readme_names_every_switch_and_error_code() -> None:
    readme, source = _text("README.md"), "\n".join(_text(path) for path in PACKAGE)
    switches = set(re.findall(r"\bHWQ_[A-Z]+\b", source))
    assert sorted(switch for switch in switches if f"`{switch}`" not in readme) == []
    codes = set(re.findall(r'HwqError\(\s*"([a-z0-9-]+)"', source))
    rows = re.findall(r"^\| (`.*?) \|", readme.split("## Errors")[1], re.MULTILINE)
    listed = {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)}
    assert sorted(codes - listed) == [], "raised, but not in the README's table of errors"
    assert sorted(listed - codes) == [], "in the README's table of errors, but raised nowhere"


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("numerics", "import numpy as np\nfrom hwq.scheme import Scheme", 0),
        ("numerics", "from hwq.graph import Layer", 1),
        ("numerics", "import hwq.cli", 1),
        ("numerics", "from hwq import cli, errors", 1),
        ("numerics", "from hwq import load", 1),
        ("numerics", "import networkx", 1),
        ("numerics", "def f():\n    import tvm.relax", 1),
        ("schedules", "import tvm\nfrom hwq.workload import Kernel\nfrom hwq.schedules.generic import pool", 0),
        ("schedules", "from hwq.passes.fold import Fold\nfrom hwq.build import build", 1),
        ("graph", "from . import scheme", 1),
    ],
)
def test_upward_imports_are_found(module: str, source: str, found: int) -> None:
    assert len(upward_imports(source, module)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("TABLE = {}\n_ROWS: list[int] = []\n__all__ = ['a']\npair = (1, 2)\ndef f():\n    seen = {}", 0),
        ("cache = {}", 1),
        ("_seen: set[str] = set()", 1),
        ("rows = [n for n in range(3)]", 1),
        ("import collections\ncount = collections.defaultdict(int)", 1),
        ("def f():\n    global N\n    N = 1", 1),
    ],
)
def test_mutable_globals_are_found(source: str, found: int) -> None:
    assert len(mutable_globals(source)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("", 0),
        ('"""Doc."""\ndef f():\n    """Doc."""\ndef _g(): ...\n@T.prim_func\ndef kernel(): ...', 0),
        ("def f(): ...", 2),
        ('"""Doc."""\nclass Plan: ...', 1),
    ],
)
def test_missing_docstrings_are_found(source: str, found: int) -> None:
    assert len(undocumented(source)) == found


@pytest.mark.parametrize(
    ("line", "found"), [("see /ho" + "me/me/x", True), ("a /tm" + "p/x", True), ("docs/work/x", False)]
)
def test_private_paths_are_found(line: str, found: bool) -> None:
    assert bool(PRIVATE_PATH.search(line)) is found
