"""`everycent case …`: steps that did not succeed within their budget, and what becomes of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    books,
    new_table,
    operator,
    print_facts,
    print_json,
    print_table,
    run,
    say,
    shop,
)

if TYPE_CHECKING:
    from everycent.database.reads import CaseView
    from everycent.domain.order import RepairAnswer
    from starters.cli.common import Shop

Key = Annotated[str, typer.Argument(metavar="KEY", help="The case's key, as `case list` shows it.")]
By = Annotated[str | None, typer.Option(help="Who says so.", show_default="your user name")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Repair what is parked.")
    group.command("list")(list_cases)
    group.command()(show)
    group.command()(retry)
    group.command()(resolve)
    app.add_typer(group, name="case")


def list_cases(
    every: Annotated[bool, typer.Option("--all", help="The resolved ones too.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Only of this shop.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the open cases, the oldest first."""
    found = run(_list(tenant, every=every, data_dir=data_dir))
    if as_json:
        print_json(list(found))
        return
    table = new_table("key", "step", "state", "attempts", "since", "can be", "error")
    for each in found:
        table.add_row(
            each.case_key, each.step, each.state, str(each.attempts),
            f"{each.opened_at:%Y-%m-%d %H:%M:%S}", ", ".join(each.proposals),
            f"{each.error_class}: {each.error}",
        )  # fmt: skip
    print_table(table)


def show(key: Key, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print one case."""
    _print(run(_show(key, data_dir)), as_json=as_json)


def retry(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="The case's key, as `case list` shows it.")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Every open case of this step.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Every open case of this shop.")] = None,
    error: Annotated[str | None, typer.Option(help="Every one whose error says this.")] = None,
    by: By = None,
    reason: Annotated[str, typer.Option(help="Why now.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run the step again now, of one case or of all that the options name.

    Exit code 4 when one fails again.
    """
    if key is not None:
        _instruct(key, "retry", by, reason, as_json=as_json, data_dir=data_dir)
        return
    if step is None and tenant is None and error is None:
        raise typer.BadParameter("name a case, or --step, --tenant or --error")
    chosen = run(_chosen(step, tenant, error, data_dir))
    again = [run(_repair(each, "retry", by or operator(), reason, data_dir)) for each in chosen]
    if as_json:
        print_json([view for view, _ in again])
    else:
        for view, answer in again:
            typer.echo(f"{view.case_key}  {view.state if answer.done else answer.error}")
    say(f"{sum(answer.done for _, answer in again)} of {len(again)} are done")
    if not all(answer.done for _, answer in again):
        raise typer.Exit(ExitCode.UNREACHABLE)


async def _chosen(
    step: str | None, tenant: str | None, error: str | None, data_dir: Path
) -> list[str]:
    async with books(data_dir) as reader:
        return [
            case.case_key
            for case in await reader.cases(tenant)
            if "retry" in case.proposals
            and step in (None, case.step)
            and (error is None or error in f"{case.error_class}: {case.error}")
        ]


def resolve(
    key: Key,
    reason: Annotated[str, typer.Option(help="What was done by hand.")],
    by: By = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Take the step as done by hand; who and why stay on record."""
    _instruct(key, "resolve", by, reason, as_json=as_json, data_dir=data_dir)


def _instruct(
    key: str,
    action: Literal["retry", "resolve"],
    by: str | None,
    reason: str,
    *,
    as_json: bool,
    data_dir: Path,
) -> None:
    view, answer = run(_repair(key, action, by or operator(), reason, data_dir))
    _print(view, as_json=as_json)
    if not answer.done:
        say(f"error: it failed again: {answer.error}")
        raise typer.Exit(ExitCode.UNREACHABLE)


async def _repair(
    key: str, action: Literal["retry", "resolve"], by: str, reason: str, data_dir: Path
) -> "tuple[CaseView, RepairAnswer]":
    from everycent.domain.order import RepairAnswer, RepairOrder
    from everycent.domain.reconciliation import OWNER as RECONCILIATION
    from starters.refusals import NotRunningError, TooLateError

    async with shop(data_dir) as at:
        case = await _known(at.reader, key)
        if case.state == "RESOLVED":
            raise TooLateError(f"{key} was resolved by {case.resolved_by}: {case.resolution}")
        if case.owner == RECONCILIATION:
            return await _repair_break(at, case, action, by, reason)
        if case.owner.startswith("sweeper/"):
            return await _repair_orphan(at, case, action, by, reason), RepairAnswer(done=True)
        request = RepairOrder(case_key=key, action=action, by=by, reason=reason)
        try:
            answer = await at.checkouts.repair(case.tenant, case.order_id, request)
        except NotRunningError:
            if action == "resolve":  # The new run finds the step settled and goes on behind it.
                await at.bookings.settle_case(case.tenant, case.order_id, key, by=by, reason=reason)
            say(f"no run of order {case.order_id} lives: it is taken up again")
            await at.checkouts.take_up(case.tenant, case.order_id)
            answer = RepairAnswer(done=True)
        return await _known(at.reader, key), answer


async def _repair_break(
    at: "Shop", case: "CaseView", action: Literal["retry", "resolve"], by: str, reason: str
) -> "tuple[CaseView, RepairAnswer]":
    """Look at a break again, or take a person's word that it is settled."""
    from everycent.domain.order import RepairAnswer
    from starters.reconciling import Reconciliation, terms_of_now

    if action == "retry":
        work = Reconciliation(at.reader, at.bookings, terms_of_now(case.tenant, by))
        await work.look_again([case.case_key])
    else:
        await at.bookings.settle_case(
            case.tenant, case.order_id, case.case_key, by=by, reason=reason
        )
    view = await _known(at.reader, case.case_key)
    done = view.state == "RESOLVED"
    return view, RepairAnswer(done=done, error="" if done else f"still so: {view.error}")


async def _repair_orphan(
    at: "Shop", case: "CaseView", action: Literal["retry", "resolve"], by: str, reason: str
) -> "CaseView":
    """Settle what the sweeper has left for a person; no run holds such a case."""
    from everycent.errors import InvalidRequest

    if action not in case.proposals:
        raise InvalidRequest(f"{case.case_key} can only be helped by: {', '.join(case.proposals)}")
    if action == "retry":
        await at.checkouts.take_up(case.tenant, case.order_id)
        reason = reason or "the order was taken up again"
    await at.bookings.settle_case(
        case.tenant, case.order_id, case.case_key, by=by, reason=reason, by_hand=action == "resolve"
    )
    return await _known(at.reader, case.case_key)


async def _list(tenant: str | None, *, every: bool, data_dir: Path) -> Any:
    from everycent.domain.order import CaseState

    async with books(data_dir) as reader:
        return await reader.cases(tenant, state=None if every else CaseState.OPEN)


async def _show(key: str, data_dir: Path) -> "CaseView":
    async with books(data_dir) as reader:
        return await _known(reader, key)


async def _known(reader: Any, key: str) -> "CaseView":
    from everycent.errors import InvalidRequest

    view: CaseView | None = await reader.case(key)
    if view is None:
        raise InvalidRequest(f"there is no case {key}; `everycent case list` shows them")
    return view


def _print(view: "CaseView", *, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        print_facts(view.model_dump(mode="json"))
