"""One measured figure beside its limit."""

from statistics import median
from typing import Any, Literal, Self

from pydantic import BaseModel

from benchmarks.machine import describe


class Result(BaseModel):
    """A figure, the limit it is held to (`most` or `least`), and the runs it is the median of."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    bound: Literal["least", "most"] = "least"
    runs: list[float] = []
    details: dict[str, Any] = {}

    @classmethod
    def of_runs(
        cls, name: str, unit: str, runs: list[float], *, limit: float | None = None, **details: Any
    ) -> Self:
        """Take the median of runs that should be at least `limit`."""
        rounded = [round(run, 3) for run in runs]
        value = round(median(runs), 3)
        return cls(name=name, value=value, unit=unit, limit=limit, runs=rounded, details=details)

    @property
    def ratio(self) -> float | None:
        """The figure as a share of its limit."""
        return self.value / self.limit if self.limit else None

    @property
    def holds(self) -> bool | None:
        """Whether the limit is kept; None without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.bound == "least" else self.value <= self.limit


class Report(BaseModel):
    """The figures of one run and the machine they were taken on."""

    taken_at: str
    quick: bool
    machine: dict[str, Any]
    load_average_at_end: list[float] = []
    results: list[Result] = []

    @classmethod
    def begin(cls, *, at: str, quick: bool) -> Self:
        """Describe the machine as it is before the load."""
        return cls(taken_at=at, quick=quick, machine=describe())
