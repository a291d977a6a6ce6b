"""What came of the interleavings, part by part: a line each, the file of kept parts, and the page.

Every figure on the page comes from the results; nothing on it is counted by hand.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from everycent.domain.message import Message
from everycent.proof.interleavings import Result
from everycent.proof.sweep.document import machine
from everycent.proof.sweep.matrix import markdown

_SHOWN = 3  # Findings of a part: the first ones say what is wrong.
_HEAD = """# Interleavings: every order, counted

This page is written by `make interleavings` with `--document docs/interleavings.md`;
[the proof](proof.md#interleavings) says what a schedule is, how it is judged and what the columns
mean. *Orders* is (k₁ + … + kₙ)! / (k₁! … kₙ!) summed over the cases; it equals walked + impossible
+ equal in every line, or the command fails. Parts that stop before every single statement have no
formula: how many statements a session has is known only when it has ended. *Played* counts
schedules: what was walked, the variants, and what was walked again because PostgreSQL chose as it
had done before.
"""


class Share(Message):
    """Each of-th case of a part of a kind's proof: so much is played at a time."""

    kind: str
    part: str
    number: int
    of: int


class ShareReport(Message):
    """What came of a share, or of all shares of a part. Kept as a line of JSON."""

    share: Share
    sessions: int
    drawn: bool
    cases: int
    played: int
    formula: int
    walked: int
    impossible: int
    equal: int
    variants: int
    unsafe: int
    ok: bool
    findings: tuple[str, ...]
    seconds: float

    def line(self) -> str:
        """Return the counts in one line, and after it the first findings."""
        said = f"{self.share.kind}: {self.share.part}: {self.cases} cases, {self.played} played"
        if self.formula:
            said += (
                f"; {self.formula} orders = {self.walked} walked + {self.impossible} impossible"
                f" + {self.equal} equal; {self.variants} variants"
            )
        said += f"; {self.unsafe} unsafe; {self.seconds:.0f} s" + ("" if self.ok else ": NOT SAFE")
        return "\n    ".join((said, *self.findings))


def report(
    share: Share, sessions: int, result: Result, *, drawn: bool, seconds: float
) -> ShareReport:
    """Return what is told of a result."""
    counts = result.counts
    return ShareReport(
        share=share,
        sessions=sessions,
        drawn=drawn,
        cases=result.cases,
        played=result.played,
        formula=counts.formula,
        walked=counts.executed,
        impossible=counts.impossible,
        equal=counts.equal,
        variants=counts.variants,
        unsafe=result.unsafe,
        ok=result.ok,
        findings=tuple(str(finding) for finding in result.findings[:_SHOWN]),
        seconds=seconds,
    )


_ADDED = (
    "cases", "played", "formula", "walked", "impossible", "equal", "variants", "unsafe", "seconds",
)  # fmt: skip


class Kept:
    """The shares that have ended; with a file, a run that was cut off goes on behind them."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        reports = map(ShareReport.model_validate_json, lines)
        self._reports = {each.share: each for each in reports}

    def has(self, share: Share) -> bool:
        """Tell whether it has ended."""
        return share in self._reports

    def whole(self, shares: Sequence[Share]) -> ShareReport | None:
        """Return what came of a part, if all of its shares have ended."""
        if not all(map(self.has, shares)):
            return None
        reports = [self._reports[share] for share in shares]
        return reports[0].model_copy(
            update={
                **{name: sum(getattr(each, name) for each in reports) for name in _ADDED},
                "ok": all(each.ok for each in reports),
                "findings": tuple(f for each in reports for f in each.findings)[:_SHOWN],
            }
        )

    def add(self, ended: ShareReport) -> None:
        """Keep one more, on the disk before anything else goes on."""
        self._reports[ended.share] = ended
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(ended.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())


def summary(reports: Sequence[ShareReport]) -> str:
    """Say the whole in one line."""
    played, unsafe = sum(r.played for r in reports), sum(r.unsafe for r in reports)
    return f"{played - unsafe:,} of {played:,} schedules are safe"


def page(reports: Sequence[ShareReport], missing: Sequence[str], *, at: datetime) -> str:
    """Return the page: the sums, a line for each part of each kind, and what is missing."""
    drawn = [r for r in reports if r.drawn]
    counted = [r for r in reports if not r.drawn]
    return "\n".join(
        [
            _HEAD,
            f"**{summary(reports)}**; {sum(r.formula for r in reports):,} orders are accounted for."
            f" The shares took {sum(r.seconds for r in reports) / 60:.0f} minutes together, several"
            f" at a time, on {machine()} ({at:%Y-%m-%d}).\n",
            *(
                [f"**Not the whole proof: {len(missing)} parts are not run (below).**\n"]
                * bool(missing)
            ),
            "## By number of sessions\n",
            markdown([("sessions", *_COUNTS), *_sums(counted, _stopped)]),
            "\n## By kind of row\n",
            markdown([("kind", *_COUNTS), *_sums(counted, lambda r: r.share.kind)]),
            "\n## Four sessions, drawn by a seed, stopped before every statement\n",
            markdown(
                [
                    ("kind", "played", "unsafe"),
                    *((r.share.kind, f"{r.played:,}", str(r.unsafe)) for r in drawn),
                    ("together", f"{sum(r.played for r in drawn):,}", str(_unsafe(drawn))),
                ]
            ),
            "\n## Every part\n",
            markdown(
                [
                    ("kind", "part", *_COUNTS),
                    *((r.share.kind, r.share.part, *_row([r])) for r in counted),
                ]
            ),
            *(["\n## Not run\n", *(f"- {each}" for each in missing)] if missing else []),
            "\n## Unsafe schedules\n",
            *([f"- {finding}" for r in reports for finding in r.findings] or ["None."]),
            "",
        ]
    )


_COUNTS = ("cases", "orders", "walked", "impossible", "equal", "played", "unsafe")


def _sums(
    reports: Iterable[ShareReport], of: Callable[[ShareReport], str]
) -> Iterator[tuple[str, ...]]:
    groups: dict[str, list[ShareReport]] = {}
    for each in reports:
        groups.setdefault(of(each), []).append(each)
    for name, group in groups.items():
        yield (name, *_row(group))
    yield ("together", *_row([each for group in groups.values() for each in group]))


def _row(group: Sequence[ShareReport]) -> tuple[str, ...]:
    """Return the sums of a group; where there is no formula, nothing is counted against it."""
    accounted = ("formula", "walked", "impossible", "equal")
    has_formula = any(each.formula for each in group)
    return (
        f"{sum(each.cases for each in group):,}",
        *(f"{sum(getattr(r, n) for r in group):,}" if has_formula else "" for n in accounted),
        f"{sum(each.played for each in group):,}",
        str(_unsafe(group)),
    )


def _unsafe(group: Sequence[ShareReport]) -> int:
    return sum(each.unsafe for each in group)


def _stopped(each: ShareReport) -> str:
    return f"{each.sessions}" if each.formula else f"{each.sessions}, before every statement"
