"""`everycent advise`, as a person types it, and the page that it writes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everycent.domain.advice import RULES, Requirements, Way
from starters.choosing import MEASURED, QUESTIONS, VALUES, page, rewritten
from starters.cli.app import app

ROOT = Path(__file__).parents[2]
RUN = CliRunner()


@pytest.mark.requirement("AC19.1")
def test_the_ways_are_ranked_with_their_reasons() -> None:
    """Red when: an option is not weighed, or JSON and text tell different first choices."""
    asked = ["advise", "--third-party", "none", "--duration", "instant", "--latency", "at-once"]
    told = RUN.invoke(app, asked)
    assert told.exit_code == 0
    assert told.output.startswith("1. tcc, ")
    assert "   + all Try at once: the caller waits for the slowest, not for the sum" in told.output
    as_json = json.loads(RUN.invoke(app, [*asked, "--json"]).output)
    assert as_json["choices"][0]["way"] == "tcc"
    assert as_json["wanted"]["latency"] == "at-once"
    other = json.loads(RUN.invoke(app, ["advise", "--binds", "told", "--json"]).output)
    assert other["choices"][0]["way"] == "best-effort notification"


def test_what_no_way_gives_ends_with_its_exit_code() -> None:
    """Red when: a script that asks for the impossible is told that all is well."""
    told = RUN.invoke(app, ["advise", "--isolation", "hidden"])
    assert told.exit_code == 3
    assert "no way gives all of this" in told.output


@pytest.mark.requirement("AC19.1")
def test_the_page_is_the_rules_of_today() -> None:
    """Red when: a rule is changed and docs/choosing.md is not written again."""
    written = (ROOT / "docs" / "choosing.md").read_text()
    assert written == rewritten(written), "run: everycent advise --document docs/choosing.md"
    assert written.startswith(page())
    for rule in RULES:
        assert rule.reason in written


def test_the_page_keeps_what_was_measured(tmp_path: Path) -> None:
    """Red when: writing the rules anew loses the figures, or doubles them."""
    document = tmp_path / "choosing.md"
    document.write_text(f"# Old rules\n{MEASURED}| saga | 7 |\n")
    for _ in range(2):
        assert RUN.invoke(app, ["advise", "--document", str(document)]).exit_code == 0
        assert document.read_text() == f"{page()}\n{MEASURED}| saga | 7 |\n"


def test_the_page_asks_everything_that_is_weighed() -> None:
    """Red when: a requirement or one of its values is in no table."""
    assert set(QUESTIONS) == set(Requirements.model_fields)
    assert {(rule.requirement, value) for rule in RULES for value in rule.values} <= set(VALUES)
    assert all(way in page() for way in Way)
