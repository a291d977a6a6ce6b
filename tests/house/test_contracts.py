"""Contracts between the layers, and what each activity must be given."""

import inspect
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity

from activities.account import AccountActivities
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.order import OrderActivities
from activities.payment import PaymentActivities
from activities.points import PointsActivities
from everycent.domain.decision import DecisionRequest
from everycent.domain.message import OrderRequest, StepRequest
from everycent.domain.order import OpenOrder
from everycent.domain.routing import ChangeRoute

ROOT = Path(__file__).parents[2]
NOUNS = (
    AccountActivities, InventoryActivities, LedgerActivities, OrderActivities, PaymentActivities,
    PointsActivities,
)  # fmt: skip
HEAVY = {"temporalio", "sqlalchemy", "pydantic", "asyncpg", "httpx", "fastapi", "psutil"}


def test_calls_go_one_way() -> None:
    """The import contracts of pyproject.toml hold (style S1)."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _activities() -> list[tuple[str, Any]]:
    found = [
        (str(marked.name), method)
        for noun in NOUNS
        for _, method in inspect.getmembers(noun, inspect.isfunction)
        if (marked := activity._Definition.from_callable(method)) is not None
    ]
    assert len(found) > 20
    return found


@pytest.mark.parametrize(("name", "method"), _activities(), ids=[n for n, _ in _activities()])
def test_an_activity_is_named_in_words_and_asked_with_a_key(name: str, method: Any) -> None:
    """A request carries the key of its step, or the order whose one row answers (design rule 2)."""
    noun, verb = name.split(".")
    assert method.__qualname__.lower() == f"{noun}activities.{verb}", "the name is written out"
    (request,) = [
        t for n, t in typing.get_type_hints(method).items() if n not in ("self", "return")
    ]
    assert issubclass(
        request, StepRequest | OrderRequest | OpenOrder | DecisionRequest | ChangeRoute
    )


def test_every_message_carries_its_time() -> None:
    """The time is an argument of every request, and lies outside its hash (design rule 13)."""
    for base in (StepRequest, OrderRequest, DecisionRequest, ChangeRoute):
        for request in _below(base):
            assert "at" in request.model_fields
            assert "at" not in getattr(request, "HASHED", ())


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [(["--help"], 0), (["order", "place", "--help"], 0), (["order", "place"], 2), (["oder"], 2)],
    ids=str,
)
def test_help_and_typing_mistakes_are_answered_before_anything_heavy_is_imported(
    words: list[str], exit_code: int
) -> None:
    """It is why they take less than half a second."""
    script = (
        "import sys; from everycent.__main__ import put_our_folders_first as first; first();"
        f"sys.argv = ['everycent', *{words!r}]; from starters.cli.app import main; code = main();"
        f"print(code, *sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == str(exit_code)
    assert "Traceback" not in done.stderr


def _below(root: type[Any]) -> list[type[Any]]:
    return [each for child in root.__subclasses__() for each in (child, *_below(child))]
