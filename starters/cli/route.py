"""`everycent route …`: which mode coming orders get, switched while others run."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    Request,
    books,
    new_table,
    operator,
    print_facts,
    print_json,
    print_table,
    run,
    shop,
)

if TYPE_CHECKING:
    from everycent.domain.routing import Route
    from everycent.domain.shadow import Shadow

Flow = Annotated[str, typer.Option(help="The flow.")]
RuleTenant = Annotated[str, typer.Option(help="The shop; *: every one without a rule of its own.")]
Reason = Annotated[str, typer.Option(help="Why; it stays on record.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Choose how coming orders are kept consistent.")
    group.command("set")(set_route)
    group.command("list")(list_routes)
    group.command()(rollback)
    group.command("shadow")(shadow_run)
    app.add_typer(group, name="route")


def set_route(
    mode: Annotated[str, typer.Argument(metavar="MODE", help="saga, tcc or mixed.")],
    percentage: Annotated[int, typer.Option(help="Of so many orders in a hundred.")] = 100,
    rest: Annotated[
        str | None,
        typer.Option(help="The mode of the others.", show_default="where all of them go now"),
    ] = None,
    tenant: RuleTenant = "*",
    flow: Flow = "checkout",
    reason: Reason = "",
    request: Request = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Give coming orders a mode. What has begun goes on in the mode that it began in."""
    told = _told(flow, tenant, reason, request)
    _print(run(_set(told, mode, percentage, rest, data_dir)), as_json=as_json)


def rollback(
    tenant: RuleTenant = "*",
    flow: Flow = "checkout",
    reason: Reason = "",
    request: Request = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Go back to the rule that stood before."""
    _print(run(_roll_back(_told(flow, tenant, reason, request), data_dir)), as_json=as_json)


def list_routes(
    flow: Flow = "checkout", as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Print every rule that there was; the last one of a shop is the one that stands."""
    rules = run(_list(flow, data_dir))
    if as_json:
        print_json(rules)
        return
    table = new_table("tenant", "number", "rule", "set", "by", "reason")
    for rule in rules:
        table.add_row(
            rule.tenant, str(rule.number), _said(rule), f"{rule.set_at:%Y-%m-%d %H:%M:%S}",
            rule.set_by, rule.reason,
        )  # fmt: skip
    print_table(table)


def shadow_run(
    mode: Annotated[str, typer.Argument(metavar="MODE", help="The mode to be switched to.")],
    orders: Annotated[int, typer.Option(min=1, help="Of so many orders, the newest.")] = 100,
    tenant: RuleTenant = "*",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Tell how the last orders would have gone in another mode, before the switch.

    It reads by read-only roles and asks nobody anything: no row, no hold, no call.
    """
    found = run(_shadow(mode, tenant, orders, data_dir))
    if as_json:
        print_json(found)
        return
    table = new_table("tenant", "order", "today", "then", "begun and cancelled")
    for each in found:
        if each.then is None or each.differs:
            then = each.then.decision if each.then else "cannot be told"
            table.add_row(
                each.tenant, each.order_id, each.today.decision, then, ", ".join(each.more)
            )
    print_table(table)
    untold = sum(each.then is None for each in found)
    differ = sum(each.differs for each in found)
    typer.echo(f"{len(found)} orders: {differ} differ, {untold} cannot be told")


def _told(flow: str, tenant: str, reason: str, request: str | None) -> dict[str, Any]:
    """Return what every change of a rule says of itself."""
    from everycent import clock

    return {
        "flow": flow, "tenant": tenant, "reason": reason, "by": operator(),
        "request_id": request or uuid.uuid4().hex, "at": clock.now(),
    }  # fmt: skip


async def _set(
    told: dict[str, Any], mode: str, percentage: int, rest: str | None, data_dir: Path
) -> "Route":
    from everycent.domain.routing import SetRoute
    from starters.routing import Routing, checked

    request = checked(SetRoute, mode=mode, percentage=percentage, rest=rest, **told)
    async with shop(data_dir) as at:
        together = at.settings.steps == "together"
        return await Routing(at.client, at.reader, together=together).set(request)


async def _roll_back(told: dict[str, Any], data_dir: Path) -> "Route":
    from everycent.domain.routing import RollBackRoute
    from starters.routing import Routing, checked

    request = checked(RollBackRoute, **told)
    async with shop(data_dir) as at:
        together = at.settings.steps == "together"
        return await Routing(at.client, at.reader, together=together).roll_back(request)


async def _list(flow: str, data_dir: Path) -> "list[Route]":
    from starters.routing import Routing

    async with shop(data_dir) as at:
        return await Routing(at.client, at.reader).rules(flow)


async def _shadow(mode: str, tenant: str, orders: int, data_dir: Path) -> "list[Shadow]":
    from everycent.database.shadow_reads import shadows
    from starters.routing import mode_named

    async with books(data_dir) as reader:
        return await shadows(reader, tenant, mode_named(mode), limit=orders)


def _print(rule: "Route", *, as_json: bool) -> None:
    if as_json:
        print_json(rule)
        return
    print_facts({"flow": rule.flow, "tenant": rule.tenant, "rule": _said(rule)})


def _said(rule: "Route") -> str:
    if rule.mode is None:
        return "none of its own"
    if rule.percentage == 100:
        return f"{rule.mode} for all"
    return f"{rule.mode} for {rule.percentage} %, {rule.rest} for the others"
