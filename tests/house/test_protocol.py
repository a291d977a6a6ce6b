"""The wire format of participants behind URLs is what its document and its schema say."""

import json
import re
from pathlib import Path

from everycent.domain.participant import BranchRequest
from everycent.errors import by_name
from everycent.gateways.url_participant import Answer, BranchState, headers_of
from tests.conftest import NOON

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "participant-protocol.md").read_text()


def test_the_schema_is_that_of_the_bodies() -> None:
    """Written anew by `python -m tests.house.test_protocol`."""
    assert json.loads((DOCS / "participant-protocol.schema.json").read_text()) == schema()


def test_the_page_names_every_header_and_only_errors_of_ours() -> None:
    named = set(re.findall(r"`(Everycent-[\w-]+)`", PAGE))
    sent = headers_of(BranchRequest.of("t/o", "seat", at=NOON)).keys() - {"Content-Type"}
    assert named == {*sent, "Everycent-Request-Hash"}
    table = PAGE.partition("| name | when | then |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert by_name(name) is not None, name


def schema() -> dict[str, object]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The bodies that a participant behind a URL answers",
        "$defs": {
            "answer": Answer.model_json_schema(),
            "state": BranchState.model_json_schema(),
        },
        "anyOf": [{"$ref": "#/$defs/answer"}, {"$ref": "#/$defs/state"}],
    }


if __name__ == "__main__":
    text = json.dumps(schema(), indent=2) + "\n"
    (DOCS / "participant-protocol.schema.json").write_text(text)
