"""Which TCP ports the stack uses on the loopback interface."""

import random
import socket

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
