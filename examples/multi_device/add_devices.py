"""How the multi-device examples are started; the Add model is that of ``examples/infer/add_model.py``.

Every example takes a model and devices, both optional::

    python examples/multi_device/multidevice_infer.py [model.om] [device ...]

Without devices it uses every one that is visible.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "infer"))

from add_model import random_pair, write_add_model

import aioais

__all__ = ["random_pair", "run"]

SHAPES = "input1:1,3,32,32;input2:1,3,32,32"


def run(example: Callable[[str, list[int]], Coroutine[Any, Any, None]]) -> None:
    """Run ``example(model, devices)`` with the model of the command line, or a static one made on the spot."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("model", nargs="?", help="an Add model; made on the spot without one")
    parser.add_argument("devices", nargs="*", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            plain = Path(folder, "add.onnx")
            write_add_model(plain)
            model = str(aioais.convert(str(plain), str(Path(folder, "add_static.onnx")), input_shape=SHAPES))
        platform = "ascend" if model.endswith(".om") else "cpu"
        devices = arguments.devices or [device.id for device in aioais.devices() if device.platform == platform]
        aioais.run(example, model, devices)
