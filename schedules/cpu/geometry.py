"""The shape of a convolution as its kernel sees it, and the arithmetic form it takes on a target.

A dense layer, and a 1x1 convolution that neither pads nor strides, is a convolution over one row of pixels. Rows are
flat: pixel and channel are one axis, since the reduction walks along it wherever the kernel's columns are neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwq.schedules.arm import ways as arm
from hwq.schedules.cpu import lookup
from hwq.schedules.cpu.ways import Way
from hwq.schedules.x86 import ways as x86
from hwq.scheme import SCHEMES
from hwq.target import Compute, Target
from hwq.workload import Workload

# Every instruction of a compute row that the templates know.
WAYS: dict[str, Way] = {**x86.WAYS, **arm.WAYS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A convolution (batch, in_h, in_w * in_c) -> (batch, out_h, out_w, out_c).

    columns: kernel columns that are walked one by one; 1 where they are neighbours in memory (one group, no dilation)
    and so part of the run. run: contiguous input elements per step of the walk.
    """

    batch: int
    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_top: int
    pad_left: int
    padded: bool
    groups: int

    @property
    def group_in(self) -> int:
        return self.in_c // self.groups

    @property
    def group_out(self) -> int:
        return self.out_c // self.groups

    @property
    def columns(self) -> int:
        return 1 if self.groups == 1 and self.dilation_w == 1 else self.kernel_w

    @property
    def run(self) -> int:
        return self.kernel_w * self.in_c if self.columns == 1 and self.groups == 1 else self.group_in

    @property
    def is_product(self) -> bool:
        """Whether it is a product of ``in_w`` rows with a matrix (``_row_of_pixels``)."""
        flat = self.batch == self.in_h == self.kernel_h == self.kernel_w == self.groups == 1
        return flat and self.in_w == self.out_w and not self.padded

    @property
    def macs(self) -> int:
        return self.batch * self.out_h * self.out_w * self.out_c * self.kernel_h * self.kernel_w * self.group_in

    def rows(self, out_rows: int) -> int:
        """Input rows, padding included, that ``out_rows`` output rows read."""
        return (out_rows - 1) * self.stride_h + (self.kernel_h - 1) * self.dilation_h + 1

    def row_elements(self, out_pixels: int, r: int) -> int:
        """Elements of an input row, padding included, that ``out_pixels`` outputs read in groups of ``r``."""
        last = ((out_pixels - 1) * self.stride_w + (self.columns - 1) * self.dilation_w) * self.in_c
        return last + (self.groups - 1) * self.group_in + math.ceil(self.run / r) * r


def geometry(workload: Workload) -> Geometry:
    """The geometry of a conv2d, depthwise_conv2d or dense workload."""
    if workload.op == "dense":
        pixels = math.prod(workload.input_shapes[0][:-1])
        return _row_of_pixels(pixels, workload.input_shapes[0][-1], workload.output_shape[-1])
    (batch, in_h, in_w, in_c), (_, out_h, out_w, out_c) = workload.input_shapes[0], workload.output_shape
    padding, strides, kernel = workload.attr("padding"), workload.attr("strides"), workload.attr("kernel")
    dilation = workload.attr("dilation")
    groups = in_c if workload.op == "depthwise_conv2d" else workload.attr("groups")
    if tuple(kernel) == tuple(strides) == (1, 1) and not any(padding) and groups == 1:
        return _row_of_pixels(batch * in_h * in_w, in_c, out_c)
    return Geometry(
        batch=batch,
        in_h=in_h,
        in_w=in_w,
        in_c=in_c,
        out_h=out_h,
        out_w=out_w,
        out_c=out_c,
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        stride_h=strides[0],
        stride_w=strides[1],
        dilation_h=dilation[0] if kernel[0] > 1 else 1,
        dilation_w=dilation[1] if kernel[1] > 1 else 1,
        pad_top=padding[0],
        pad_left=padding[1],
        padded=any(padding),
        groups=groups,
    )


def _row_of_pixels(pixels: int, in_c: int, out_c: int) -> Geometry:
    return Geometry(
        batch=1,
        in_h=1,
        in_w=pixels,
        in_c=in_c,
        out_h=1,
        out_w=pixels,
        out_c=out_c,
        kernel_h=1,
        kernel_w=1,
        stride_h=1,
        stride_w=1,
        dilation_h=1,
        dilation_w=1,
        pad_top=0,
        pad_left=0,
        padded=False,
        groups=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How products are formed: ``r`` neighbouring activations of type ``act`` times weights into ``acc`` sums.

    stored: the activations' type in memory; act: their type in the sum (int16 where they are widened first, uint16
    where they are rounded to bfloat16). weight: "int8", "int4", "float32" or "uint16", the bits of a bfloat16. vectors:
    the lanes a vector of sums may have, widest first. registers: how many vector registers there are. instruction: of
    the target's compute row. mnemonic: what the assembly must hold. reach, parts, signed_nibbles: see ``Way``.
    """

    instruction: str
    mnemonic: str | None
    stored: str
    act: str
    weight: str
    acc: str
    r: int
    vectors: tuple[int, ...]
    registers: int
    intrinsic: bool
    shuffles: tuple[str, ...] = ()
    reach: int = 0
    parts: int = 1
    signed_nibbles: bool = False

    @property
    def neon(self) -> bool:
        """Whether the instruction is one of NEON's."""
        return self.instruction.startswith("neon.")

    @property
    def narrows(self) -> bool:
        """Whether there is an intrinsic that makes bytes of floats as they are stored (``native.narrow``)."""
        return self.stored == ("int8" if self.neon else "uint8")

    @property
    def item_bytes(self) -> int:
        """Bytes of one element of the input as it is multiplied."""
        return {"float32": 4, "int16": 2, "uint16": 2}.get(self.act, 1)

    @property
    def bf16(self) -> bool:
        """Whether what is multiplied is bfloat16, held as its bits."""
        return self.weight == "uint16"

    @property
    def weight_item_bytes(self) -> int:
        """Bytes of one weight as it is multiplied, int4 unpacked."""
        return {"float32": 4, "uint16": 2}.get(self.weight, 1)


def compute_row(workload: Workload, target: Target) -> Compute | None:
    """The target's way to compute an anchor workload on vectors: the first on an instruction that has a form here."""
    scheme = SCHEMES[workload.scheme]
    types = (scheme.weight_type, scheme.act_type)
    rows = (row for row in target.compute if row.lists(workload.op) and (row.weight, row.act) == types)
    return next((row for row in rows if row.instruction in WAYS), None)


def form(workload: Workload, target: Target, *, grouped: bool = False) -> Form | None:
    """The form of ``workload`` on ``target``; None if no compute row of the target names one that this family has.

    grouped: of schemes with groups of inputs, else of the others: their sums are formed differently.
    """
    row, scheme = compute_row(workload, target), SCHEMES[workload.scheme]
    if scheme.weight is not None and scheme.act is None:  # integer weights with floats: ``weight_only``
        return None
    if row is None or grouped != (SCHEMES[workload.scheme].group_size is not None):
        return None
    way = WAYS[row.instruction]
    stored = target.activation_storage if scheme.integer else "float32"
    if way.stored not in (None, stored):
        return None
    return Form(
        instruction=row.instruction,
        mnemonic=way.mnemonic,
        stored=stored,
        act=way.widened or stored,
        weight="uint16" if scheme.weight_type == "bfloat16" else scheme.weight_type.removesuffix("_g64"),
        acc=scheme.accum,
        r=way.r,
        vectors=tuple(lanes for lanes in (16, 8, 4) if lanes <= min(way.lanes, target.lanes("int32"))),
        registers=way.registers or (32 if target.vector_bits == 512 else 16),
        intrinsic=way.r > 1,
        shuffles=lookup.instructions(target),
        reach=way.reach,
        parts=way.parts,
        signed_nibbles=way.signed_nibbles,
    )


def no_form(workload: Workload, target: Target) -> str:
    """Why ``form`` has none, for a family that takes no groups of inputs."""
    if SCHEMES[workload.scheme].group_size is not None:
        return "its weights have a scale for each group of inputs"
    return f"no form for it on {target.name}"
