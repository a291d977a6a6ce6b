"""Which test goes red when a guard is taken away: table.txt, a guard and its test per line."""

from pathlib import Path

FILE = Path(__file__).with_name("table.txt")


def _read() -> dict[str, str]:
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.rpartition(" -> ") for line in lines]
    assert len({guard for guard, _, _ in pairs}) == len(lines), "a guard stands in two lines"
    return {guard: test for guard, _, test in pairs}


TESTS: dict[str, str] = _read()
