"""Times as ais_bench reports them, in the form of all of its releases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex

from ..summary import InferSummary
from ..summary import MemorySummary as _MemorySummary

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ExecTime", "ExecTimes", "LaneTimes", "MemorySummary", "Summary"]


class ExecTime(float):
    """Milliseconds of one execution, and the pair ``(start, end)`` too.

    The API guide and older releases of ais_bench have a number in ``exec_time_list``, newer ones a pair. Programs of
    both kinds find theirs: ``float(time)`` is ``time[1] - time[0]``. ``start`` is how long the executions before it
    took in all.
    """

    __slots__ = ("_index", "_times")

    def __new__(cls, times: list[float], index: int) -> Self:
        """Return the time at an index, which is not negative, of a list."""
        made = super().__new__(cls, list.__getitem__(times, index))
        made._times, made._index = times, index
        return made

    _times: list[float]
    _index: int

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[float]:
        start = sum(list.__getitem__(self._times, slice(0, self._index)))
        return iter((start, start + float(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


class ExecTimes(list[float]):
    """``exec_time_list``: a list of float milliseconds; taken one by one, each is an :class:`ExecTime`."""

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return [ExecTime(self, k) for k in range(*index.indices(len(self)))]
        return ExecTime(self, range(len(self))[index])

    def __iter__(self) -> Iterator[float]:
        return (ExecTime(self, k) for k in range(len(self)))


class Summary(InferSummary):
    """Milliseconds of each execution of a session, as :class:`aioais.InferSummary`, with ais_bench's list."""

    __slots__ = ()

    @classmethod
    def of(cls, summary: InferSummary) -> Summary:
        """Return a summary in this form."""
        return cls(ExecTimes(summary.exec_time_list), summary.count, summary.total)

    def __repr__(self) -> str:
        return super().__repr__().replace("InferSummary", "Summary")


class LaneTimes(dict[int, list[float]]):
    """``MultiDeviceSession.summary``: ais_bench's attribute, a dict, that can also be called, as its guide says."""

    def __call__(self) -> dict[int, list[float]]:
        """Return the same as a plain dict."""
        return dict(self)


class MemorySummary(_MemorySummary):
    """Copy times of the whole process, one entry per tensor copied; see :class:`aioais.MemorySummary`."""

    @staticmethod
    def get_H2D_time_list() -> list[float]:
        """Return the milliseconds of each copy from host to device."""
        return _MemorySummary.get_h2d_time_list()

    @staticmethod
    def get_D2H_time_list() -> list[float]:
        """Return the milliseconds of each copy from device to host."""
        return _MemorySummary.get_d2h_time_list()
