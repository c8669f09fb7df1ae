"""ONNX files on disk: reading a model without its large tensors, and writing one completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import AclNotFoundError, ConvertError, ModelError, install_hint

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["StagedModel", "import_onnx", "load_model", "staged"]

# A protobuf message cannot be larger than 2 GB; convert adds (gears, shapes) far less than the margin.
_PROTO_LIMIT = 2**31 - 2**24
_SMALL_TENSOR = 1024  # bytes; shape constants stay inside the model, where shape inference reads them


def import_onnx() -> ModuleType:
    """Import ``onnx``, which only conversion needs.

    Raises
    ------
    AclNotFoundError
        It is not installed; the message names the command that installs it.
    """
    try:
        import onnx
    except ImportError as exc:
        raise AclNotFoundError(
            f"convert needs the package onnx, which is not installed: {install_hint('cpu')}"
        ) from exc
    return onnx


def load_model(path: Path) -> ModelProto:
    """Read an ONNX model; tensors kept in other files stay there.

    Raises
    ------
    ModelError
        There is no such file, or it is not an ONNX model.
    """
    onnx = import_onnx()
    try:
        model: ModelProto = onnx.load(path, load_external_data=False)
    except OSError as exc:
        raise ModelError(
            f"cannot read the model {str(path)!r}: {exc.strerror or exc}; give the path of an ONNX file"
        ) from exc
    except Exception as exc:  # protobuf's DecodeError: its module differs between versions
        raise ModelError(f"{str(path)!r} is not an ONNX model: {exc}; export it again") from exc
    # Protobuf parses many files of other kinds as a message without fields.
    if not model.graph.output:
        raise ModelError(f"{str(path)!r} is not an ONNX model: it has no graph outputs; export it again")
    if not _has_texts(model):
        raise ModelError(f"{str(path)!r} is damaged: a name in it is not UTF-8; export it again")
    return model


def _has_texts(model: ModelProto) -> bool:
    """Return whether the names that conversion reads are UTF-8: the parser accepts any bytes."""
    values = (*model.graph.input, *model.graph.output)
    try:
        texts: list[object] = [value.name for value in (*values, *model.graph.initializer)]
        texts += [dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim]
        texts += [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    except UnicodeDecodeError:
        return False
    return all(isinstance(text, str) for text in texts)


class StagedModel:
    """A model that is written to a temporary folder beside the output and moved once it is complete.

    Parameters
    ----------
    folder
        Temporary folder on the same file system as the output.
    output
        The final path of the model; its data files go to the same folder.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.path = folder / output.name
        self._output = output
        self._data: list[str] = []

    def adopt_data(self, model: ModelProto, source_folder: Path) -> None:
        """Copy the files of the model's external tensors, and point the model to the copies.

        Parameters
        ----------
        model
            Changed in place. If it is too large for one protobuf message, its tensors are moved to a file as well.
        source_folder
            The folder that the locations in ``model`` are relative to.

        Raises
        ------
        ModelError
            A data file is missing or is outside the model's folder.
        """
        places: dict[str, list[Any]] = {}
        for tensor in _external_tensors(model):
            for entry in tensor.external_data:
                if entry.key == "location":
                    places.setdefault(entry.value, []).append(entry)
        taken = {os.path.realpath(source_folder / location) for location in places}
        for location, entries in places.items():
            source = source_folder / location
            # The rule of the onnx package: a model must not refer to files outside its folder.
            if Path(location).is_absolute() or ".." in Path(location).parts:
                raise ModelError(
                    f"the model keeps tensors in {location!r}; expected a file in the model's folder: "
                    "export the model again with its data beside it"
                )
            if not source.is_file():
                raise ModelError(
                    f"the model keeps tensors in {location!r}, which is not in {str(source_folder)!r}: "
                    "put the file beside the model"
                )
            name = self._new_data_name(taken)
            shutil.copyfile(source, self.path.with_name(name))
            for entry in entries:
                entry.value = name
        if model.ByteSize() > _PROTO_LIMIT:
            self._move_tensors_out(model, self._new_data_name(taken))

    def write(self, model: ModelProto) -> None:
        """Write the model into the folder, replacing an earlier version."""
        self.path.write_bytes(model.SerializeToString())

    def publish(self) -> None:
        """Move all files to their final paths; the model last, so that it never points to a missing file."""
        for name in self._data:
            os.replace(self.path.with_name(name), self._output.with_name(name))
        os.replace(self.path, self._output)

    def _new_data_name(self, taken: Iterable[str]) -> str:
        """Return a name for a data file that none of the source's own files has."""
        number = 0
        while True:
            name = f"{self._output.name}.{number}.data" if number else f"{self._output.name}.data"
            number += 1
            if name not in self._data and os.path.realpath(self._output.with_name(name)) not in taken:
                self._data.append(name)
                return name

    def _move_tensors_out(self, model: ModelProto, name: str) -> None:
        from onnx import external_data_helper as external

        external.convert_model_to_external_data(model, location=name, size_threshold=_SMALL_TENSOR)
        external.write_external_data_tensors(model, str(self.path.parent))


@contextmanager
def staged(output: Path) -> Iterator[StagedModel]:
    """Yield a temporary place to build ``output`` in; nothing remains of it if the block fails.

    Parameters
    ----------
    output
        The file to write. An existing one is replaced if the block ends without an error.
    """
    try:
        folder = tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent)
    except OSError as exc:
        raise ConvertError(
            f"cannot write output={str(output)!r}: {exc.strerror or exc}; "
            "give a path in a folder that exists and can be written to"
        ) from exc
    try:
        model = StagedModel(Path(folder), output)
        yield model
        model.publish()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _external_tensors(model: ModelProto) -> Iterator[Any]:
    """Yield each tensor of the model, subgraphs and functions included, that is kept in another file."""
    from onnx import TensorProto

    graphs: list[Any] = [model.graph]
    nodes: list[Any] = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        tensors: list[Any] = []
        if graphs:
            graph = graphs.pop()
            nodes.extend(graph.node)
            tensors.extend(graph.initializer)
            for sparse in graph.sparse_initializer:
                tensors += [sparse.values, sparse.indices]
        else:
            for attribute in nodes.pop().attribute:
                tensors += [attribute.t, *attribute.tensors]
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        yield from (tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)
