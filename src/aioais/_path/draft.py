"""The times of one request while it is under way: filled by the stages, a record in the end."""

from __future__ import annotations

from time import perf_counter

from ..timing import Outcome, Recording, RequestTiming, Span

__all__ = ["Draft"]


class Draft:
    """What is known of a request that somebody records; travels with it.

    Parameters
    ----------
    recordings
        Those open when it was submitted.
    mode
        As in ``RequestTiming``.
    shapes
        Shapes of its feeds.
    """

    __slots__ = ("_mode", "_recordings", "_shapes", "home_at", "stages")

    def __init__(self, recordings: tuple[Recording, ...], mode: str, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._recordings = recordings
        self._mode = mode
        self._shapes = shapes
        self.stages: tuple[Span, Span, Span] | None = None
        """H2D, execute and D2H, once they are known."""
        self.home_at = 0.0
        """When the last stage thread had done with it."""
        for recording in recordings:
            recording.begin()

    def settle(self, number: int, queued_at: float, started_at: float, outcome: Outcome) -> None:
        """Give the record to the recordings, once; on the loop's thread, right before the future is set."""
        recordings, self._recordings = self._recordings, ()
        if not recordings:
            return
        now = perf_counter()
        started = started_at or now
        h2d, execute, d2h = self.stages or (Span(started, started),) * 3
        home = d2h.end if self.stages is not None else self.home_at or now
        timing = RequestTiming(
            number,
            outcome,
            self.stages is not None,
            self._mode,
            self._shapes,
            Span(queued_at, started),
            h2d,
            execute,
            d2h,
            Span(min(home, now), now),
        )
        for recording in recordings:
            recording.add(timing)
