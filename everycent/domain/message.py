"""What every request and answer shares: frozen models, ids, keys, and the hash of a request."""

import hashlib
import json
from collections.abc import Callable
from datetime import date
from typing import Annotated, ClassVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

Id = Annotated[str, StringConstraints(pattern=r"\A[A-Za-z0-9._~-]{1,64}\z")]
Key = Annotated[str, Field(min_length=1, max_length=300)]
Currency = Annotated[str, StringConstraints(pattern=r"\A[A-Z]{3}\z")]
MinorUnits = Annotated[int, Field(strict=True, ge=0, le=10**15)]
Units = Annotated[int, Field(strict=True, gt=0, le=10**9)]

# What a person types: PostgreSQL holds no NUL, and nobody reads a novel.
Text = Annotated[str, StringConstraints(max_length=2000, pattern=r"\A[^\x00]*\z")]


def storable(text: object) -> object:
    """Return a text without what PostgreSQL cannot hold, and not too long to be read."""
    return text.replace("\x00", "")[:2000] if isinstance(text, str) else text


# What others tell us (an error, a provider's reason): it must never stop the order it is about.
Told = Annotated[str, BeforeValidator(storable)]


class Message(BaseModel):
    """Base of what crosses a boundary of ours; unknown fields pass, the sender may be newer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StepRequest(Message):
    """Ask for one business step, once per `key`: `<tenant>/<order>/<step>[/<request>]`.

    `at` is the business time and `opened_on` the order's opening day; both lie outside the hash.
    `HASHED` names the business fields that must be equal when a key is repeated.
    """

    HASHED: ClassVar[tuple[str, ...]] = ()

    key: Key
    at: AwareDatetime
    opened_on: date

    @property
    def tenant(self) -> str:
        """The shop: the first part of the key."""
        return self.key.split("/", 1)[0]


class OrderRequest(Message):
    """Base of what the order service is asked about one order."""

    tenant: Id
    order_id: Id
    at: AwareDatetime


def step_key(tenant: str, order_id: str, step: str, request: str | None = None) -> str:
    """Return the key of a business step: the same in every run, retry and replay."""
    return "/".join((tenant, order_id, step, *((request,) if request else ())))


def has_branch(key: str) -> bool:
    """Tell whether a key names a transaction and a branch of it: `<tenant>/<order>/<step>[/…]`."""
    parts = key.split("/")
    return len(parts) > 2 and all(parts)


def order_of(key: str) -> str:
    """Return the xid of a key, `<tenant>/<order>`: the first two of its parts."""
    return "/".join(key.split("/", 2)[:2])


def problems_of(error: ValidationError) -> str:
    """Say in one line which fields are wrong and why."""
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc']) or 'order'}: {e['msg']}" for e in error.errors()
    )


HASH_VERSION = 1


def _canonical_v1(request: BaseModel, fields: tuple[str, ...]) -> bytes:
    named = request.model_dump(mode="json", include=set(fields))
    return json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


_CANONICAL: dict[int, Callable[[BaseModel, tuple[str, ...]], bytes]] = {1: _canonical_v1}


def request_hash(request: BaseModel, fields: tuple[str, ...], version: int = HASH_VERSION) -> str:
    """Hash the named business fields in canonical form; the version is stored beside the hash.

    Rows written under an older version are compared under that version.
    """
    return hashlib.sha256(_CANONICAL[version](request, fields)).hexdigest()
