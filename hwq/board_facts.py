"""What a board is: processor, instructions, cores, and whether it is an emulator; asked through TVM's runtime alone.

TVM's server sends whole files, but not those that have no size, as Linux's /proc. So a small function is compiled for
the board, which reads such a file there by the C library, and asks it for the instructions that the kernel names
(``getauxval``). What kind of CPU it has to be compiled for is in the head of the program that runs there.

Three signs tell an emulator (qemu's user mode): /proc/cpuinfo describes a CPU of another kind than runs the program
(qemu before 8.1 shows the host's); the kernel says that it is one for another kind (/proc/sys/kernel/arch, Linux 6.1);
or the process bears qemu's name. A whole emulated machine shows none of them.
"""

from __future__ import annotations

import functools
import platform
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwq import cpu
from hwq.compile_kernel import compile_code, link
from hwq.errors import HwqError
from hwq.files import scratch
from hwq.target import EMULATED

_FASTEST = "/sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"
_PATH_BYTES, _PART_BYTES, _FILE_BYTES = 256, 1 << 15, 1 << 20
# ELF's e_machine, 18 bytes into a program; and a line of /proc/cpuinfo that only this kind of CPU has.
_MACHINES = {62: ("x86_64", "vendor_id"), 183: ("aarch64", "CPU implementer")}
# Linux's arch/arm64/include/uapi/asm/hwcap.h: names of the bits of AT_HWCAP and AT_HWCAP2, from bit 0.
_HWCAP = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid"),
    *("asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm"),
    *("dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg"),
)
_HWCAP2 = (
    *("dcpodp", "sve2", "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2", "frint", "svei8mm"),
    *("svef32mm", "svef64mm", "svebf16", "i8mm", "bf16", "dgh", "rng", "bti"),
)
_AT_HWCAP, _AT_HWCAP2 = 16, 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A machine as it says of itself.

    Where an Arm board's processors are of several kinds, cores, model and clock are those of the fastest, on which TVM
    runs kernels. cpu_model begins with "emulated " where ``emulated``. arch: as LLVM spells it ("aarch64"). flags: the
    kernel's names ("asimddp", "i8mm"). clock_hz: the highest that Linux states, None where it states none, and for an
    emulator. runtime: TVM's version there, None where it does not tell.
    """

    cpu_model: str
    arch: str
    flags: frozenset[str]
    cores: int
    emulated: bool
    clock_hz: float | None
    runtime: str | None


def local_facts() -> Facts:
    """This machine's."""
    return Facts(
        cpu_model=cpu.cpu_model(),
        arch=platform.machine().lower(),
        flags=cpu.cpu_flags(),
        cores=cpu.cores(),
        emulated=False,
        clock_hz=cpu.clock_hz(),
        runtime=tvm.__version__,
    )


def board_facts(session: Any, name: str) -> Facts:
    """A board's, by a session with it. Raises HwqError "device-other" for a CPU of a kind that hwq does not know."""
    machine = int.from_bytes(bytes(session.download("/proc/self/exe"))[18:20], "little")
    if machine not in _MACHINES:
        known = ", ".join(arch for arch, _ in _MACHINES.values())
        raise HwqError("device-other", f"board {name!r} is a machine of ELF's kind {machine}; accepted: {known}")
    arch, own_line = _MACHINES[machine]
    library = f"hwq_{secrets.token_hex(8)}.so"  # over a file that is loaded there none may be written
    session.upload(bytearray(reader(arch)), library)
    module = session.load_module(library)
    context = session.cpu()
    info = _read(module, context, "/proc/cpuinfo")
    comm = _read(module, context, "/proc/self/comm")
    kernel = _read(module, context, "/proc/sys/kernel/arch").strip()
    fastest_khz = {number: _read(module, context, _FASTEST.format(number)).strip() for number in processors(info)}
    big, clock_hz = fastest(info, fastest_khz)
    if arch != "aarch64":  # elsewhere some of a kind may be clocked higher than the others of it
        big = tuple(fastest_khz)
    foreign_kernel = kernel in {arch for arch, _ in _MACHINES.values()} - {arch}
    emulated = re.search(rf"^{own_line}\s*:", info, re.MULTILINE) is None or foreign_kernel or comm.startswith("qemu")
    with scratch() as folder:
        (folder / "cpuinfo").write_text(processors(info)[big[0]] if big else info)
        model, flags = cpu.cpu_model(folder / "cpuinfo"), cpu.cpu_flags(folder / "cpuinfo")
    if arch == "aarch64":
        flags = _hwcaps(module, context)
    return Facts(
        cpu_model=f"{EMULATED}{arch}" if emulated else model,
        arch=arch,
        flags=flags,
        cores=max(1, len(big)),
        emulated=emulated,
        clock_hz=None if emulated else clock_hz,
        runtime=_runtime(session, _read(module, context, "/proc/self/maps")),
    )


def processors(info: str) -> dict[int, str]:
    """The lines of each processor in /proc/cpuinfo, by its number."""
    found = {}
    for block in re.split(r"\n\s*\n", info):
        number = re.search(r"^processor\s*:\s*(\d+)\s*$", block, re.MULTILINE)
        if number is not None:
            found[int(number[1])] = block.strip() + "\n"
    return found


def fastest(info: str, khz: Mapping[int, str]) -> tuple[tuple[int, ...], float | None]:
    """The processors with the highest clock, rising, and it in Hz; all and None where the clock of one is not stated.

    info: /proc/cpuinfo; khz: what Linux states of each processor there (cpuinfo_max_freq), "" if nothing.
    """
    numbers = tuple(sorted(processors(info)))
    clocks = {number: int(khz[number]) for number in numbers if khz[number].isdecimal()}
    if not clocks or len(clocks) < len(numbers):
        return numbers, None
    highest = max(clocks.values())
    return tuple(number for number in numbers if clocks[number] == highest), highest * 1e3


def _read(module: Any, context: Any, path: str) -> str:
    """The text of a file there; empty if there is none."""
    name = np.zeros(_PATH_BYTES, np.uint8)
    name[: len(path)] = np.frombuffer(path.encode(), np.uint8)
    there = tvm.runtime.tensor(name, context)
    part = tvm.runtime.empty((_PART_BYTES,), "uint8", context)
    text = b""
    while len(text) < _FILE_BYTES:
        state = tvm.runtime.tensor(np.array([len(text), 0]), context)
        module["read_file"](there, part, state)
        count = int(state.numpy()[0])
        if count <= 0:
            break
        text += part.numpy()[:count].tobytes()
    return text.decode("utf-8", "replace")


def _hwcaps(module: Any, context: Any) -> frozenset[str]:
    found = tvm.runtime.empty((2,), "int64", context)
    module["hwcaps"](found)
    pairs = zip((_HWCAP, _HWCAP2), found.numpy().tolist(), strict=True)
    return frozenset(name for names, bits in pairs for bit, name in enumerate(names) if bits >> bit & 1)


def _runtime(session: Any, maps: str) -> str | None:
    """TVM's version: its Python package says it, which stands around the runtime that is loaded."""
    found = re.search(r"(/\S.*)/lib/libtvm_runtime\.so$", maps, re.MULTILINE)
    if found is None:
        return None
    try:
        text = bytes(session.download(f"{found[1]}/_version.py")).decode("utf-8", "replace")
    except RuntimeError:
        return None
    version = re.search(r"^__version__\s*=.*?'([^']+)'", text, re.MULTILINE)
    return None if version is None else version[1]


@functools.cache
def reader(arch: str) -> bytes:
    """A library for ``arch`` with two functions for the C library there.

    "read_file" (path, part, state) reads from byte state[0], and leaves there how many bytes it read; state[1] is its
    own. "hwcaps" (found) gives AT_HWCAP and AT_HWCAP2.
    """

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("read_file")
        path = T.arg("path", T.buffer((_PATH_BYTES,), "uint8"))
        part = T.arg("part", T.buffer((_PART_BYTES,), "uint8"))
        state = T.arg("state", T.buffer((2,), "int64"))
        T.buffer_store(state, T.call_extern("int32", "open", path.data, 0).astype("int64"), [1])
        read = T.call_extern("int64", "pread", state[1], part.data, T.int64(_PART_BYTES), state[0])
        T.buffer_store(state, read, [0])
        T.evaluate(T.call_extern("int32", "close", state[1]))
    functions = {"read_file": builder.get()}
    if arch == "aarch64":
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("hwcaps")
            found = T.arg("found", T.buffer((2,), "int64"))
            for place, number in enumerate((_AT_HWCAP, _AT_HWCAP2)):
                T.buffer_store(found, T.call_extern("int64", "getauxval", T.int64(number)), [place])
        functions["hwcaps"] = builder.get()
    functions = {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
    target = tvm.target.Target({"kind": "llvm", "mtriple": f"{arch}-linux-gnu", "mcpu": "generic"})
    with scratch() as folder:
        code, library = folder / "facts.o", folder / "facts.so"
        code.write_bytes(compile_code(functions, None, target))
        link(library, [code])
        return library.read_bytes()
