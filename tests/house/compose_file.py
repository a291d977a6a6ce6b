"""docker-compose.yml as its tests read it: our entries, with the variables filled in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
OUR_IMAGE = "${EVERYCENT_IMAGE"
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<rest>[^}]*))?\}|\$\$")


@dataclass(frozen=True)
class Entry:
    """One of our containers."""

    name: str
    command: list[str]
    environment: dict[str, str]
    health: list[str] | None


def services() -> dict[str, dict[str, Any]]:
    """Return every service of the file, its anchors resolved and its variables as they stand."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
    return found


def our_services() -> dict[str, dict[str, Any]]:
    """Return the services that run our image."""
    return {n: s for n, s in services().items() if s["image"].startswith(OUR_IMAGE)}


def our_entries(variables: Mapping[str, str]) -> dict[str, Entry]:
    """Return our services as compose would run them with these variables."""
    return {
        name: Entry(
            name,
            [filled(word, variables) for word in service["command"]],
            {k: filled(v, variables) for k, v in service.get("environment", {}).items()},
            _health(service),
        )
        for name, service in our_services().items()
    }


def filled(text: str, variables: Mapping[str, str]) -> str:
    """Substitute as compose does; a required variable that is missing is a KeyError."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match["how"] == "-":
            return variables.get(match["name"]) or match["rest"]
        return variables[match["name"]]

    return _VARIABLE.sub(value, text)


def required_variables() -> set[str]:
    """Return the names that the file asks for and gives no default."""
    return {
        m["name"] for m in _VARIABLE.finditer(FILE.read_text()) if m["name"] and m["how"] == "?"
    }


def _health(service: dict[str, Any]) -> list[str] | None:
    if "healthcheck" not in service:
        return None
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD", "a health check of ours needs no shell"
    return list(command)
