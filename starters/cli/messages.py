"""`everycent messages …` and `everycent order start`: orders that messages drive."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    Tenant,
    books,
    new_table,
    one_line_errors,
    print_facts,
    print_json,
    print_table,
    run,
    say,
    shop,
)

if TYPE_CHECKING:
    from everycent.database.message_reads import Count, MessageView
    from everycent.database.reads import OrderView
    from everycent.domain.order import PlaceOrder

UNFINISHED = ("PENDING", "SENT", "RECEIVED", "DEAD")


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Look at messages between services.")
    group.command("list")(list_messages)
    group.command()(count)
    group.command()(replay)
    group.command()(told)
    group.command()(serve)
    app.add_typer(group, name="messages")


def list_messages(
    state: Annotated[
        list[str] | None, typer.Option(help="Only these.", show_default="all but CONSUMED")
    ] = None,
    order: Annotated[str | None, typer.Option(help="Only of this order.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Of each box.")] = 100,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print messages and why they wait, the oldest first."""
    xid = f"{tenant}/{order}" if order else None
    found = run(_list(tuple(state or UNFINISHED), xid, limit, data_dir))
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    table = new_table("service", "box", "key", "to or from", "state", "tries", "next", "error")
    for each in found:
        table.add_row(
            each.service, each.box, each.key, each.other, each.state, str(each.attempts),
            f"{each.next_retry_at:%Y-%m-%d %H:%M:%S}", each.last_error,
        )  # fmt: skip
    print_table(table)


def count(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print how many messages are under way or dead, and since when the oldest."""
    found = run(_count(data_dir))
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    table = new_table("service", "box", "state", "messages", "oldest")
    for each in found:
        oldest = f"{each.oldest:%Y-%m-%d %H:%M:%S}"
        table.add_row(each.service, each.box, each.state, str(each.messages), oldest)
    print_table(table)


def replay(
    service: Annotated[str, typer.Argument(help="Whose outbox or inbox they are in.")],
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Of dead messages.")],
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Have dead messages tried again; typed twice it is one, and nothing is applied twice.

    A message that its receiver gave up is dead on both sides: replay it there first, then here.
    """
    answer = run(_replay(service, tuple(keys), data_dir))
    if as_json:
        print_json(answer)
    else:
        print_facts({name: ", ".join(found) or "none" for name, found in answer.items()})
    if not any(answer.values()):
        raise typer.Exit(ExitCode.REFUSED)


def told(
    name: Annotated[str, typer.Argument(help="The other system, as the settings name it.")],
    since: Annotated[str, typer.Option(help="An ISO time; of the last answer its `until`.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print as JSON what another system was to be told since then, heard or not."""
    print_json(run(_told(name, since, data_dir)))


def serve(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8090,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Answer other systems by HTTP what they were to be told; needs EVERYCENT_NOTIFY."""
    with one_line_errors():
        from everycent import clock
        from everycent.database.reads import Reader
        from everycent.settings import load
        from starters import notifications

        settings = load(data_dir, "reader")
        app = notifications.create_app(Reader(settings), settings.notify, now=clock.now)
        notifications.serve(app, host, port)


def start(
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="The order as JSON.")],
    mode: Annotated[str, typer.Option(help="saga, tcc, mixed, or choreographed: messages drive.")],
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once it is opened, or decided by a workflow.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Start an order in a mode whatever the rules say; typed again, it sells nothing.

    One that has begun goes on in the mode that it began in.
    """
    from starters.cli.order import read_order

    order = read_order(file)
    if mode == "choreographed":
        view = run(_start(order, data_dir, wait=not no_wait))
    else:
        view = run(_place(order, mode, data_dir, wait=not no_wait))
    names = {"order_id", "mode", "status", "decision", "waits_for", "reason", "driver", "result"}
    facts = view.model_dump(mode="json", include=names)
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)
    if view.status not in ("CONFIRMED", "PENDING") or view.waits_for == "payment":
        raise typer.Exit(ExitCode.REFUSED)


async def _start(order: "PlaceOrder", data_dir: Path, *, wait: bool) -> "OrderView":
    async with shop(data_dir) as at:
        orders = at.choreographed
        await orders.start(order)
        if wait:
            return await orders.follow(order.tenant, order.order_id)
        file = await at.reader.order_file(order.tenant, order.order_id)
        assert file is not None, "it was written down"
        return file.order


async def _place(order: "PlaceOrder", mode: str, data_dir: Path, *, wait: bool) -> "OrderView":
    from starters.routing import mode_named

    order = order.model_copy(update={"mode": mode_named(mode)})
    async with shop(data_dir) as at:
        await at.checkouts.sell(order, wait=wait, say=say)
        view = await at.reader.order(order.tenant, order.order_id)
        assert view is not None, "it was written down"
        return view


async def _list(
    states: tuple[str, ...], xid: str | None, limit: int, data_dir: Path
) -> "list[MessageView]":
    from everycent.database.message_reads import messages

    async with books(data_dir) as reader:
        return await messages(reader, states, xid=xid, limit=limit)


async def _count(data_dir: Path) -> "list[Count]":
    from everycent.database.message_reads import counts

    async with books(data_dir) as reader:
        return await counts(reader)


async def _replay(name: str, keys: tuple[str, ...], data_dir: Path) -> dict[str, Any]:
    from everycent.errors import InvalidRequest
    from everycent.settings import SERVICES

    service = next((each for each in SERVICES if each == name), None)
    if service is None:
        raise InvalidRequest(f"there is no service {name}; there are: {', '.join(SERVICES)}")
    async with shop(data_dir) as at:
        return (await at.choreographed.replay(service, keys)).model_dump(mode="json")


async def _told(name: str, since: str, data_dir: Path) -> Any:
    from datetime import datetime

    from everycent import clock
    from everycent.database.message_reads import told
    from everycent.errors import InvalidRequest

    at = datetime.fromisoformat(since)
    if at.tzinfo is None:
        raise InvalidRequest(f"{since} says no time zone: add Z")
    async with books(data_dir) as reader:
        return await told(reader, name, since=at, now=clock.now())
