"""The tensor intrinsics of a form: x86's or NEON's, by its instruction."""

from __future__ import annotations

from hwq.schedules.arm import intrinsics as arm_intrinsics
from hwq.schedules.arm import narrow as arm_narrow
from hwq.schedules.cpu.geometry import Form
from hwq.schedules.x86 import intrinsics as x86_intrinsics
from hwq.schedules.x86 import narrow as x86_narrow


def dot(found: Form, lanes: int, *, held: bool = False, in_registers: bool = False) -> str:
    """The name of the dot product of a form with ``lanes`` sums. held: its activations are part of a register;
    in_registers: its weights were just unpacked.
    """
    if found.neon:
        return arm_intrinsics.dot(found.instruction, held=held, in_registers=in_registers)
    return x86_intrinsics.dot(found.instruction, lanes, in_registers=in_registers)


def narrow(dtype: str, lanes: int, vectors: int, pixels: int = 1) -> str:
    """The name of the intrinsic that ends an integer epilogue in ``dtype``: int8 are NEON's; see ``Form.narrows``."""
    return arm_narrow.narrow(vectors, pixels) if dtype == "int8" else x86_narrow.narrow(lanes, vectors, pixels)
