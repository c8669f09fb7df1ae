"""Running ``atc``, the offline compiler of CANN, to make ``.om`` files.

Source: the ATC documentation of ``--framework`` (5 is ONNX), ``--output`` (``atc`` appends ``.om``, in some cases after
the system and the processor) and ``--soc_version``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import AclNotFoundError, ConvertError, ModelError

__all__ = ["run_atc"]

_ONNX = "5"
_SHOWN = 8000  # last characters of atc's output that an error shows: the message is at the end


def run_atc(model: Path, output: Path, soc_version: str | None, flags: Sequence[str]) -> Path:
    """Compile an ONNX model with ``atc``.

    Parameters
    ----------
    model
        The ONNX file.
    output
        The ``.om`` file to write, with or without its ending.
    soc_version
        The chip, the value of ``--soc_version``.
    flags
        The checked options, as arguments of ``atc``.

    Returns
    -------
    Path
        The file that ``atc`` wrote: its name may contain the system and the processor.

    Raises
    ------
    AclNotFoundError
        ``atc`` is not on the PATH.
    ConvertError
        There is no ``soc_version``, or ``atc`` failed; the message ends with the output of ``atc``.
    ModelError
        There is no such model file.
    """
    if not soc_version:
        raise ConvertError(
            f'got soc_version={soc_version!r}; expected the chip that the .om is for, such as "Ascend310P3": '
            'npu-smi info shows its name, put "Ascend" before it'
        )
    if not model.is_file():
        raise ModelError(f"cannot read the model {str(model)!r}: no such file; give the path of an ONNX file")
    atc = shutil.which("atc")
    if atc is None:
        raise AclNotFoundError(
            "atc, the model compiler of the CANN toolkit, is not on the PATH: install CANN, then run "
            "'source /usr/local/Ascend/ascend-toolkit/set_env.sh' (from CANN 8.5: "
            "'source /usr/local/Ascend/cann/set_env.sh')"
        )
    base = output.with_suffix("") if output.suffix == ".om" else output
    arguments = [
        atc,
        f"--framework={_ONNX}",
        f"--model={model}",
        f"--output={base}",
        f"--soc_version={soc_version}",
        *flags,
    ]
    before = _candidates(base)
    try:
        done = subprocess.run(  # noqa: S603 - a list, no shell; the options have been parsed
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as exc:
        raise AclNotFoundError(
            f"{atc} does not start: {exc}; source set_env.sh of a CANN that is made for this machine"
        ) from exc
    printed = done.stdout.strip()[-_SHOWN:] or "(no output)"
    if done.returncode != 0:
        raise ConvertError(
            f"atc failed with exit code {done.returncode} on {str(model)!r}; "
            f"correct what its output names and try again:\n{printed}"
        )
    written = [path for path, stamp in _candidates(base).items() if before.get(path) != stamp]
    if not written:
        raise ConvertError(
            f"atc ended without an error but wrote no {base.name}.om in {str(base.parent)!r}; its output:\n{printed}"
        )
    return max(written, key=lambda path: path.stat().st_mtime_ns)


def _candidates(base: Path) -> dict[Path, tuple[int, int, int]]:
    """Return the files that ``atc`` may write for this output, each with values that change when it is written."""
    name = re.compile(re.escape(base.name) + r"(_(linux|minios)_(x86_64|aarch64|arm64|arm))?\.om")
    try:
        found = [path for path in base.parent.iterdir() if name.fullmatch(path.name)]
    except OSError as exc:
        raise ConvertError(
            f"cannot write output={str(base)!r}: {exc.strerror or exc}; give a path in a folder that exists"
        ) from exc
    stamps = {path: path.stat() for path in found}
    return {path: (stamp.st_ino, stamp.st_mtime_ns, stamp.st_size) for path, stamp in stamps.items()}
