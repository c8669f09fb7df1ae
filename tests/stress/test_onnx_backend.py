"""ONNX conformance: the CPU device passes what bare ONNX Runtime passes of the suite of the package ``onnx``.

The short form samples the suite; ``--long`` runs all of it.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.stress.onnx_backend import beyond_acl, load_cases, run_aioais, run_bare, sample, write
from tests.tiers import Tier

from aioais import InferSession, emulator

pytestmark = [pytest.mark.stress, pytest.mark.slow, pytest.mark.timeout(900)]

LONG = Tier.is_long
SAMPLED = 150

REASONS = {
    "strings": "aclDataType has strings for operators, and memory of a device cannot hold them",
    "sequences": "inputs and outputs of a model are tensors in ACL",
    "optionals": "inputs and outputs of a model are tensors in ACL",
    "float8 without negative zero": "aclDataType has no such types",
    "packed elements": "the CPU device binds whole bytes only",
    "complex numbers": "ONNX Runtime has no operators for them",
}
"""Why a case that bare ONNX Runtime passes may fail on the CPU device: types of inputs and outputs, nothing else."""


async def test_the_suite_of_onnx(tmp_path: Path) -> None:
    cases = load_cases()
    assert len(cases) > 1000
    chosen = cases if LONG else list(sample(cases, SAMPLED))
    passed = 0
    differences: Counter[str] = Counter()
    wrong: list[str] = []
    with emulator.configure(threads=1):
        for case in chosen:
            path = write(case, tmp_path)
            bare = run_bare(case, path)
            ours = await run_aioais(case, path)
            passed += not ours
            if bool(bare) == bool(ours):
                continue
            reason = beyond_acl(case.model)
            if ours and reason in REASONS:
                differences[reason] += 1
            else:
                wrong.append(f"{case.name}: bare ONNX Runtime {bare or 'passes'!r}, aioais {ours or 'passes'!r}")
    await InferSession.finalize()
    # `pytest -rP` shows it.
    sys.stdout.write(f"{passed} of {len(chosen)} cases pass; only on bare ONNX Runtime: {dict(differences)}\n")
    assert not wrong, "\n".join(wrong)
    # The older ONNX Runtime is, the more of the suite is newer than it.
    assert passed > 0.5 * len(chosen)
