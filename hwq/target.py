"""A machine to compile for: what TVM needs, cores, caches, rates, and the ways it can compute.

Machines are data: one .toml each in ``targets/``, read by ``hwq.target_file``. ``Target.load("host")`` is the shipped
x86 file that fits this machine's CPU flags, with the machine's own cores, clock and caches in place of the file's.
Which schemes a layer may take comes from a target's ``compute`` rows and from nowhere else.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwq import cpu
from hwq.errors import HwqError
from hwq.graph import ANCHORS
from hwq.scheme import SCHEMES
from hwq.target_file import read_target_file

if TYPE_CHECKING:
    import tvm

TARGETS_AT = Path(__file__).parent / "targets"
SCHEDULES_AT = Path(__file__).parent / "schedules"
# What a plan writes behind the name of a machine that is not found by it.
FROM_FILE = " (a file)"
# What the CPU model of a board that is an emulator begins with.
EMULATED = "emulated "
# The files that "host" may become, best first: the first whose flags the CPU has.
HOST_TIERS = ("x86-amx", "x86-avx512-bf16", "x86-avx512-vnni", "x86-avx-vnni", "x86-avx2", "x86-generic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """One way to compute: these operators, with these weights and activations, on this instruction.

    weight: "int8", "int4", "float32", "bfloat16", or "none" for operators without weights. macs_per_cycle is for
    one core; for operators that multiply nothing it counts output elements. native: False where the type is unpacked or
    widened first. schedules: the files of ``schedules/`` that use the row, in order; empty where none does yet.
    """

    ops: tuple[str, ...]
    weight: str
    act: str
    instruction: str
    macs_per_cycle: float
    native: bool
    schedules: tuple[str, ...]
    source: str

    def lists(self, op: str) -> bool:
        return op in self.ops or "*" in self.ops


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A machine. Read rates from L2 and L3 are one core's; the memory's is shared by all cores.

    l3_bytes and l3_bytes_per_s are 0 where the machine has no third level. On a GPU a "core" is a multiprocessor and
    l1_bytes its shared memory. activation_storage: "uint8" holds q + 128, "int8" holds q (see ``activation_offset``).
    cpu_flags: what the compiled code needs, as /proc/cpuinfo spells it. sources: (field, where the number is from).
    device: how the machine is reached: "local", or a board's KEY or KEY@HOST:PORT (see ``hwq.device``). cpu_model is
    set by "host", and where a board was asked.
    """

    name: str
    kind: str
    mcpu: str
    cores: int
    clock_hz: float
    vector_bits: int
    l1_bytes: int
    l2_bytes: int
    l2_bytes_per_s: float
    memory_bytes_per_s: float
    parallel_overhead_s: float
    compute: tuple[Compute, ...]
    description: str = ""
    mtriple: str | None = None
    mattr: tuple[str, ...] = ()
    l3_bytes: int = 0
    l3_bytes_per_s: float = 0.0
    activation_storage: str = "int8"
    requantize: str = "float32"
    cpu_flags: tuple[str, ...] = ()
    builds: bool = False
    device: str = "local"
    cpu_model: str = ""
    sources: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @staticmethod
    def load(which: str | Path | Target = "host") -> Target:
        """The target called ``which``: a shipped name, "host", or a path to a .toml; a Target is given back as it is.

        Raises HwqError "target-unknown" (with the names there are), "target-missing", "target-invalid".
        """
        if isinstance(which, Target):
            return which
        if not isinstance(which, str | Path):
            raise HwqError("target-unknown", f"target is {which!r}; accepted: {_accepted()}")
        if which == "host":
            return host()
        if isinstance(which, Path) or which.endswith(".toml") or "/" in which or "\\" in which:
            return _load_file(Path(which))
        if which not in _shipped():
            near = difflib.get_close_matches(which, ("host", *_shipped()), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise HwqError("target-unknown", f"target {which!r} is not known{hint}; accepted: {_accepted()}")
        return _load_file(TARGETS_AT / f"{which}.toml")

    @property
    def activation_offset(self) -> int:
        """What storage adds to a quantized activation: 128 for uint8, 0 for int8."""
        return 128 if self.activation_storage == "uint8" else 0

    @property
    def instructions(self) -> frozenset[str]:
        """Every instruction that some compute row names."""
        return frozenset(row.instruction for row in self.compute)

    def lanes(self, dtype: str = "float32") -> int:
        """Elements of ``dtype`` ("float32", "int32", "int16", "int8", "uint8") in one vector register."""
        return self.vector_bits // int(dtype.lstrip("uintfloa"))

    def instruction(self, op: str, weight: str, act: str) -> Compute | None:
        """The first row for ``op`` with these types; rows of weight "none" serve any integer weight."""
        for row in self.compute:
            if row.lists(op) and row.act == act and row.weight in (weight, "none"):
                return row
        return None

    def schemes_for(self, op: str) -> tuple[str, ...]:
        """The schemes in which this machine can compute ``op``; without weights int8 is w8a8. In SCHEMES' order."""
        rows = [("int8" if row.weight == "none" else row.weight, row.act) for row in self.compute if row.lists(op)]
        return tuple(name for name, scheme in SCHEMES.items() if (scheme.weight_type, scheme.act_type) in rows)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes in which this machine can compute some operator with weights."""
        able = {name for op in ANCHORS for name in self.schemes_for(op)}
        return tuple(name for name in SCHEMES if name in able)

    def on(self, device: str) -> Target:
        """The same machine, reached by ``device``: "local", KEY, or KEY@HOST:PORT."""
        return replace(self, device=device)

    @property
    def emulated(self) -> bool:
        """Whether the board is an emulator: what it computes is right, and how long it takes means nothing."""
        return self.cpu_model.startswith(EMULATED)

    @property
    def architecture(self) -> str:
        """The kind of CPU, as LLVM and Linux spell it: "x86_64" where the file gives no triple, "aarch64"."""
        return "x86_64" if self.mtriple is None else self.mtriple.split("-")[0]

    def missing_flags(self, flags: Collection[str] | None = None) -> tuple[str, ...]:
        """What this target's code needs and a CPU with ``flags`` (None: this one) lacks; empty if it can run.

        Where this CPU is of another kind altogether, its architecture comes first.
        """
        other = flags is None and self.architecture != _architecture_here()
        have = cpu.cpu_flags() if flags is None else flags
        return (*([self.architecture] if other else []), *(flag for flag in self.cpu_flags if flag not in have))

    def require_builds(self) -> None:
        """Raises HwqError "target-no-build" for a machine that hwq has no kernels for yet."""
        if not self.builds:
            able = ", ".join(["host", *(name for name in _shipped() if _load_file(TARGETS_AT / f"{name}.toml").builds)])
            raise HwqError("target-no-build", f"target {self.name} cannot be built yet; targets that can: {able}")

    def tvm(self) -> tvm.target.Target:
        """The same machine in TVM's terms (imports TVM)."""
        from tvm.target import Target as TvmTarget

        if self.kind == "cuda":
            return TvmTarget({"kind": "cuda", "arch": self.mcpu})
        config: dict[str, Any] = {"kind": self.kind, "mcpu": self.mcpu, "num-cores": self.cores}
        if self.mtriple is not None:
            config["mtriple"] = self.mtriple
        if self.mattr:
            config["mattr"] = list(self.mattr)
        return TvmTarget(config)

    @property
    def known_as(self) -> str:
        """The name by which ``load`` finds this machine; with FROM_FILE behind it where it finds none, or another."""
        here = self.name == "host" and self.cpu_model and self.device == "local"
        plain = self if here else replace(self, device="local", cpu_model="")  # wherever it is reached
        shipped = self.name in _shipped() and _load_file(TARGETS_AT / f"{self.name}.toml") == plain
        return self.name if shipped or here else f"{self.name}{FROM_FILE}"

    @property
    def fingerprint(self) -> str:
        """16 hex digits naming the machine that measures for this target: CPU model, code generation, cores and caches.

        Records of another fingerprint are foreign. Tool versions are not in it. A local target measures here, so this
        machine's CPU model counts even if a file described the machine.
        """
        measured_on = self.cpu_model or (cpu.cpu_model() if self.builds and self.device == "local" else self.name)
        facts = (self.kind, self.mtriple, self.mcpu, self.mattr, sorted(self.cpu_flags), self.cores, self.vector_bits)
        caches = (self.l1_bytes, self.l2_bytes, self.l3_bytes)
        text = json.dumps([measured_on, facts, caches, self.activation_storage, self.requantize])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` reads them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Target:
        """The target that ``to_dict`` gave. Raises HwqError "target-invalid" for keys it does not know or lacks."""
        try:
            plain: dict[str, Any] = {key: tuple(it) if isinstance(it, list) else it for key, it in values.items()}
            rows = tuple(
                Compute(**{**row, "ops": tuple(row["ops"]), "schedules": tuple(row["schedules"])})
                for row in plain["compute"]
            )
            sources = tuple((str(key), str(source)) for key, source in plain.get("sources", ()))
            return Target(**{**plain, "compute": rows, "sources": sources})
        except (TypeError, KeyError, ValueError) as error:
            known = ", ".join(item.name for item in fields(Target))
            raise HwqError("target-invalid", f"stored target is wrong: {error}; accepted keys: {known}") from error


def _architecture_here() -> str:
    machine = platform.machine().lower()
    return "x86_64" if machine == "amd64" else machine


def _shipped() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in TARGETS_AT.glob("*.toml")))


def _accepted() -> str:
    return f"host, {', '.join(_shipped())}, or a path to a .toml file"


def _load_file(path: Path) -> Target:
    values = read_target_file(path, SCHEDULES_AT)
    compute = tuple(Compute(**row) for row in values.pop("compute"))
    return Target(compute=compute, **values)


def names() -> tuple[tuple[str, str], ...]:
    """(name, one-line description) of every shipped target, sorted by name."""
    return tuple((name, _load_file(TARGETS_AT / f"{name}.toml").description) for name in _shipped())


def host(flags: Collection[str] | None = None, *, caches: Mapping[int, int] | None = None) -> Target:
    """This machine: the best tier whose flags are all in ``flags`` (None: read them), with the machine's own numbers.

    Where flags cannot be read the tier is x86-generic; a number that cannot be read stays the file's.
    Raises HwqError "target-host" on a processor that is not x86-64.
    """
    machine = _architecture_here()
    if machine != "x86_64":
        raise HwqError("target-host", f"this machine is {machine!r}; host works on x86_64 only: name a target")
    found = cpu.cpu_flags() if flags is None else flags
    tiers = (_load_file(TARGETS_AT / f"{name}.toml") for name in HOST_TIERS)
    tier = next((tier for tier in tiers if not tier.missing_flags(found)), _load_file(TARGETS_AT / "x86-generic.toml"))
    sizes = cpu.cache_bytes() if caches is None else caches
    read: dict[str, Any] = {"cores": cpu.cores(), "clock_hz": cpu.clock_hz()}
    read |= {f"l{level}_bytes": sizes.get(level) for level in (1, 2, 3)}
    own = {key: value for key, value in read.items() if value is not None}
    if sizes and 3 not in sizes:
        own["l3_bytes"] = 0
    sources = tuple((key, "read from this machine" if key in own else source) for key, source in tier.sources)
    model = cpu.cpu_model()
    return replace(tier, name="host", description=f"{tier.name} on {model}", cpu_model=model, sources=sources, **own)
