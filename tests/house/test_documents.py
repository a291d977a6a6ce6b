"""The documents are true: links lead somewhere, tests, settings and commands they name exist."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from everycent.settings import SERVICES, Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NO_SETTING = {"EVERYCENT_READY_FILE", "EVERYCENT_DEBUG", "EVERYCENT_IMAGE", "EVERYCENT_DATA_DIR"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_and_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"`(test_\w+)`", text)) <= _tests()
    folders = "everycent|workflows|activities|workers|starters|tests|docs"
    for name in re.findall(rf"`((?:{folders})/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md", "docker-compose.yml"])
def test_every_setting_that_is_named_is_one(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"\bEVERYCENT_[A-Z][A-Z_]*[A-Z]\b", text))
    unknown = {each for each in named - NO_SETTING if not _is_setting(each)}
    assert unknown == set()


def test_every_setting_is_told_on_the_operations_page() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    told_by_a_stack = {"stack"}  # Not to be set: its own file says it.
    for name, field in Settings.model_fields.items():
        if name in told_by_a_stack:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for inner in kind.model_fields:
                assert f"EVERYCENT_{name}__{inner}".upper() in page, inner
        else:
            assert f"EVERYCENT_{name}".upper() in page, name


@pytest.mark.timeout(180)
def test_the_readme_sells_an_order_as_it_is_written(tmp_path: Path) -> None:
    """The very commands of the README, on a data folder of the test's own."""
    block = re.search(r"```sh\nmake install\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block, "the README has lost its commands"
    everycent = f'everycent() {{ {Path(sys.executable).with_name("everycent")} "$@"; }}\n'
    assert "alias everycent=.venv/bin/everycent\n" in block[1]
    script = block[1].replace("alias everycent=.venv/bin/everycent\n", everycent)
    done = subprocess.run(
        ["sh", "-euc", f"trap 'everycent down' EXIT\n{script}"],
        cwd=tmp_path, env={**os.environ, "EVERYCENT_DATA_DIR": str(tmp_path / "data")},
        capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONFIRMED" in done.stdout
    assert "/namespaces/default/workflows/checkout%2Fdefault%2Fo-1" in done.stdout
    assert re.search(r"broken invariants +0", done.stdout)


def _tests() -> set[str]:
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in _functions(path)
        if node.name.startswith("test_")
    }


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _is_setting(variable: str) -> bool:
    name, _, inner = variable.removeprefix("EVERYCENT_").lower().partition("__")
    if name not in Settings.model_fields:
        return False
    kind = Settings.model_fields[name].annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return inner in kind.model_fields
    return not inner or inner in SERVICES
