"""Redaction: an order's story without what names a person or opens a door.

By allow-list. A value stays if the name of its field is listed here and its form is the one that
the name promises; every other one is replaced by a pseudonym. A field that is new tomorrow, or of
somebody else's flow, is hidden until it is named here.

Replay still works. A workflow may branch on what a value is (`kind`, `decision`, an amount, a
time): these are the listed ones. Of the others it can only ask whether two are the same, and that
stays as it was: the same value has the same pseudonym, and no two share one. Yes, no and nothing
stay whatever their name: they name nobody, and flows branch on them.

Texts are the hard part, since a flow makes them itself, in today's replay too, and compares: the
reason that the order's row has stored is the one that the run had asked for, or another driver has
decided. So a text is redacted word by word, and what is put together of redacted parts is the same
as the redacted whole. Words stay that the code of the flows contains, and numbers and codes that
stay elsewhere in the bundle. What a person typed into an update is hidden whole.

What a flow computes of a hidden value (a hash, a child's id) does change: `replay` then says that
it goes another way. None of ours does.
"""

import json
import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Protocol
from pydantic import BaseModel
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.history.v1 import (
    MarkerRecordedEventAttributes,
    WorkflowExecutionSignaledEventAttributes,
)
from temporalio.api.update.v1 import Input

from everycent.domain.money import readable
from everycent.proof import redaction_rules as rules

P = TypeVar("P", bound=Protocol)
_WORD = re.compile(r"""[^\s,;:()?!"'`*]+""")
_SMALL = re.compile(r"\d{1,2}")
_FIRST_NUMBER = 999_000_000  # Nobody takes it for an amount, and every limit of a field allows it.
_CURRENCIES = ("EUR", "JPY", "KWD", "CLF")  # One of each number of digits.


class Redactor:
    """Redacts all that is in one bundle; a value has one pseudonym in all of it.

    What texts may say is known when everything else was seen: `learn` from all of it first.
    """

    def __init__(self, tenant: str, order_id: str, workflow_id: str) -> None:
        self._own = {tenant, order_id, f"{tenant}/{order_id}", workflow_id}
        self._own_prefixes = (f"{tenant}/{order_id}/", f"{workflow_id}/")
        self._fields = rules.fields_of(BaseModel)
        self._vocabulary = set(rules.words_of_the_flows())
        self._typed: set[str] = set()  # By people, in words of their own.
        self._pseudonyms: dict[str, int] = {}

    def learn(self, messages: Iterable[Protocol], facts: Iterable[Any]) -> None:
        """Learn which numbers and codes stay, and what people have typed."""
        for message in messages:
            self.protocol(message)
        for each in facts:
            self.facts(each)
        self._pseudonyms.clear()

    def take_as_typed(self, texts: Iterable[str]) -> None:
        """Hide these texts whole, wherever they stand."""
        self._typed.update(filter(None, texts))

    def protocol(self, message: P) -> P:
        """Return a message of Temporal's redacted.

        Its numbers, enumerations and times are the server's own; of its texts only ids and names of
        code stay. A field that this SDK does not know is dropped.
        """
        redacted = deepcopy(message)
        redacted.DiscardUnknownFields()
        self._redact(redacted)
        return redacted

    def row(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Return a row redacted; the names of its columns are ours."""
        return {name: self.facts(each, name) for name, each in columns.items()}

    def facts(self, value: Any, name: str = "") -> Any:
        """Return a value of JSON redacted; `name` is that of its field."""
        if isinstance(value, dict):
            return {self._name(inner): self.facts(each, inner) for inner, each in value.items()}
        if isinstance(value, list):
            return [self.facts(each, name) for each in value]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, name)
        return self._number(value, name)

    def hidden(self, text: str) -> str:
        """Return the pseudonym of a text; nothing stays nothing."""
        return f"hidden-{self._pseudonym(text)}" if text else ""

    # -- what requests, answers and rows say

    def _text(self, value: str, name: str) -> str:
        if name in rules.OF_THE_ORDER:
            return value if self._is_of_the_order(value) else self.hidden(value)
        if name in rules.SPOKEN:
            return self._spoken(value)
        timed = rules.TIME if name.endswith(rules.TIME_ENDINGS) else None
        form = rules.TEXTS.get(name) or timed
        if form is None or not form.fullmatch(value):
            return self.hidden(value)
        if form is not rules.TIME:
            self._vocabulary.add(value)
        return value

    def _number(self, value: float, name: str) -> float:
        if name not in rules.NUMBERS and not name.endswith(rules.NUMBER_ENDINGS):
            return _FIRST_NUMBER + self._pseudonym(repr(value))
        self._vocabulary.add(str(value))
        if isinstance(value, int):
            for currency in _CURRENCIES:
                self._vocabulary.update(_WORD.findall(readable(value, currency))[:-1])
        return value

    def _spoken(self, text: str) -> str:
        """Redact a text word by word; what a person has typed is hidden whole."""
        if text in self._typed:
            return self.hidden(text)
        return _WORD.sub(lambda found: self._said(found[0]), text)

    def _said(self, word: str) -> str:
        bare = word.rstrip(".")
        stays = bare in self._vocabulary or self._is_of_the_order(bare) or _SMALL.fullmatch(bare)
        return word if stays else self.hidden(word)

    def _is_of_the_order(self, value: str) -> bool:
        return value in self._own or value.startswith(self._own_prefixes)

    def _name(self, name: str) -> str:
        """Return a field's name: one that the code or a rule has, or a pseudonym."""
        known = (self._fields, rules.TEXTS, rules.NUMBERS, rules.OF_THE_ORDER, rules.NAMES)
        return name if any(name in names for names in known) else self.hidden(name)

    def _pseudonym(self, value: str) -> int:
        return self._pseudonyms.setdefault(value, len(self._pseudonyms) + 1)

    # -- Temporal's own messages, in place

    def _redact(self, message: Protocol) -> None:
        if isinstance(message, Input):
            self._hear([*message.args.payloads])
        elif isinstance(message, WorkflowExecutionSignaledEventAttributes):
            self._hear([*message.input.payloads])
        for field, value in message.ListFields():
            self._redact_field(message, field, value)

    def _redact_field(self, message: Protocol, field: FieldDescriptor, value: Any) -> None:
        name, several = field.name, field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._redact_map(message, field, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if several else [value]:
                if isinstance(each, Payload):
                    self._redact_payload(each, name)
                else:
                    self._redact(each)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            message.ClearField(name)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if several:
                value[:] = [self._protocol_text(message, name, each) for each in value]
            else:
                setattr(message, name, self._protocol_text(message, name, value))

    def _redact_map(self, message: Protocol, field: FieldDescriptor, value: Any) -> None:
        """Redact what is listed by name: a memo, search attributes, headers, a marker's details."""
        assert field.message_type is not None
        of = field.message_type.fields_by_name["value"].message_type
        if of not in (Payload.DESCRIPTOR, Payloads.DESCRIPTOR):
            message.ClearField(field.name)
            return
        marker = ""
        if isinstance(message, MarkerRecordedEventAttributes):
            marker = message.marker_name
        for name in list(value):
            if (marker, name) in rules.SDK_MARKERS:
                continue
            inner, kept = value[name], self._name(name)
            for payload in [inner] if isinstance(inner, Payload) else inner.payloads:
                self._redact_payload(payload, name)
            if kept != name:
                value[kept].CopyFrom(inner)
                del value[name]

    def _redact_payload(self, payload: Payload, name: str) -> None:
        encoding = payload.metadata["encoding"]
        for each in set(payload.metadata) - rules.METADATA:
            del payload.metadata[each]
        if encoding == b"json/plain":
            told = self.facts(json.loads(payload.data), name)
            payload.data = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
        else:  # Encrypted, or of a form that we cannot look into.
            payload.metadata["encoding"] = b"binary/null"
            payload.data = b""

    def _hear(self, payloads: Iterable[Payload]) -> None:
        """Learn what a person has typed into an update or a signal."""
        for payload in payloads:
            if payload.metadata["encoding"] == b"json/plain":
                told = json.loads(payload.data)
                facts = told if isinstance(told, dict) else {}
                self.take_as_typed(each for name, each in facts.items() if name in rules.SPOKEN)

    def _protocol_text(self, message: Protocol, name: str, value: str) -> str:
        kind = message.DESCRIPTOR.name
        if kind == "Failure" and name == "message":
            return self._spoken(value)
        if name == "workflow_id":
            stays = self._is_of_the_order(value)
        elif kind == "TaskQueue":  # A sticky one is named after the worker's host.
            stays = value in rules.QUEUES
        elif name == "name":
            stays = kind in rules.NAMED and rules.WORD.fullmatch(value) is not None
        else:
            stays = name in rules.PROTOCOL and rules.PROTOCOL[name].fullmatch(value) is not None
        if stays and name == "type":
            self._vocabulary.add(value)
        return value if stays else self.hidden(value)
