"""A pass of the sweeper: how far it has come, what it counts, and when it stops itself.

Pure. A pass looks at everything first and counts; only if that is not too much it looks again, page
by page, and repairs what it sees. So it needs to carry no list of all that it has found.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import AwareDatetime

from everycent.domain.message import Message
from everycent.domain.money import readable
from everycent.domain.sweep import Act, Finding, RunState, Sweep, SweepReport

MOST_DONE, MOST_TOLD = 300, 200  # Findings in a report: with and without an act about them.
_WRONG = "is this the shop's namespace, and has its store not been set back?"
_BACK = "are these orders undone for good reason? What is found waits to be approved"


class Tally(Message):
    """What a pass has counted: acts, what they may give back by currency, and newest runs."""

    acts: int = 0
    back: Mapping[str, int] = {}
    runs: int = 0  # Of the unfinished orders, the newest of each.
    unknown: int = 0  # How many of these Temporal does not know.

    def plus(self, findings: Iterable[Finding], runs: Iterable[RunState] = ()) -> "Tally":
        """Return what is counted with these findings, and these newest runs, as well."""
        done = [finding for finding in findings if finding.act is not Act.NONE]
        back = dict(self.back)
        for finding in done:
            if finding.back_minor:
                back[finding.currency] = back.get(finding.currency, 0) + finding.back_minor
        states = [run.status for run in runs]
        return Tally(
            acts=self.acts + len(done),
            back=back,
            runs=self.runs + len(states),
            unknown=self.unknown + states.count("unknown"),
        )


class Progress(Message):
    """How far a pass has come; it goes from run to run of its workflow.

    `part` is what it looks at, `after` where the next page begins, in the part's own words; `todo`
    is what was found on the last page and is not seen to yet, once it is `repairing`.
    """

    report: SweepReport
    repairing: bool = False
    part: int = 0
    after: str = ""
    tally: Tally = Tally()
    todo: tuple[Finding, ...] = ()

    @classmethod
    def begin(cls, sweep: Sweep, at: datetime) -> "Progress":
        """Return where a pass begins."""
        return cls(report=SweepReport(at=at, dry_run=sweep.dry_run))

    @property
    def at(self) -> AwareDatetime:
        """The time of the whole pass, by which everything is judged."""
        return self.report.at

    def again(self) -> "Progress":
        """Return where the second look begins, which repairs; what the first one told is over."""
        begun = SweepReport(at=self.at, dry_run=self.report.dry_run)
        return Progress(report=begun, repairing=True)

    def stopped(self, why: str) -> "Progress":
        """Return a pass that does nothing more."""
        return self.told(stopped=why).model_copy(update={"todo": ()})

    def told(self, **changes: object) -> "Progress":
        """Return it with these changes of its report."""
        return self.model_copy(update={"report": self.report.model_copy(update=changes)})

    def adding(self, *findings: Finding) -> "Progress":
        """Return it with more findings in its report; one that is there stays as it is."""
        known = {finding.key: finding for finding in self.report.findings}
        for finding in findings:
            known.setdefault(finding.key, finding)
        longer = self.report.model_copy(update={"findings": tuple(known.values())})
        return self.model_copy(update={"report": shortened(longer)})


class Pass(Sweep):
    """A pass as its workflow is told of it; `progress` is where an earlier run of it has stopped.

    One message, for a run that is told one thing less than its signature says cannot read the rest.
    """

    progress: Progress | None = None

    @classmethod
    def of(cls, sweep: Sweep) -> "Pass":
        """Return a pass from its begin on."""
        return cls.model_validate(sweep.model_dump())


def too_much(tally: Tally, sweep: Sweep) -> str:
    """Return why a pass must stop before it does all that is counted, or an empty text."""
    if tally.acts > sweep.limit:
        return f"there is more to repair than the limit of {sweep.limit}: {_WRONG}"
    over = {c: minor for c, minor in tally.back.items() if minor > sweep.money_limit_minor}
    if over:
        most = _amounts(dict.fromkeys(over, sweep.money_limit_minor))
        return f"it would give back {_amounts(over)}, more than the limit of {most}: {_BACK}"
    return ""


def why_stop(tally: Tally, sweep: Sweep) -> str:
    """Return why a pass must repair nothing, after all unfinished orders, or an empty text.

    Many repairs at once are no repair: this namespace, or this Temporal's store, is not the one
    that the orders were placed in.
    """
    if why := too_much(tally, sweep):
        return why
    if tally.unknown >= sweep.unknown_limit and tally.unknown == tally.runs:
        return f"Temporal knows none of {tally.unknown} unfinished orders: {_WRONG}"
    return ""


def shortened(report: SweepReport) -> SweepReport:
    """Return a report that Temporal can carry: what is repaired is left out first, and counted."""
    done = sorted(report.acts, key=lambda finding: finding.repaired)[:MOST_DONE]
    told = [finding for finding in report.findings if finding.act is Act.NONE][:MOST_TOLD]
    kept = {finding.key for finding in (*done, *told)}
    findings = tuple(finding for finding in report.findings if finding.key in kept)
    left_out = len(report.findings) - len(findings)
    return report.model_copy(update={"findings": findings, "unlisted": report.unlisted + left_out})


def _amounts(amounts: Mapping[str, int]) -> str:
    return " and ".join(_amount(minor, currency) for currency, minor in sorted(amounts.items()))


def _amount(minor: int, currency: str) -> str:
    return f"{minor:,} points" if currency == "points" else readable(minor, currency)
