"""What the programs find: ais_bench's modules, and .om names whose .onnx twins lie beside them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import inside
from tests.unit.conftest import Models, no_handle_left

import aioais
from aioais import compat

__all__ = ["no_handle_left"]


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Have ``ais_bench`` found, and forget it afterwards."""
    finders, platform = list(sys.meta_path), inside.compat_platform()
    compat.install(platform="cpu")
    try:
        yield
    finally:
        sys.meta_path[:] = finders
        inside.set_compat_platform(platform)
        for name in inside.COMPAT_MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models that the programs name."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("models")
    models = Models(folder)
    whole = models.add(["n", 3, "h", "w"], name="add_dymshape")

    def convert(name: str, rest: str, **options: str) -> None:
        spec = f"input1:{rest};input2:{rest}"
        aioais.convert(whole, str(folder / f"{name}.onnx"), input_shape=spec, **options)

    convert("add_bs1", "1,3,32,32")
    convert("add_dymbatch", "-1,3,32,32", dynamic_batch_size="1,2,4,8")
    convert("add_dymhw", "1,3,-1,-1", dynamic_image_size="32,32;64,64")
    convert("add_dymdims", "-1,3,-1,-1", dynamic_dims="1,32,32,1,32,32;4,64,64,4,64,64")
    models.conv([1, 3, 32, 32], name="conv_bs1")
    return folder
