"""The fault points: what a rule may say, which hits it strikes, what the journal keeps."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from everycent import faults
from everycent.errors import Unknown
from everycent.faults import ACTIONS, POINTS, BadRuleError, Faults, Rule, Visit
from everycent.settings import Settings
from starters.cli.app import app
from starters.cli.common import ExitCode
from workers import fault_points

ORDER = Visit("shop/o-1", "inventory.reserve_stock")


def _file(tmp_path: Path, *rules: dict[str, object]) -> Path:
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules))
    return file


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"point": "activity.never", "action": "kill"}, list(POINTS)),
        ({"point": "activity.before", "action": "dance"}, list(ACTIONS)),
        ({"point": "commit.after", "action": "twice"}, ["activity.before"]),
        ({"point": "activity.before", "action": "kill", "ntn": 2}, ["nth", "probability", "seed"]),
        ({"point": "activity.before", "action": "kill", "probability": 2}, ["out of its range"]),
    ],
)
@pytest.mark.requirement("AC4.3")
def test_a_bad_rule_is_refused_with_what_is_valid(rule: dict[str, object], told: list[str]) -> None:
    """Red when: a rule's point, action or field is taken without a look at the tables."""
    with pytest.raises(BadRuleError) as refused:
        faults.read_rules(json.dumps([rule]))
    assert all(word in str(refused.value) for word in told)


@pytest.mark.requirement("AC4.3")
async def test_only_the_wanted_hit_of_the_wanted_order_is_struck(tmp_path: Path) -> None:
    """Red when: hits are counted over all orders instead of per order."""
    rule = {"point": "commit.before", "action": "unknown", "order": "shop/*", "nth": 2}
    armed = Faults(_file(tmp_path, rule), {"unknown": Unknown})
    with faults.visiting(Visit("shop/o-2", "inventory.reserve_stock")):
        await armed.reach("commit.before")
    with faults.visiting(ORDER):
        await armed.reach("commit.before")
        with pytest.raises(Unknown):
            await armed.reach("commit.before")
        await armed.reach("commit.before")


@pytest.mark.requirement("AC4.3")
async def test_a_process_that_comes_back_counts_on(tmp_path: Path) -> None:
    """Red when: the hits are not read from the journal: a killed process is killed for ever."""
    file = _file(tmp_path, {"point": "commit.before", "action": "unknown", "name": "once"})
    with faults.visiting(ORDER), pytest.raises(Unknown):
        await Faults(file, {"unknown": Unknown}).reach("commit.before")
    with faults.visiting(ORDER):
        await Faults(file, {"unknown": Unknown}).reach("commit.before")
    assert [line["acts"] for line in faults.read_journal(file)] == [True, False]


async def test_a_visitor_stands_until_its_rule_is_gone(tmp_path: Path) -> None:
    """Red when: the rules are read only once."""
    file = _file(tmp_path, {"point": "activity.after", "action": "halt"})
    armed = Faults(file)
    with faults.visiting(ORDER):
        standing = asyncio.create_task(armed.reach("activity.after"))
        await asyncio.wait([standing], timeout=3 * faults.LOOK_SECONDS)
        assert not standing.done()
        file.write_text("[]")
        await standing


def test_the_same_seed_draws_the_same_hits() -> None:
    """Red when: a hit is drawn from an unseeded generator."""
    rule = Rule("commit.before", "kill", nth=0, probability=0.5, seed=7)
    drawn = [rule.strikes("shop/o-1", hit) for hit in range(1, 200)]
    assert drawn == [rule.strikes("shop/o-1", hit) for hit in range(1, 200)]
    assert 60 < sum(drawn) < 140
    other = Rule("commit.before", "kill", nth=0, probability=0.5, seed=8, name=rule.name)
    assert drawn != [other.strikes("shop/o-1", hit) for hit in range(1, 200)]


async def test_who_works_for_no_order_passes_every_point(tmp_path: Path) -> None:
    armed = Faults(_file(tmp_path, {"point": "commit.before", "action": "kill"}))
    await armed.reach("commit.before")
    assert faults.read_journal(tmp_path / "rules.json") == []


def test_a_worker_that_is_not_armed_has_no_points_installed(tmp_path: Path) -> None:
    """Red when: the points are put around activities, workflows and gateway in every worker."""
    det = cast(Any, SimpleNamespace(info=SimpleNamespace(workflow_id="f/t/o", workflow_type="f")))
    fault_points.arm(Settings(data_dir=tmp_path))
    assert faults.armed is None
    assert fault_points.interceptors() == []
    assert fault_points.after_task(det) is None
    fault_points.arm(Settings(data_dir=tmp_path, faults="[]"))
    try:
        assert len(fault_points.interceptors()) == 1
        assert fault_points.after_task(det) is not None
    finally:
        faults.disarm()


@pytest.mark.requirement("AC4.3")
def test_a_worker_with_a_bad_rule_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when: the rules are first read when an order comes to a point."""
    monkeypatch.setenv("EVERYCENT_FAULTS", '[{"point": "commit.never", "action": "kill"}]')
    told = CliRunner().invoke(app, ["worker", "inventory", "--data-dir", str(tmp_path)])
    assert told.exit_code == ExitCode.INVALID
    assert "commit.before" in told.stderr
