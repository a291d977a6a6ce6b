"""The demo as a stranger runs it."""

import subprocess
import sys

import psutil
import pytest


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.requirement("T27")
def test_the_demo_ends_orders_in_every_way_and_leaves_nothing_running() -> None:
    """A provider that answers late or never, and killed workers, lose no cent and no unit.

    Red when: an order ends otherwise than its story wants, or a process outlives the demo.
    """
    done = subprocess.run(
        [sys.executable, "-m", "everycent", "demo"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for outcome in ("CONFIRMED", "REJECTED", "CANCELLED", "EXPIRED"):
        assert outcome in done.stdout
    assert "kill -9" in done.stderr
    assert done.stdout.count("/namespaces/default/workflows/checkout%2Fdemo%2F") == 12
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert not [line for line in left if any("everycent-demo-" in word for word in line or ())]
