"""A provider's statement, or a shop's own export, as lines: CSV with columns that a file names.

The mapping is TOML, for example:

    [statement]
    delimiter = ";"
    reference = "merchant_reference"     # the column that carries our key
    provider_id = "charge"
    movement = "type"
    amount = "gross"                     # decimal; or amount_minor = "…", integer minor units
    currency = "currency"
    at = "booked_at"                     # ISO 8601; without a zone it is UTC
    status = "state"                     # may be missing: everything was done then
    [statement.movements]                # how the file calls what we call capture and refund
    sale = "capture"
    [statement.done]
    values = ["succeeded", "paid"]
"""

import csv
import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from everycent.domain.message import problems_of
from everycent.domain.money import digits_of
from everycent.domain.reconciliation import Movement, StatementLine
from everycent.errors import InvalidRequest

_DIGITS = 15  # Of an amount in minor units, less one.


class Done(BaseModel):
    """Which words of the status column mean that the money moved."""

    model_config = ConfigDict(extra="forbid")

    values: tuple[str, ...] = ("succeeded", "paid", "captured", "refunded", "settled")


class Columns(BaseModel):
    """Which column of a file says what; the defaults are those of the simulator's statement."""

    model_config = ConfigDict(extra="forbid")

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    reference: str = "reference"
    provider_id: str | None = "provider_id"
    movement: str | None = "kind"
    amount_minor: str | None = "amount_minor"
    amount: str | None = None
    currency: str = "currency"
    at: str = "at"
    status: str | None = None
    movements: dict[str, Movement] = {"capture": "capture", "refund": "refund"}
    done: Done = Done()

    @model_validator(mode="before")
    @classmethod
    def _one_amount(cls, given: Any) -> Any:
        if isinstance(given, dict) and "amount" in given:
            if "amount_minor" in given:
                raise ValueError("name a column for amount or for amount_minor, not for both")
            return {**given, "amount_minor": None}
        return given

    def named(self) -> list[str]:
        """Return the columns that a file must have."""
        names = (
            self.reference, self.provider_id, self.movement, self.amount_minor, self.amount,
            self.currency, self.at, self.status,
        )  # fmt: skip
        return [name for name in names if name is not None]


class Mapping(BaseModel):
    """The columns of both sides."""

    model_config = ConfigDict(extra="forbid")

    statement: Columns = Columns()
    payments: Columns = Columns()


def read_mapping(file: Path | None) -> Mapping:
    """Read the mapping; without a file it is the simulator's. Raises InvalidRequest."""
    if file is None:
        return Mapping()
    try:
        return Mapping.model_validate(tomllib.loads(file.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} is no TOML: {error}") from error
    except ValidationError as error:
        raise InvalidRequest(f"{file}: {problems_of(error)}") from error


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_lines(file: Path, columns: Columns) -> Iterator[StatementLine]:
    """Yield a file's lines. Raises InvalidRequest, with the line, at the first that is wrong."""
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = csv.DictReader(opened, delimiter=columns.delimiter, strict=True)
        try:
            missing = [name for name in columns.named() if name not in (rows.fieldnames or ())]
            if missing:
                raise InvalidRequest(f"{file} has no column {', '.join(missing)}")
            for number, row in enumerate(rows, start=1):
                yield _Line(file, number, row, columns).read()
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{file} cannot be read as CSV: {error}") from error


@dataclass
class _Line:
    file: Path
    number: int
    row: dict[str, str | None]
    columns: Columns

    def read(self) -> StatementLine:
        columns = self.columns
        currency = self._of(columns.currency).upper()
        word = self._of(columns.movement) if columns.movement else "capture"
        if word not in columns.movements:
            known = ", ".join(columns.movements)
            raise self._wrong(f"{word!r} is no movement; known are: {known}")
        done = not columns.status or self._of(columns.status) in columns.done.values
        try:
            return StatementLine(
                number=self.number,
                movement=columns.movements[word],
                reference=self._of(columns.reference),
                provider_id=self._of(columns.provider_id) if columns.provider_id else "",
                amount_minor=self._amount(currency),
                currency=currency,
                at=self._time(),
                done=done,
            )
        except ValidationError as error:
            raise self._wrong(problems_of(error)) from error

    def _amount(self, currency: str) -> int:
        minor = self.columns.amount_minor
        said = self._of(minor or self.columns.amount or "")
        try:
            given = Decimal(said)
            amount = given if minor else given.scaleb(digits_of(currency))
        except ArithmeticError:  # No number, or one that is too large for any.
            raise self._wrong(f"{said!r} is no amount") from None
        # A number may be written so that it has a milliard of digits.
        if not amount.is_finite() or amount.adjusted() > _DIGITS or amount % 1:
            raise self._wrong(f"{said!r} is no whole number of {currency} minor units")
        return int(abs(amount))  # Some files tell a refund as a negative amount.

    def _time(self) -> datetime:
        said = self._of(self.columns.at)
        try:
            at = datetime.fromisoformat(said)
        except ValueError:
            raise self._wrong(f"{said!r} is no ISO 8601 time") from None
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    def _of(self, column: str) -> str:
        return (self.row.get(column) or "").strip()

    def _wrong(self, says: str) -> InvalidRequest:
        return InvalidRequest(f"{self.file}, line {self.number} behind the head: {says}")
