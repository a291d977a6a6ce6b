"""Which TCP ports the stack uses on the loopback interface."""

import random
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from everycent.errors import Unreachable

LOOPBACK = "127.0.0.1"
# Below the range from which systems take the ports of outgoing connections: a remembered port
# stays free while the stack is down.
CANDIDATES = range(15_000, 32_000)


class StackError(Unreachable):
    """The embedded stack cannot run; the message is one line that names the cause and the fix."""


def is_free(port: int) -> bool:
    """Tell whether a server could listen on that port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def pick_free(taken: set[int] | None = None) -> int:
    """Return a free port that is not among those already given away."""
    for port in random.sample(CANDIDATES, k=200):
        if port not in (taken or set()) and is_free(port):
            return port
    raise StackError("no free TCP port found between 15000 and 32000; name them with --port-base")


def accepts(port: int) -> bool:
    """Tell whether something listens on that port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Ports:
    """The port of each server of a stack."""

    postgres: int
    temporal: int
    ui: int
    provider: int
    temporal_http: int

    def as_dict(self) -> dict[str, int]:
        """Return name and port."""
        return asdict(self)


NAMES = ("postgres", "temporal", "ui", "provider", "temporal_http")
# What users of these servers try first; taken without a word when something else has them.
USUAL = {"temporal": 7233, "ui": 8233}


def choose(
    given: Mapping[str, int], remembered: Mapping[str, int], *, usual: bool = False
) -> tuple[Ports, list[str]]:
    """Return the ports to use and what to tell about it: the given, else the remembered, else free.

    Raises StackError when a given port is taken; a remembered one is replaced and told.
    """
    chosen: dict[str, int] = {}
    notes: list[str] = []
    for name in NAMES:
        chosen[name] = _given(name, given[name], chosen) if name in given else 0
    for name in NAMES:
        if name in given:
            continue
        wish = remembered.get(name) or (USUAL.get(name) if usual else None)
        if wish and wish not in chosen.values() and is_free(wish):
            chosen[name] = wish
            continue
        chosen[name] = pick_free(set(chosen.values()))
        if name in remembered:
            notes.append(f"port {remembered[name]} ({name}) is taken: {chosen[name]} instead")
    return Ports(**chosen), notes


def _given(name: str, port: int, chosen: Mapping[str, int]) -> int:
    option = "--port-base" if name == "temporal_http" else f"--{name}-port"
    if port in chosen.values():
        raise StackError(f"port {port} is named twice: give {option} another one")
    if not is_free(port):
        raise StackError(
            f"port {port} ({name}) is taken by another program:"
            f" stop that one, or choose another with {option} or --port-base"
        )
    return port
