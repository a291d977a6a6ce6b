"""`everycent new` writes what works: its tests pass at once, with the package as installed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERYCENT = Path(sys.executable).with_name("everycent")
FOREIGN = 'raise SystemExit("the foreign folder was imported")\n'


def run(*words: object, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts into site-packages: no folder of ours has its plain name there."""
    folder = Path(tmp_path_factory.mktemp("wheel"))
    built = run(
        sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=ROOT
    )
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of a user, who has a `workflows` of her own."""
    for name in ("workflows", "activities", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(FOREIGN)
    return tmp_path


@pytest.mark.requirement("AC14.6", "AC14.3")
@pytest.mark.parametrize(("kind", "tests"), [("participant", 2), ("flow", 1)])
def test_a_skeleton_passes_its_own_tests_at_once(
    project: Path, package: Path, kind: str, tests: int
) -> None:
    """On servers of its own, with the wheel's package and foreign folders of our names beside it.

    Red when: a template is out of date, or a part of the kit imports `workflows` by its plain name.
    """
    written = run(sys.executable, "-m", "everycent", "new", kind, "gift_card", folder=project,
                  path=package)  # fmt: skip
    assert written.returncode == 0, written.stderr
    words = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_gift_card.py")
    passed = run(*words, folder=project, path=package)
    assert f"{tests} passed" in passed.stdout, passed.stdout + passed.stderr
    where = "import gift_card_worker, everycent; print(everycent.__file__)"
    imported = run(sys.executable, "-c", where, folder=project, path=package)
    assert imported.stdout.startswith(str(package)), imported.stderr


def test_a_skeleton_that_is_broken_fails_its_tests(project: Path) -> None:
    """A Cancel that gives nothing back: the generated conformance says so."""
    assert run(EVERYCENT, "new", "participant", "gift_card", folder=project).returncode == 0
    file = project / "gift_card.py"
    free = "held = held - 1, free = free + 1"
    assert free in file.read_text()
    file.write_text(file.read_text().replace(free, "held = held - 1"))
    failed = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                 "test_gift_card.py", folder=project)  # fmt: skip
    assert "a Cancel leaves nothing held" in failed.stdout


def test_nothing_is_written_over_and_a_name_is_one(project: Path) -> None:
    assert run(EVERYCENT, "new", "flow", "trip", folder=project).returncode == 0
    (project / "trip.py").unlink()
    again = run(EVERYCENT, "new", "flow", "trip", folder=project)
    assert (again.returncode, (project / "trip.py").exists()) == (2, False)
    assert "is there already" in again.stderr
    assert run(EVERYCENT, "new", "flow", "../trip", folder=project).returncode == 2


def test_a_skeleton_is_clean_to_a_linter(project: Path) -> None:
    for kind, name in (("participant", "gift_card"), ("flow", "trip")):
        assert run(EVERYCENT, "new", kind, name, folder=project).returncode == 0
    ruff = run(EVERYCENT.with_name("ruff"), "check", "--isolated", "--line-length", "100",
               "--select", "E,F,B,UP", ".", folder=project)  # fmt: skip
    assert ruff.returncode == 0, ruff.stdout
