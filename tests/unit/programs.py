"""Whole programs in a process of their own, and what holds for the end of every one of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

TIMEOUT_S = 60

PRELUDE = """
import asyncio, os, signal, sys, threading, time
import numpy as np
from tests import inside
from aioais import (
    AioaisError, BrokenSessionError, ClosedError, DeviceHangError, ForkError, InferSession, WrongLoopError, emulator
)
# A shell that started the tests in the background may have had it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
PATH = sys.argv[1]
X = np.arange(8, dtype=np.float32).reshape(1, 8)
def keep_awake():
    # A signal that comes between Python's last look and the loop's sleep is seen when the loop wakes, if it does.
    asyncio.get_running_loop().call_later(0.02, keep_awake)
"""


def start(path: str, body: str, *flags: str) -> subprocess.Popen[str]:
    """Start Python with ``flags`` on ``body``, which finds the model ``path`` as ``PATH`` and a feed of it as ``X``."""
    return subprocess.Popen(
        [sys.executable, *flags, "-c", PRELUDE + textwrap.dedent(body), path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def finish(process: subprocess.Popen[str], code: int | None = 0) -> str:
    """Wait for the end; gives stderr. Nothing hangs, crashes, or writes to stdout."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"hung; stdout {out!r}, stderr {err!r}", False)
    assert out == "", out
    assert code is None or process.returncode == code, err
    assert process.returncode >= 0 or process.returncode == -signal.SIGINT, f"crashed: {process.returncode} {err}"
    for text in ("Exception ignored", "please report", "exception calling callback", "Fatal"):
        assert text not in err, err
    # With -X dev asyncio says how long steps of the loop take; what holds the loop up, other tests measure.
    return re.sub(r"^Executing <.* took [\d.]+ seconds\n", "", err, flags=re.MULTILINE)


def run(path: str, body: str, *flags: str, code: int | None = 0) -> str:
    """Start a program and wait for its end; gives stderr."""
    return finish(start(path, body, *flags), code)
