"""Settings: number of devices, timings, memory, GIL behaviour."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["PER_DEVICE", "Settings"]

_log = logging.getLogger("aioais.emulator")

PER_DEVICE = frozenset({"h2d_ms", "execute_ms", "execute_row_ms", "d2h_ms", "h2d_gbps", "d2h_gbps"})
"""Settings that may differ from device to device."""

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


def _from_environment(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if text.isdecimal() and int(text) >= least:
        return int(text)
    _log.warning("%s is %r, not a whole number of at least %d: %d is used", name, text, least, default)
    return default


@dataclass
class Settings:
    """Everything that ``configure`` can change."""

    devices: int = field(default_factory=lambda: visible_devices(_from_environment("AIOAIS_CPU_DEVICES", 4, 1)))
    """Number of devices (``AIOAIS_CPU_DEVICES``, reduced by ``ASCEND_RT_VISIBLE_DEVICES``)."""
    threads: int = field(default_factory=lambda: _from_environment("AIOAIS_CPU_THREADS", 0, 0))
    """Intra-op threads of each loaded model (``AIOAIS_CPU_THREADS``); 0 = all cores, but one for small models."""
    spin: bool = False
    """Whether ONNX Runtime's threads spin between operators for as long as it likes: slightly faster for one model
    alone on an idle machine, much slower for several that share the cores. Otherwise they spin for 60 µs
    (ONNX Runtime 1.32 or newer) or not at all."""
    memory_mb: int = 65536
    """Memory of a device; ``malloc`` beyond it gives 207001."""
    run_mode: int = 1
    """1 = a host with a card; 0 = on the SoC, device memory is host memory."""
    soc_name: str = "CPU"
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
