"""Which way to keep services consistent fits: a table of rules, and the ranking that follows.

Each rule says what one requirement means for one way: that it cannot be (with the reason), or how
many points it is worth. Nothing else is weighed, so that docs/choosing.md can show all of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from everycent.domain.message import Message


class Way(StrEnum):
    """A way to keep several effects consistent."""

    LOCAL = "local transaction"
    SAGA = "saga"
    TCC = "tcc"
    MIXED = "mixed"
    CHOREOGRAPHED = "choreographed saga"
    MESSAGES = "local message table"
    NOTIFICATION = "best-effort notification"
    TWO_PHASE = "two-phase commit"


class Binds(StrEnum):
    """What has to happen together."""

    ALL = "all"  # All effects, or none.
    CORE = "core"  # A core all or none; the rest follows and can never undo it.
    FOLLOWS = "follows"  # One fact stands for itself; whoever cares catches up with it for sure.
    TOLD = "told"  # Somebody should hear of it; who does not, asks.


class Databases(StrEnum):
    """Where the effects are written."""

    ONE = "one"
    OWN = "own"  # Each service has its own.


class Isolation(StrEnum):
    """What an outside reader may meet before all is decided."""

    SEEN = "seen"  # Values that may be taken back, and he may use them.
    HELD = "held"  # That something is on its way; nobody can use it.
    HIDDEN = "hidden"  # Nothing at all, at no instant.


class ThirdParty(StrEnum):
    """What the least able company outside can do, if one takes part."""

    NONE = "none"
    HOLDS = "holds"  # It can hold, and confirm or release: authorise, capture, void.
    UNDO = "undo"  # It acts at once, and can take it back: refund.
    FINAL = "final"  # What it did, it did.


class Reversibility(StrEnum):
    """How our own least reversible effect can be taken back."""

    HELD = "held"  # It can be held first: reserve, freeze.
    UNDONE = "undone"  # Done at once, and undone by another step.
    NEVER = "never"


class Duration(StrEnum):
    """How long it takes until everybody is done."""

    INSTANT = "instant"  # Within a second.
    MINUTES = "minutes"  # A customer pays.
    DAYS = "days"  # Parcels, returns, clearing.


class Latency(StrEnum):
    """When the caller has to know how it ended."""

    AT_ONCE = "at-once"  # Within tens of milliseconds.
    SECONDS = "seconds"
    LATER = "later"  # It is told, or it looks.


class Team(StrEnum):
    """Who writes the services."""

    ONE = "one"
    SEVERAL = "several"  # No team owns a flow across the others' services.


MANY_PER_SECOND = 500


class Requirements(BaseModel):
    """What a flow needs; the defaults are those of an ordinary order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    binds: Binds = Binds.ALL
    databases: Databases = Databases.OWN
    isolation: Isolation = Isolation.HELD
    third_party: ThirdParty = ThirdParty.HOLDS
    reversibility: Reversibility = Reversibility.HELD
    duration: Duration = Duration.MINUTES
    latency: Latency = Latency.SECONDS
    volume: Annotated[int, Field(ge=0)] = 50  # Flows a second, at the peak.
    team: Team = Team.ONE


@dataclass(frozen=True)
class Rule:
    """What a requirement means for a way; `points` None: it cannot be."""

    requirement: str
    values: tuple[str, ...]
    way: Way
    points: int | None
    reason: str

    def applies(self, wanted: Requirements) -> bool:
        """Tell whether the requirement has one of the values."""
        return value_of(wanted, self.requirement) in self.values


def value_of(wanted: Requirements, requirement: str) -> str:
    """Return a requirement's value by its name; a volume is `many` or `few`."""
    if requirement == "volume":
        return "many" if wanted.volume >= MANY_PER_SECOND else "few"
    return str(getattr(wanted, requirement))


def _rules() -> Iterator[Rule]:
    for requirement, values, about in _TABLE:
        for way, points, reason in about:
            yield Rule(requirement, values, way, points, reason)


_NO = None
_TABLE: tuple[tuple[str, tuple[str, ...], tuple[tuple[Way, int | None, str], ...]], ...] = (
    ("binds", ("all",), (
        (Way.SAGA, 2, "what was done is undone when a later step says no"),
        (Way.TCC, 2, "all hold, then all confirm, or all let go"),
        (Way.CHOREOGRAPHED, 1, "each service undoes its part when it hears of a no"),
        (Way.MIXED, 0, "its extensions can only follow: what may say no belongs into its core"),
        (Way.MESSAGES, _NO, "who follows cannot say no"),
        (Way.NOTIFICATION, _NO, "who is told cannot say no"),
    )),
    ("binds", ("core",), (
        (Way.MIXED, 5, "the core is strict, and no extension can take it back"),
        (Way.SAGA, 1, "steps after its pivot only go forward, but the run waits for them"),
        (Way.TCC, 0, "what only follows would be one more branch that can refuse"),
        (Way.MESSAGES, _NO, "it keeps the extensions, not the core"),
        (Way.NOTIFICATION, _NO, "it keeps the extensions, not the core"),
    )),
    ("binds", ("follows",), (
        (Way.MESSAGES, 5, "fact and message are one transaction, and are delivered for sure"),
        (Way.CHOREOGRAPHED, 1, "it is made of the same messages, with answers nobody needs here"),
        (Way.SAGA, 0, "nothing would ever be undone"),
        (Way.TCC, -2, "there is nothing to hold"),
        (Way.NOTIFICATION, _NO, "it gives up after its last attempt"),
    )),
    ("binds", ("told",), (
        (Way.NOTIFICATION, 6, "a ladder of attempts, then the other side asks"),
        (Way.MESSAGES, 3, "it never gives up, which nobody asked for here"),
        (Way.SAGA, -2, "nothing would ever be undone"),
        (Way.TCC, -3, "there is nothing to hold"),
    )),
    ("databases", ("one",), (
        (Way.LOCAL, 8, "one COMMIT does all of it, and nothing is ever in between"),
        (Way.TWO_PHASE, _NO, "there is nothing to agree on"),
    )),
    ("databases", ("own",), (
        (Way.LOCAL, _NO, "a transaction ends where its database ends"),
        (Way.TWO_PHASE, -3, "who dies between its phases leaves locks that others wait for"),
    )),
    ("isolation", ("hidden",), (
        (Way.SAGA, _NO, "what a step has done is seen before the last one is decided"),
        (Way.TCC, _NO, "nobody can use a hold, but everybody sees it"),
        (Way.MIXED, _NO, "its extensions are seen to come later"),
        (Way.CHOREOGRAPHED, _NO, "what a service has done is seen before the others answer"),
        (Way.MESSAGES, _NO, "followers are seen to come later"),
        (Way.NOTIFICATION, _NO, "it comes later, or never"),
        (Way.TWO_PHASE, _NO, "the databases commit one after the other: a reader sees one ahead"),
    )),
    ("isolation", ("held",), (
        (Way.TCC, 2, "nothing is used before the decision: it is held"),
        (Way.MIXED, 1, "so in the core; an extension is seen late"),
        (Way.SAGA, 1, "as far as its steps hold first; what it does at once is seen and undone"),
        (Way.CHOREOGRAPHED, 0, "each service has to show its holds as such by itself"),
        (Way.TWO_PHASE, 1, "a reader sees the state before, but two databases differ for a moment"),
    )),
    ("third_party", ("holds",), (
        (Way.LOCAL, _NO, "another company is in no transaction of ours"),
        (Way.TWO_PHASE, _NO, "another company does not PREPARE for us"),
        (Way.SAGA, 1, "its confirmation is the pivot, alone and first"),
        (Way.TCC, 0, "it can Try; its Confirm can refuse, so that it goes first, as in a saga"),
        (Way.MIXED, 0, "it can be a branch of the core"),
    )),
    ("third_party", ("undo",), (
        (Way.LOCAL, _NO, "another company is in no transaction of ours"),
        (Way.TWO_PHASE, _NO, "another company does not PREPARE for us"),
        (Way.TCC, _NO, "it has no Try: it acts at once"),
        (Way.MIXED, -2, "it can only be an extension: it has no Try"),
        (Way.SAGA, 3, "it acts late, and its undo is one more step"),
    )),
    ("third_party", ("final",), (
        (Way.LOCAL, _NO, "another company is in no transaction of ours"),
        (Way.TWO_PHASE, _NO, "another company does not PREPARE for us"),
        (Way.TCC, _NO, "it has no Try and no Cancel"),
        (Way.MIXED, -2, "it can only be an extension"),
        (Way.SAGA, 3, "it is the pivot: all that can refuse comes before it"),
        (Way.CHOREOGRAPHED, -2, "nobody sees to it that it comes last"),
    )),
    ("reversibility", ("held",), (
        (Way.TCC, 2, "a hold costs nothing to let go"),
        (Way.SAGA, 1, "its first steps hold, so that their undo is only a release"),
    )),
    ("reversibility", ("undone",), (
        (Way.SAGA, 2, "an action and its undo is all it needs"),
        (Way.CHOREOGRAPHED, 1, "an action and its undo is all it needs"),
        (Way.TCC, _NO, "without a hold there is no Try"),
        (Way.MIXED, -1, "its core needs holds"),
    )),
    ("reversibility", ("never",), (
        (Way.TCC, _NO, "without a hold there is no Try"),
        (Way.MIXED, -1, "its core needs holds"),
        (Way.SAGA, -1, "one such step can be its pivot, a second one cannot"),
        (Way.CHOREOGRAPHED, -3, "nobody sees to it that it comes last"),
        (Way.TWO_PHASE, 5, "what cannot be taken back is not done before all are prepared"),
    )),
    ("duration", ("instant",), (
        (Way.TCC, 1, "its holds last a moment"),
        (Way.TWO_PHASE, 1, "its locks last a moment, as long as nobody dies"),
    )),
    ("duration", ("minutes",), (
        (Way.LOCAL, -4, "no transaction may be open while a customer thinks"),
        (Way.TWO_PHASE, _NO, "its locks would be held while a customer thinks"),
        (Way.SAGA, 1, "it waits as long as it takes, and nothing is locked"),
    )),
    ("duration", ("days",), (
        (Way.LOCAL, -4, "no transaction may be open for days"),
        (Way.TWO_PHASE, _NO, "its locks would be held for days"),
        (Way.SAGA, 2, "it waits as long as it takes, and nothing is locked"),
        (Way.TCC, -2, "what is held for days is lost to everybody else"),
        (Way.MIXED, -1, "what its core holds for days is lost to everybody else"),
        (Way.CHOREOGRAPHED, -1, "nobody can say where it stands"),
    )),
    ("latency", ("at-once",), (
        (Way.TCC, 2, "all Try at once: the caller waits for the slowest, not for the sum"),
        (Way.MIXED, 2, "the caller waits for the core alone"),
        (Way.SAGA, 0, "the caller waits for one step after the other"),
        (Way.CHOREOGRAPHED, -3, "each hop goes through two tables and a relay"),
        (Way.MESSAGES, 1, "the caller waits for nobody"),
    )),
    ("latency", ("later",), (
        (Way.CHOREOGRAPHED, 1, "nobody waits for the end of its hops"),
        (Way.MESSAGES, 1, "nobody waits for those who follow"),
    )),
    ("volume", ("many",), (
        (Way.TCC, 1, "short holds in batches: a hot row is locked once for many flows"),
        (Way.MIXED, 1, "only the core is in the hot path"),
        (Way.TWO_PHASE, -3, "each flow locks a hot row through two round trips"),
        (Way.MESSAGES, 1, "lanes of messages share no lock"),
        (Way.CHOREOGRAPHED, 1, "lanes of messages share no lock"),
    )),
    ("team", ("one",), (
        (Way.SAGA, 1, "the flow reads as one story"),
        (Way.CHOREOGRAPHED, -2, "the flow is in nobody's code"),
    )),
    ("team", ("several",), (
        (Way.CHOREOGRAPHED, 3, "no team has to own a flow through the others' services"),
        (Way.MESSAGES, 1, "a team publishes facts and knows no reader"),
        (Way.TCC, -1, "every team has to write three operations, and to agree on holds"),
        (Way.TWO_PHASE, _NO, "no team lets another one lock its rows"),
    )),
)  # fmt: skip
RULES: tuple[Rule, ...] = tuple(_rules())


class Choice(Message):
    """A way with what speaks for and against it; one that cannot be says why."""

    way: Way
    possible: bool
    points: int
    reasons: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # What speaks neither for nor against it.


class Advice(Message):
    """The ways, the best first, and those that cannot be behind them."""

    wanted: Requirements
    choices: tuple[Choice, ...]

    @property
    def best(self) -> Choice | None:
        """The first choice, None if no way gives what is wanted."""
        return self.choices[0] if self.choices[0].possible else None


def advise(wanted: Requirements) -> Advice:
    """Rank the ways by the rules; equal ones stand as `Way` has them, the simpler one first."""
    choices = [_weigh(way, wanted) for way in Way]
    choices.sort(key=lambda choice: (not choice.possible, -choice.points))
    return Advice(wanted=wanted, choices=tuple(choices))


def _weigh(way: Way, wanted: Requirements) -> Choice:
    rules = [rule for rule in RULES if rule.way is way and rule.applies(wanted)]
    forbidden = tuple(rule.reason for rule in rules if rule.points is None)
    if forbidden:
        return Choice(way=way, possible=False, points=0, against=forbidden)
    weighed = [(rule.points or 0, rule.reason) for rule in rules]
    return Choice(
        way=way,
        possible=True,
        points=sum(points for points, _ in weighed),
        reasons=tuple(reason for points, reason in weighed if points > 0),
        against=tuple(reason for points, reason in weighed if points < 0),
        notes=tuple(reason for points, reason in weighed if points == 0),
    )
