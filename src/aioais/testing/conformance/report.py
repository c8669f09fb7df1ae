"""What the checks found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CheckResult", "Report", "Status"]

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """One check."""

    name: str
    """Subject and check, such as ``"streams.synchronize_none"``."""
    rule: str
    """The behaviour that the check asks for, in a sentence."""
    status: Status
    """``"passed"``, ``"failed"`` or ``"skipped"``."""
    detail: str
    """For a failed check what was got and expected, for a skipped one the reason; else ``""``."""


@dataclass(frozen=True)
class Report:
    """All checks of one run, in the order in which they ran."""

    results: tuple[CheckResult, ...]
    """Every check of the suite, those that did not apply included."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed; what was skipped does not count."""
        return not self.failed

    @property
    def passed(self) -> tuple[CheckResult, ...]:
        """The checks that passed."""
        return self._of("passed")

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return self._of("failed")

    @property
    def skipped(self) -> tuple[CheckResult, ...]:
        """The checks that could not run here."""
        return self._of("skipped")

    def _of(self, status: Status) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.status == status)

    def __str__(self) -> str:
        lines = []
        for result in self.results:
            lines.append(f"{result.status:<8}{result.name}: {result.rule}")
            if result.detail:
                lines.append(f"        {result.detail}")
        lines.append(f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped")
        return "\n".join(lines)
