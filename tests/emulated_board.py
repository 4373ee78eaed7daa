"""An ARM board for tests, without an ARM board: Debian's Python for arm64 with TVM's runtime, run by qemu's user mode.

    python tests/emulated_board.py build [--root DIR]
    python tests/emulated_board.py serve --key K --tracker HOST:PORT [--cpu max] [--root DIR]

``build`` needs no root and alters nothing outside of DIR: qemu and Debian's packages are taken out of their archives by
``apt-get download`` into folders of its own and ``dpkg-deb``, the wheels by ``pip download``. TVM is of the release
that runs here, without its compiler: a board needs the runtime only. ``serve`` runs TVM's own RPC server, as a board
does (``hwq/board_server.py``); all its processes end with it. ``--cpu`` is qemu's: max, cortex-a72, cortex-a76,
neoverse-n1, ... What it computes is exact; how long it takes means nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

SUITE = "bookworm"  # its Python is 3.11, for which all wheels below exist
PYTHON = "3.11"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libcrypt1", "libuuid1"),
)
QEMU = "usr/bin/qemu-aarch64-static"
PLATFORM = "manylinux_2_28_aarch64"
# Of TVM what the RPC server does without: the compiler's library and the sources.
LEFT_OUT = ("tvm/lib/libtvm_compiler.so", "tvm/src/", "tvm/include/", "tvm/3rdparty/", "tvm/web/")
RECIPE = "board.json"
SERVER = Path(__file__).resolve().parents[1] / "hwq" / "board_server.py"
WRAPPER = """#!/bin/sh
# The board's Python, and what it starts by sys.executable (-0): the kernel here cannot run the program by itself.
board=$(dirname "$(realpath "$0")")
unset PYTHONPATH PYTHONDONTWRITEBYTECODE LD_LIBRARY_PATH LD_PRELOAD
export TVM_USE_RUNTIME_LIB=1 PYTHONHOME="$board/usr" PYTHONNOUSERSITE=1
exec "$board/qemu" -cpu "${HWQ_BOARD_CPU:-max}" -L "$board" -0 "$board/python" "$board/usr/bin/python3.11" "$@"
"""


class BoardMissing(Exception):
    """There is no emulated board here; the text says why."""


def recipe() -> dict[str, object]:
    """What a tree is made of; a tree of another recipe is built anew."""
    wheels = {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi")}
    return {
        "suite": SUITE,
        "wheels": wheels,
        "packages": list(PACKAGES),
        "left_out": list(LEFT_OUT),
        "wrapper": WRAPPER,
    }


def default_root() -> Path:
    """Where the tree is kept: below hwq's cache folder."""
    from hwq.cache import default_cache_dir

    return default_cache_dir() / "board"


def is_whole(root: Path) -> bool:
    """Whether ``root`` holds a finished tree of this recipe: its recipe is written before the tree gets its name."""
    try:
        return bool(json.loads((root / RECIPE).read_text()) == recipe())
    except (OSError, ValueError):
        return False


def build(root: Path) -> Path:
    """The tree at ``root``, built if it is not there. What a killed build leaves beside it goes with the next.

    Raises BoardMissing where a tool or the network is absent.
    """
    if is_whole(root):
        return root
    missing = [tool for tool in ("apt-get", "dpkg-deb", "tar") if shutil.which(tool) is None]
    if sys.platform != "linux" or missing or not KEYRING.exists():
        raise BoardMissing(f"no {', '.join(missing) or KEYRING} here: the board's packages come from Debian")
    root.parent.mkdir(parents=True, exist_ok=True)
    with _lock(root.with_name(f".{root.name}.lock")):
        if is_whole(root):  # another process built it meanwhile
            return root
        for left in root.parent.glob(f".{root.name}.*.part"):  # by builds that were killed
            shutil.rmtree(left, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".part", dir=root.parent))
        try:
            place.chmod(0o755)
            tree = place / "tree"
            tree.mkdir()
            _debian(tree, place / "apt")
            _wheels(tree, place / "wheels")
            wrapper = tree / "python"
            wrapper.write_text(WRAPPER)
            wrapper.chmod(0o755)
            # The first start compiles what it imports; the tree keeps that, and is seen to work.
            _tool([str(wrapper), "-c", "import tvm.rpc.server, tvm.exec.popen_worker, tvm.exec.rpc_server"], cwd=tree)
            (tree / RECIPE).write_text(json.dumps(recipe()))
            if root.exists():
                root.rename(place / "old")
            tree.rename(root)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return root


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Only one process at a time; the system lets go of it when its owner dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tool(command: list[str], cwd: Path) -> str:
    """The output of a command in ``cwd``. Raises BoardMissing with the last of what it said."""
    variables = {**os.environ, "LC_ALL": "C"}
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=variables)
    if found.returncode:
        said = (found.stderr.strip() or found.stdout.strip()).splitlines()[-3:]
        raise BoardMissing(f"{' '.join(command[:3])} ended with {found.returncode}: {' | '.join(said)}")
    return found.stdout


def _apt(arch: str, place: Path) -> list[str]:
    """apt-get with lists and settings of its own, for packages of ``arch``; the system's are not touched."""
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        (place / arch / folder).mkdir(parents=True, exist_ok=True)
    sources = place / arch / "etc" / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {SUITE} main\n")
    (place / arch / "status").touch()
    options = {
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Dir::Etc::sourcelist": str(sources),
        "Dir::Etc::sourceparts": "-",
        "Dir::State::status": str(place / arch / "status"),
        "Dir::State::lists": str(place / arch / "lists"),
        "Dir::Cache": str(place / arch / "cache"),
    }
    return ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]


def _debian(tree: Path, place: Path) -> None:
    """Unpack Debian's packages for arm64 into ``tree``, and qemu's one program for this machine as ``tree/qemu``."""
    own = _tool(["dpkg", "--print-architecture"], cwd=tree).strip()
    for arch, names in (("arm64", PACKAGES), (own, ("qemu-user-static",))):
        apt, archives = _apt(arch, place), place / f"{arch}-archives"
        archives.mkdir()
        _tool([*apt, "update"], cwd=archives)
        _tool([*apt, "download", *names], cwd=archives)
        for archive in sorted(archives.glob("*.deb")):
            only = [] if arch == "arm64" else [f"./{QEMU}"]
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as files:
                taken = subprocess.run(["tar", "-x", *only], cwd=tree, stdin=files.stdout, check=False)
            if taken.returncode or files.returncode:
                raise BoardMissing(f"{archive.name} cannot be unpacked")
    (tree / QEMU).rename(tree / "qemu")


def _wheels(tree: Path, place: Path) -> None:
    """Unpack the wheels that TVM's RPC server imports; TVM itself in the release that runs here."""
    place.mkdir()
    pinned = [f"{name}=={version(name)}" for name in ("apache-tvm", "apache-tvm-ffi")]
    others = ["numpy>=2,<2.5", "ml_dtypes", "psutil", "cloudpickle", "tornado", "typing_extensions"]
    _tool(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(place)),
            *("--python-version", PYTHON, "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
            *("--platform", PLATFORM, "--platform", "manylinux_2_24_aarch64", "--platform", "manylinux_2_17_aarch64"),
            *("--platform", "manylinux_2_27_aarch64", "--platform", "manylinux2014_aarch64", "--platform", "any"),
            *pinned,
            *others,
        ],
        cwd=tree,
    )
    site = tree / "usr" / "lib" / "python3" / "dist-packages"
    site.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(place.glob("*.whl")):
        with zipfile.ZipFile(wheel) as pack:
            pack.extractall(site, [name for name in pack.namelist() if not name.startswith(LEFT_OUT)])


def command(root: Path, key: str, tracker: str) -> list[str]:
    """What serves as a board of ``key``, unguarded; HWQ_BOARD_CPU in its environment names the CPU."""
    return [str(root / "python"), str(SERVER), "--inner", "--key", key, "--tracker", tracker, "--host", "127.0.0.1"]


def serve(root: Path, key: str, tracker: str, cpu: str) -> int:
    """Serve until a signal or the end of the server, whose processes all end with this one; gives its exit status."""
    from hwq.board_server import guarded

    return guarded(command(root, key, tracker), {**os.environ, "HWQ_BOARD_CPU": cpu})


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "serve"))
    parser.add_argument("--root", type=Path, default=None, help="the tree  [default: board in hwq's cache folder]")
    parser.add_argument("--key", default="board")
    parser.add_argument("--tracker", default="127.0.0.1:9190")
    parser.add_argument("--cpu", default="max")
    wanted = parser.parse_args()
    try:
        root = build((wanted.root or default_root()).resolve())
    except BoardMissing as error:
        print(f"no emulated board: {error}", file=sys.stderr)
        return 1
    if wanted.what == "build":
        print(root)
        return 0
    return serve(root, wanted.key, wanted.tracker, wanted.cpu)


if __name__ == "__main__":
    sys.exit(main())
