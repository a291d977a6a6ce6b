"""A release reads the events of the one before it and of the one behind it."""

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from everycent.domain.events import BY_NAME, EVENT_TYPES, EventType, told_by
from everycent.domain.messaging import Envelope
from everycent.errors import Bug, Transient
from tests.contracts.samples import NOON, of_today, read, sample_file, schema_file

NAMES = [kind.name for kind in EVENT_TYPES]
OLDER = [(kind.name, kind.version - 1) for kind in EVENT_TYPES if kind.version > 1]


def envelope(kind: EventType, version: int, payload: Any) -> Envelope:
    return Envelope(
        key="shop/o-1/x", aggregate="shop/o-1", opened_on=NOON.date(), at=NOON, type=kind.name,
        schema_version=version, payload=payload, content_hash="h", number=1, source="order",
    )  # fmt: skip


@pytest.mark.requirement("AC4.5")
@pytest.mark.parametrize("name", NAMES)
def test_the_schema_of_a_version_stays_as_it_is(name: str) -> None:
    """A change needs a version of its own: `python -m tests.contracts.samples` writes its files.

    Red when: a field of an event is added, renamed or retyped, and its version stays.
    """
    for file, says in of_today(BY_NAME[name]).items():
        assert read(file) == json.loads(json.dumps(says)), f"{file.name} says something else"


@pytest.mark.requirement("AC4.5")
@pytest.mark.parametrize(("name", "version"), OLDER)
def test_todays_reader_understands_the_version_before(name: str, version: int) -> None:
    """Red when: a field that is new has no default, or one that was there has another type."""
    kind = BY_NAME[name]
    old = read(sample_file(kind, version))
    said = told_by(envelope(kind, version, old), kind.model).model_dump(mode="json")
    assert {field: said[field] for field in old} == old


@pytest.mark.requirement("AC4.5")
@pytest.mark.parametrize(("name", "version"), OLDER)
def test_the_reader_of_the_version_before_understands_todays(name: str, version: int) -> None:
    """By the schema it had; what it does not know it passes over.

    Red when: a field is taken away, renamed or retyped with a new version.
    """
    kind = BY_NAME[name]
    text = schema_file(kind, version).read_text().replace("\\\\z", "\\\\Z")  # Python's end of text.
    schema, today = json.loads(text), read(sample_file(kind, kind.version))
    jsonschema.Draft202012Validator(schema).validate(today)
    assert set(schema["properties"]) <= set(today), "what it reads is still said"


def test_there_is_an_event_with_a_version_before() -> None:
    assert OLDER, "the tests above look at nothing"


@pytest.mark.requirement("AC4.5")
@pytest.mark.parametrize("name", NAMES)
def test_a_version_ahead_is_read_and_one_further_ahead_waits(name: str) -> None:
    """Red when: a version that may mean something else is read, or one that may not is refused."""
    kind = BY_NAME[name]
    newer = {**read(sample_file(kind, kind.version)), "a_field_of_tomorrow": 1}
    assert told_by(envelope(kind, kind.version + 1, newer), kind.model)
    with pytest.raises(Transient, match="this release reads up to"):
        told_by(envelope(kind, kind.version + 2, newer), kind.model)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_read_is_a_bug_without_its_values(name: str) -> None:
    kind = BY_NAME[name]
    with pytest.raises(Bug, match="cannot be read") as said:
        told_by(envelope(kind, kind.version, {"order_id": "a secret?"}), kind.model)
    assert "secret" not in str(said.value)
