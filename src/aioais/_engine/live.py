"""Which pipelines have not ended yet."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import Pipeline

__all__ = ["begin", "end", "live_pipelines"]

_pipelines: set[Pipeline] = set()
_lock = threading.Lock()  # guards the set


def begin(pipeline: Pipeline) -> None:
    """Keep a pipeline until it has ended."""
    with _lock:
        _pipelines.add(pipeline)
    pipeline.closed.add_done_callback(lambda _: end(pipeline))


def end(pipeline: Pipeline) -> None:
    """Forget a pipeline; idempotent."""
    with _lock:
        _pipelines.discard(pipeline)


def live_pipelines() -> list[Pipeline]:
    """List the pipelines that have not ended."""
    with _lock:
        return [pipeline for pipeline in _pipelines if not pipeline.closed.done()]
