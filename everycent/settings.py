"""What a process is told: `EVERYCENT_*` variables first, then the files of a data folder.

A running embedded stack writes `<data-dir>/settings/common.toml` and one file per part beside it
(`inventory.toml`, `reader.toml`, `owner.toml` …): a worker reads only the DSN of its service.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from everycent.errors import InvalidRequest

ServiceName = Literal["order", "inventory", "payment", "account", "points", "ledger"]
SERVICES: tuple[ServiceName, ...] = (
    "order", "inventory", "payment", "account", "points", "ledger",
)  # fmt: skip


class TemporalSettings(BaseModel):
    """Where Temporal is; TLS and API keys come from the SDK's profiles (TEMPORAL_* variables)."""

    model_config = ConfigDict(extra="forbid")

    address: str = "127.0.0.1:7233"
    namespace: str = "default"
    ui: str = "http://127.0.0.1:8233"


class ProviderSettings(BaseModel):
    """Where the payment provider is."""

    model_config = ConfigDict(extra="forbid")

    url: str = "http://127.0.0.1:8080"
    api_key: str = "sk_test_everycent"
    webhook_secret: str = "whsec_test_everycent"
    timeout_seconds: float = 10.0
    key_lifetime_hours: float = Field(default=24.0, gt=0)  # How long it knows a repeated key.


class PoolSettings(BaseModel):
    """Sizes and time-outs of a database pool, in seconds: the ladder of design rule 15."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(default=8, ge=1)
    wait_seconds: float = 5.0
    lock_timeout_seconds: float = 3.0
    statement_timeout_seconds: float = 5.0
    transaction_timeout_seconds: float = 10.0
    idle_in_transaction_seconds: float = 10.0


class RetentionSettings(BaseModel):
    """How many days after its order's opening a settled fence row is kept; None keeps every row.

    `repair_days` is how long a person may take for a case before its order counts as given up.
    """

    model_config = ConfigDict(extra="forbid")

    days: int | None = Field(default=None, ge=1)
    repair_days: int = Field(default=90, ge=1)


class SweeperSettings(BaseModel):
    """When a pass of the sweeper stops itself; the schedule keeps what it was made with.

    `limit` counts repairs, `money_limit_minor` what its undos give back in each currency.
    """

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=0)
    money_limit_minor: int = Field(default=1_000_000, ge=0)
    unknown_limit: int = Field(default=10, ge=1)


class NotifySettings(BaseModel):
    """Another system that is told what happens, by HTTP POST signed with its secret.

    `ladder_seconds` are the pauses after tries that failed; after the last one it has to ask.
    """

    model_config = ConfigDict(extra="forbid")

    url: str
    secret: str = Field(min_length=16)
    timeout_seconds: float = Field(default=5.0, gt=0)
    ladder_seconds: tuple[float, ...] = (60, 300, 900, 3600, 21600)


class Settings(BaseSettings):
    """The settings of one process: `database` holds worker DSNs, the others those of their role."""

    model_config = SettingsConfigDict(
        env_prefix="EVERYCENT_", env_nested_delimiter="__", extra="ignore"
    )

    data_dir: Path = Path(".everycent")
    temporal: TemporalSettings = TemporalSettings()
    provider: ProviderSettings = ProviderSettings()
    pool: PoolSettings = PoolSettings()
    retention: RetentionSettings = RetentionSettings()
    sweeper: SweeperSettings = SweeperSettings()
    steps: Literal["apart", "together"] = "apart"  # Where new runs have their database steps.
    database: dict[ServiceName, str] = {}
    read: dict[ServiceName, str] = {}
    owner: dict[ServiceName, str] = {}
    relay: dict[ServiceName, str] = {}
    notify: dict[str, NotifySettings] = {}  # The relay's: where other systems are, and secrets.
    tell: tuple[str, ...] = ()  # The order service's: the names of those that hear of its orders.
    stack: dict[str, int] = {}  # The ports of the embedded stack whose data folder this is.
    metrics: str = ""  # Where this process serves its meters to Prometheus; empty: nowhere.
    faults: str = ""  # Rules as JSON or their file (everycent/faults.py); empty in production.

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment above the files, which arrive as arguments of `load`."""
        return env_settings, init_settings


class OwnSettings(Settings):
    """What the files of an embedded stack say, whatever other places the environment names."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the environment out."""
        return (init_settings,)


# What names other servers than those of an embedded stack; its processes never hear of it.
ELSEWHERE = (
    "TEMPORAL_",
    *(
        f"EVERYCENT_{part}__"
        for part in ("TEMPORAL", "PROVIDER", "DATABASE", "READ", "OWNER", "RELAY")
    ),
    "EVERYCENT_STEPS",
)


def environment_of_a_stack() -> dict[str, str]:
    """Return our environment without what would lead a stack's process to other servers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ELSEWHERE)}


def load(data_dir: Path | None = None, *parts: str, kind: type[Settings] = Settings) -> Settings:
    """Read the settings of a process: the environment, then `common` and the named parts' files.

    Without a running stack the files are absent and the environment (or the defaults) speaks alone.
    """
    folder = data_dir or Path(os.environ.get("EVERYCENT_DATA_DIR", ".everycent"))
    merged: dict[str, Any] = {}
    for part in ("common", *parts):
        file = folder / "settings" / f"{part}.toml"
        if file.is_file():
            _merge(merged, tomllib.loads(file.read_text()))
    try:
        return kind(**{**merged, "data_dir": folder})
    except (SettingsError, ValidationError) as error:
        raise InvalidRequest(_wrong(error)) from error


def _wrong(error: SettingsError | ValidationError) -> str:
    """Say in one line which settings are wrong; no value is told, it may be a secret."""
    if isinstance(error, SettingsError):  # It names the field, whose value is no JSON.
        return str(error)
    problems = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{_variable(each['loc'])}: {each['msg']}" for each in problems)


def _variable(place: tuple[int | str, ...]) -> str:
    names = (str(name) for name in place if name != "[key]")
    return f"EVERYCENT_{'__'.join(names)}".upper()


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for name, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(name), dict):
            _merge(target[name], value)
        else:
            target[name] = value
