"""What the operating system says about this machine's processor: flags, model, cores, caches, clock.

Linux only reads (``/proc/cpuinfo``, ``/sys``); where they cannot be read the answers are empty or None, never an error,
and the caller falls back to a generic machine. LLVM's own host detection is not used: on virtual machines it can
name a CPU other than the one underneath.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SYSFS = Path("/sys/devices/system/cpu")

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    """The "key : value" lines of the first processor in a cpuinfo file; empty if it cannot be read."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            if fields:
                break
            continue
        fields.setdefault(key.strip(), value.strip())
    return fields


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The processor's feature flags, as the kernel spells them ("avx512_vnni", "asimddp"); empty if unreadable."""
    fields = _first_processor(cpuinfo)
    return frozenset(fields.get("flags", fields.get("Features", "")).split())


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """Name, family, model and stepping in one line (a virtual machine's name alone is often just "AMD EPYC")."""
    fields = _first_processor(cpuinfo)
    keys = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    parts = [fields["model name"]] if "model name" in fields else []
    parts += [f"{key} {fields[key]}" for key in keys[1:] if key in fields]
    return " ".join(parts) or "unknown"


def available_cpus() -> list[int]:
    """The processors that this process may run on, by number, rising."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity is not None else list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many processors this process may run on (at least 1)."""
    return max(1, len(available_cpus()))


def clock_hz(cpuinfo: Path = CPUINFO, sysfs: Path = SYSFS) -> float | None:
    """The highest clock the machine states; where only the present one is stated (virtual machines), that one."""
    fastest_khz = _read(sysfs / "cpu0" / "cpufreq" / "cpuinfo_max_freq")
    if fastest_khz is not None and fastest_khz.isdigit() and int(fastest_khz) > 0:
        return int(fastest_khz) * 1e3
    try:
        mhz = float(_first_processor(cpuinfo).get("cpu MHz", ""))
    except ValueError:
        return None
    return mhz * 1e6 if 0 < mhz < 1e5 else None


def cache_bytes(sysfs: Path = SYSFS) -> dict[int, int]:
    """Data or unified cache sizes by level, in bytes, as processor 0 sees them: {1: 32768, 2: 1048576, 3: 33554432}."""
    sizes: dict[int, int] = {}
    for index in sorted((sysfs / "cpu0" / "cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        found = re.fullmatch(r"(\d+)([KMG]?)", size or "")
        if level is None or not level.isdigit() or kind not in ("Data", "Unified") or found is None:
            continue
        count = int(found[1]) * _UNITS[found[2]]
        if count > 0:
            sizes[int(level)] = count
    return sizes
