"""Settings: number of devices, timings, memory, GIL behaviour."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

from .._machine import machine_memory

__all__ = ["ENVIRONMENT", "PER_DEVICE", "Settings"]

_log = logging.getLogger("aioais.emulator")

PER_DEVICE = frozenset({"h2d_ms", "execute_ms", "execute_row_ms", "d2h_ms", "h2d_gbps", "d2h_gbps"})
"""Settings that may differ from device to device."""

ENVIRONMENT = {
    "devices": "AIOAIS_CPU_DEVICES",
    "threads": "AIOAIS_CPU_THREADS",
    "memory_mb": "AIOAIS_CPU_MEMORY_MB",
    "run_mode": "AIOAIS_CPU_RUN_MODE",
    "soc_name": "AIOAIS_CPU_SOC",
}
"""Environment variables that the settings begin with."""

_MOST_MEMORY_MB = 65536
"""That of a large card."""

_GIL_MODES = ("real", "release", "hold")


def visible_devices(default: int) -> int:
    """Count the devices that ``ASCEND_RT_VISIBLE_DEVICES`` leaves visible.

    Parameters
    ----------
    default
        Number of devices of the machine.

    Returns
    -------
    int
        Ascending ids only; parsing stops at the first bad one, as Huawei's device pages say.
    """
    text = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if text is None:
        return default
    last = -1
    count = 0
    for token in text.split(","):
        if not token.strip().isdecimal() or not last < int(token) < default:
            break
        last = int(token)
        count += 1
    return count


def _from_environment(setting: str, default: int, least: int, most: float = math.inf) -> int:
    name = ENVIRONMENT[setting]
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if text.isdecimal() and least <= int(text) <= most:
        return int(text)
    legal = f"a whole number of at least {least}" if most == math.inf else f"a whole number from {least} to {most}"
    _log.warning("%s is %r, not %s: %d is used", name, text, legal, default)
    return default


def _memory_mb() -> int:
    """Return the memory of a device: as much as a card has, but no more than the machine."""
    total = machine_memory()[1] >> 20
    return _from_environment("memory_mb", min(_MOST_MEMORY_MB, total or _MOST_MEMORY_MB), 1)


@dataclass
class Settings:
    """Everything that ``configure`` can change."""

    devices: int = field(default_factory=lambda: visible_devices(_from_environment("devices", 4, 1)))
    """Number of devices (``AIOAIS_CPU_DEVICES``, reduced by ``ASCEND_RT_VISIBLE_DEVICES``)."""
    threads: int = field(default_factory=lambda: _from_environment("threads", 0, 0))
    """Intra-op threads of each loaded model (``AIOAIS_CPU_THREADS``); 0 = all cores, but one for small models."""
    spin: bool = False
    """Whether ONNX Runtime's threads spin between operators for as long as it likes: slightly faster for one model
    alone on an idle machine, much slower for several that share the cores. Otherwise they spin for 60 µs
    (ONNX Runtime 1.32 or newer) or not at all."""
    memory_mb: int = field(default_factory=_memory_mb)
    """Memory of a device; ``malloc`` beyond it gives 207001 (``AIOAIS_CPU_MEMORY_MB``)."""
    run_mode: int = field(default_factory=lambda: _from_environment("run_mode", 1, 0, 1))
    """1 = a host with a card; 0 = on the SoC, device memory is host memory (``AIOAIS_CPU_RUN_MODE``)."""
    soc_name: str = field(default_factory=lambda: os.environ.get(ENVIRONMENT["soc_name"], "").strip() or "CPU")
    """Name of the chip (``AIOAIS_CPU_SOC``)."""
    gil: str = "real"
    """``real``: as in pyACL's source; ``release``: every call releases it; ``hold``: none does."""
    poison: bool = True
    """Fill new and freed memory with junk."""
    h2d_ms: float = 0.0
    execute_ms: float = 0.0
    execute_row_ms: float = 0.0
    """Added to ``execute_ms`` for each row of the batch: the first dim of the first input, as it is fed."""
    d2h_ms: float = 0.0
    h2d_gbps: float = 0.0
    """1e9 bytes per second; 0 = no bandwidth term."""
    d2h_gbps: float = 0.0
    init_ms: float = 0.0
    set_device_ms: float = 0.0
    """First use of a device."""
    load_ms: float = 0.0
    malloc_us: float = 0.0
    """Each allocation and free of device or pinned memory."""

    def checked(self, name: str, value: Any) -> Any:
        """Return the value of one setting in its own type.

        Parameters
        ----------
        name
            Name of a setting.
        value
            The requested value.

        Returns
        -------
        object
            The value, converted.

        Raises
        ------
        TypeError
            There is no such setting.
        ValueError
            The value is out of range.
        """
        kinds = {f.name: type(getattr(self, f.name)) for f in fields(self)}
        if name not in kinds:
            raise TypeError(f"no setting {name!r}; there are {', '.join(sorted(kinds))}")
        if name == "gil":
            if value not in _GIL_MODES:
                raise ValueError(f"gil is {value!r}, not one of {', '.join(_GIL_MODES)}")
            return value
        kind = kinds[name]
        if kind in (int, float) and not 0 <= float(value) < math.inf:
            raise ValueError(f"{name} is {value!r}: it must be a finite number and not negative")
        converted = kind(value)
        if name == "run_mode" and converted not in (0, 1):
            raise ValueError(f"run_mode is {value!r}, not 0 or 1")
        return converted
