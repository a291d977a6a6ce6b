"""The first second of every command, and what a person reads when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from everycent.settings import Settings
from everycent.stack import ports
from starters.cli.app import app
from starters.cli.common import ExitCode

# Typer itself may use pydantic; our models and settings, which need it too, are not among these.
HEAVY = {
    "temporalio",
    "sqlalchemy",
    "asyncpg",
    "pydantic_settings",
    "httpx",
    "fastapi",
    "workflows",
}
HEAVY |= {"everycent.domain", "everycent.settings", "everycent.database"}
PROBE = """
import sys
sys.argv = ["everycent", *sys.argv[1:]]
from starters.cli.app import main
code = main()
print("LOADED", *sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


def _run(
    *words: str, code: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "everycent"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EVERYCENT_")}
    return subprocess.run(
        [sys.executable, *start, *words],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        timeout=60,
    )


def _all_commands() -> list[tuple[str, ...]]:
    def walk(command: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        children = getattr(command, "commands", {})
        below = [each for name, child in children.items() for each in walk(child, (*path, name))]
        return [path, *below]

    return walk(typer.main.get_command(app), ())


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (("--help",), 0),
        (("order", "place", "--help"), 0),
        (("order", "place"), 2),
        (("nonsense",), 2),
        (("stock", "set", "LAMP", "minus one"), 2),
    ],
)
def test_help_and_typing_mistakes_load_typer_and_rich_only(
    words: tuple[str, ...], exit_code: int
) -> None:
    """Red when: a module of the command line imports Temporal, SQL or pydantic at its top."""
    done = _run(*words, code=PROBE)
    assert done.returncode == exit_code
    loaded = set(done.stderr.rpartition("LOADED")[2].split())
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_every_command_says_what_it_does() -> None:
    commands = _all_commands()
    assert ("order", "import") in commands
    for path in commands:
        command: Any = typer.main.get_command(app)
        for name in path:
            command = command.commands[name]
        assert command.help, f"{' '.join(path)} has no help"


def test_an_unreachable_dependency_is_one_line_and_exit_code_four(tmp_path: Path) -> None:
    """Red when: an error of a library passes `one_line_errors` as it is."""
    address = f"127.0.0.1:{ports.pick_free()}"
    done = _run(
        "stock", "set", "LAMP", "1", "--request", "r", "--data-dir", str(tmp_path),
        EVERYCENT_TEMPORAL__ADDRESS=address,
    )  # fmt: skip
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert address in line
    assert "everycent up" in line
    assert done.stdout == ""


def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    done = _run("order", "list", "--data-dir", str(tmp_path), EVERYCENT_DEBUG="1")
    assert "Traceback" in done.stderr


def test_no_stack_at_all_is_one_line_with_the_fix(tmp_path: Path) -> None:
    done = _run("order", "list", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "everycent up" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("explain", "o-1", "--jsn"), "No such option: --jsn"),
        (("order", "show"), "Missing argument 'ORDER'; see `everycent order show --help`"),
        (("nonsense",), "No such command 'nonsense'; see `everycent --help`"),
        (("stock", "set", "LAMP", "minus one"), "Invalid value for 'units'"),
    ],
)
def test_a_typing_mistake_is_one_line_on_stderr(words: tuple[str, ...], told: str) -> None:
    """Red when: typer tells it itself, in a box of five lines."""
    done = _run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_a_group_without_a_command_shows_its_help_and_no_error() -> None:
    done = _run("order")
    assert (done.returncode, done.stderr) == (2, "")
    assert "place" in done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("EVERYCENT_STEPS", "sideways", "EVERYCENT_STEPS: Input should be 'apart' or 'together'"),
        ("EVERYCENT_POOL__SIZE", "0", "EVERYCENT_POOL__SIZE: Input should be greater than or"),
        ("EVERYCENT_READ__SHOP", "s3cret", "EVERYCENT_READ__SHOP: Input should be 'order', "),
        ("EVERYCENT_READ", "s3cret", 'error parsing value for field "read"'),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    tmp_path: Path, variable: str, value: str, told: str
) -> None:
    """Red when: pydantic's own text is shown, with its links, and the value in it."""
    done = _run("order", "list", "--data-dir", str(tmp_path), **{variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {told}")
    assert "s3cret" not in line
    assert "http" not in line


def test_the_status_of_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    """Red when: a typing mistake in the folder's name looks like a stack that was stopped."""
    done = _run("status", "--data-dir", str(tmp_path / "typo"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: there is no folder {tmp_path / 'typo'}; ")


def test_check_names_the_temporal_server_that_is_really_asked(
    tmp_path: Path, live: Settings
) -> None:
    """Red when: the settings' address is told where a TEMPORAL_* variable has led elsewhere."""
    done = _run(
        "check", "--data-dir", str(tmp_path),
        TEMPORAL_ADDRESS=live.temporal.address, EVERYCENT_TEMPORAL__ADDRESS="127.0.0.1:1",
    )  # fmt: skip
    assert f"ok     Temporal: {live.temporal.address}, namespace default" in done.stdout


def test_every_exit_code_is_told_by_help_and_on_the_page() -> None:
    """Red when: a code, or what it means, is left out of one of them."""
    told = " ".join(_run("--help").stdout.replace("│", " ").split())
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for code in ExitCode:
        assert f"| {code.value} | " in page
        assert f" {code.value} " in told.partition("Exit codes:")[2]
    assert "waits for another payment" in told
    assert "waits for another payment" in page


def test_check_names_everything_that_is_missing_and_the_fix(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{ports.pick_free()}"
    done = _run(
        "check", "--data-dir", str(tmp_path),
        EVERYCENT_TEMPORAL__ADDRESS=nowhere, EVERYCENT_PROVIDER__URL=f"http://{nowhere}",
        EVERYCENT_DATABASE__ORDER=f"postgresql://u:secret@{nowhere}/d",
    )  # fmt: skip
    assert done.returncode == 4
    assert "EVERYCENT_READ__ORDER" in done.stdout
    assert "EVERYCENT_PROVIDER__URL" in done.stdout
    assert "EVERYCENT_TEMPORAL__ADDRESS" in done.stdout
    assert f"u at {nowhere}/d" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
