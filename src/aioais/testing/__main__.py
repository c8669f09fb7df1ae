"""``python -m aioais.testing [model …]``: the conformance report of the installed ``acl``, or of the CPU device."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aioais._acl.library import find_library
from aioais.testing.conformance import check_acl


def main(arguments: list[str]) -> int:
    """Check what runs each model; without one, pyACL.

    Returns
    -------
    int
        0 if nothing failed, else 1.

    Raises
    ------
    SystemExit
        With 2: there is no such model, or nothing that runs it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m aioais.testing", description="Check that an acl module behaves as aioais needs it."
    )
    parser.add_argument("models", nargs="*", help=".om models for pyACL, .onnx models for the CPU device")
    parser.add_argument("--device", type=int, default=0, help="id of the device to work on (default: 0)")
    options = parser.parse_args(arguments)
    for model in options.models:
        if not Path(model).is_file():
            parser.error(f"there is no file {model!r}; pass the path of a .om or .onnx model")
    ok = True
    for model in options.models or [None]:
        try:
            library = find_library("cpu" if model is not None and model.lower().endswith(".onnx") else "ascend")
        except ImportError as error:  # AclNotFoundError
            parser.error(str(error))
        report = check_acl(library.acl, model, device_id=options.device)
        print(f"== platform {library.platform}, model {model}\n{report}")
        ok = ok and report.ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
