"""`everycent order …`: place, show, list, pay, cancel, import."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starters.cli import messages
from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    Tenant,
    books,
    new_table,
    one_line,
    one_line_errors,
    print_facts,
    print_json,
    print_table,
    run,
    say,
    shop,
    web_ui,
)

if TYPE_CHECKING:
    from everycent.database.reads import OrderFile
    from everycent.domain.order import Payment, Placement, PlaceOrder
    from everycent.settings import Settings

OrderId = Annotated[str, typer.Argument(metavar="ORDER", help="The id of the order.")]


class Status(StrEnum):
    """How an order stands; the same words as the domain's, without importing it."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


class WaitsFor(StrEnum):
    """What an order waits for; the domain's words as well."""

    NOTHING = "nothing"
    PAYMENT = "payment"
    STOCK = "stock"
    PROVIDER = "provider"
    REPAIR = "repair"


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Sell orders and look at them.")
    group.command()(place)
    group.command()(messages.start)
    group.command()(show)
    group.command("list")(list_orders)
    group.command()(pay)
    group.command()(cancel)
    group.command("import")(import_orders)
    app.add_typer(group, name="order")


def place(
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="The order as JSON.")],
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the order is decided.")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Return once it is written down; nothing is held yet.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Sell an order and print how it ended; typed again, it prints the same and sells nothing.

    Exit code 3 when the order was refused, or waits for another payment; 0 when it is confirmed, or
    waits for its customer to pay on the page that is printed.
    """
    order = read_order(file)
    if accept:
        raise typer.Exit(_exit_code(run(_accept(order, data_dir, as_json=as_json))))
    placement = run(_place(order, data_dir, wait=not no_wait))
    _print_placement(placement, as_json=as_json)
    raise typer.Exit(_exit_code(placement))


def show(
    order_id: OrderId,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print all that the services know about an order."""
    file, link = run(_read_file(tenant, order_id, data_dir))
    if as_json:
        print_json({**file.model_dump(mode="json"), **_totals(file), "web_ui": link})
    else:
        _print_file(file, link)


def list_orders(
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    waits_for: Annotated[WaitsFor | None, typer.Option(help="Only these.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print orders, the newest first."""
    found = run(_list(tenant, status, waits_for, limit, data_dir))
    if as_json:
        hidden = {"request", "request_hash", "result"}
        print_json([each.model_dump(mode="json", exclude=hidden) for each in found])
        return
    table = new_table("order", "status", "waits for", "customer", "total minor", "opened", "reason")
    for each in found:
        table.add_row(
            each.order_id, each.status, each.waits_for, each.customer,
            f"{each.total_minor} {each.currency}", f"{each.opened_at:%Y-%m-%d %H:%M:%S}",
            each.reason,
        )  # fmt: skip
    print_table(table)


def pay(
    order_id: OrderId,
    card: Annotated[str | None, typer.Option(help="A card, by the provider's token.")] = None,
    redirect: Annotated[
        bool, typer.Option("--redirect", help="The customer pays on the provider's page.")
    ] = False,
    balance: Annotated[str | None, typer.Option(help="A stored balance, by its account.")] = None,
    request: Annotated[
        str | None,
        typer.Option(help="The id of this attempt.", show_default="one per payment method"),
    ] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Pay an order whose last payment was refused in another way; the same twice is one attempt."""
    with one_line_errors():
        payment = _payment(card, redirect=redirect, balance=balance, request=request)
    placement = run(_pay(tenant, order_id, payment, data_dir))
    _print_placement(placement, as_json=as_json)
    raise typer.Exit(_exit_code(placement))


def cancel(
    order_id: OrderId,
    reason: Annotated[str, typer.Option(help="Why.")] = "the customer cancelled",
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Cancel an order; exit code 3 and the reason when it is too late."""
    placement = run(_cancel(tenant, order_id, reason, data_dir))
    _print_placement(placement, as_json=as_json)
    raise typer.Exit(ExitCode.OK if placement.status == "CANCELLED" else ExitCode.REFUSED)


def import_orders(
    csv_file: Annotated[Path, typer.Argument(metavar="CSV", help="One purchase per row.")],
    receive: Annotated[
        bool, typer.Option("--receive", help="First book the units into stock, once per file.")
    ] = False,
    sku: Annotated[str, typer.Option(help="What every row sells.")] = "CD",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=500, help="Orders in flight.")] = 32,
    currency: Annotated[str, typer.Option(help="Of all amounts; two decimals.")] = "USD",
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Sell every row of a file of purchases; stopped anywhere and typed again, it goes on.

    Columns: order_id, customer_id, ordered_on, quantity, amount_usd (of the whole row). Exit code 2
    when a row is malformed, else 3 when an order was refused.
    """
    with one_line_errors():
        from starters.importer import Import

        work = Import(
            csv_file, tenant=tenant, sku=sku, currency=currency, limit=limit,
            receive=receive, concurrency=concurrency, say=say,
        )  # fmt: skip
    summary = run(_import(work, data_dir))
    if as_json:
        print_json(summary)
    else:
        print_facts(summary.model_dump(exclude={"problems"}))
    if summary.malformed:
        raise typer.Exit(ExitCode.INVALID)
    raise typer.Exit(ExitCode.REFUSED if summary.refused else ExitCode.OK)


def read_order(file: Path) -> "PlaceOrder":
    """Read an order as a person hands it in."""
    with one_line_errors():
        from everycent.domain.order import PlaceOrder
        from everycent.errors import InvalidRequest

        try:
            document = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"cannot read {file}: {error.strerror}") from error
        return PlaceOrder.from_door(document)


async def _place(order: "PlaceOrder", data_dir: Path, *, wait: bool) -> "Placement":
    async with shop(data_dir) as at:
        return await at.checkouts.sell(order, wait=wait, say=say)


async def _accept(order: "PlaceOrder", data_dir: Path, *, as_json: bool) -> "Placement":
    """Answer before the run is started: whoever dies in between leaves it to the sweeper."""
    from temporalio.service import RPCError

    async with shop(data_dir) as at:
        accepted = await at.checkouts.accept(order)
        _print_placement(accepted, as_json=as_json)
        sys.stdout.flush()
        try:
            await at.checkouts.begin(order.tenant, order.order_id)
        except RPCError as error:
            say(f"accepted; the sweeper will start its run, Temporal says: {one_line(error)}")
        return accepted


async def _pay(tenant: str, order_id: str, payment: "Payment", data_dir: Path) -> "Placement":
    from everycent.domain.order import AttemptRefused, PayOrder
    from starters.choreographed import placement_of
    from starters.refusals import TooLateError

    async with shop(data_dir) as at:
        if await at.choreographed.drives(tenant, order_id):
            named = await at.choreographed.pay(tenant, order_id, payment)
            if isinstance(named, AttemptRefused):
                raise TooLateError(f"this payment is not tried: {named.reason}")
            return placement_of(await at.choreographed.follow(tenant, order_id))
        answer = await at.checkouts.pay(tenant, order_id, PayOrder(payment=payment))
        if isinstance(answer, AttemptRefused):
            raise TooLateError(f"this payment is not tried: {answer.reason}")

        async def answered() -> bool:
            file = await at.reader.order_file(tenant, order_id)
            return file is not None and file.is_answered(payment.request_id)

        return await at.checkouts.follow(tenant, order_id, answered)


async def _cancel(tenant: str, order_id: str, reason: str, data_dir: Path) -> "Placement":
    from everycent.domain.order import CancelOrder, OrderStatus
    from starters.choreographed import placement_of
    from starters.refusals import TooLateError

    async with shop(data_dir) as at:
        if await at.choreographed.drives(tenant, order_id):
            verdict = await at.choreographed.cancel(tenant, order_id, reason)
            if verdict.status is not OrderStatus.CANCELLED:
                raise TooLateError(f"too late to cancel: the order is {verdict.decision.lower()}")
            return placement_of(await at.choreographed.follow(tenant, order_id))
        await at.checkouts.cancel(tenant, order_id, CancelOrder(reason=reason))
        return await at.checkouts.follow(tenant, order_id)


async def _list(
    tenant: str, status: Status | None, waits_for: WaitsFor | None, limit: int, data_dir: Path
) -> Any:
    from everycent.domain import order

    async with books(data_dir) as reader:
        return await reader.orders(
            tenant,
            status=order.OrderStatus(status) if status else None,
            waits_for=order.WaitsFor(waits_for) if waits_for else None,
            limit=limit,
        )


async def _import(work: Any, data_dir: Path) -> Any:
    async with shop(data_dir) as at:
        return await work.run(at.checkouts, at.bookings)


async def _read_file(tenant: str, order_id: str, data_dir: Path) -> "tuple[OrderFile, str]":
    from everycent.errors import InvalidRequest
    from everycent.settings import load

    settings: Settings = load(data_dir)
    async with books(data_dir) as reader:
        file = await reader.order_file(tenant, order_id)
    if file is None:
        raise InvalidRequest(f"there is no order {order_id} of tenant {tenant}")
    return file, web_ui(settings, file.order.request.workflow_id())


def _payment(
    card: str | None, *, redirect: bool, balance: str | None, request: str | None
) -> "Payment":
    """Build the payment; without an id, the same way to pay is the same attempt."""
    from everycent.domain.message import problems_of
    from everycent.domain.order import PAYMENTS
    from everycent.errors import InvalidRequest
    from starters.checkouts import attempt_id

    ways: list[dict[str, str]] = []
    if card is not None:
        ways.append({"method": "card", "card_token": card})
    if redirect:
        ways.append({"method": "redirect"})
    if balance is not None:
        ways.append({"method": "balance", "account": balance})
    if len(ways) != 1:
        raise InvalidRequest("name one way to pay: --card TOKEN, --redirect or --balance ACCOUNT")
    from pydantic import ValidationError

    try:
        return PAYMENTS.validate_python({**ways[0], "request_id": request or attempt_id(ways[0])})
    except ValidationError as error:
        raise InvalidRequest(problems_of(error)) from error


def _exit_code(placement: "Placement") -> ExitCode:
    if placement.result is not None:
        return ExitCode.OK if placement.status == "CONFIRMED" else ExitCode.REFUSED
    if placement.waits_for == "repair":
        return ExitCode.UNREACHABLE
    if placement.waits_for == "payment" and placement.redirect_url is None:
        return ExitCode.REFUSED
    return ExitCode.REFUSED if placement.decision == "ABORTING" else ExitCode.OK


def _print_placement(placement: "Placement", *, as_json: bool) -> None:
    """Print the result, or how far the order has come."""
    if placement.result is not None:
        facts = placement.result.model_dump(mode="json")
    else:
        facts = placement.model_dump(mode="json", exclude={"request_hash", "result"})
    if as_json:
        print_json(facts)
    else:
        refusals = [str(refusal) for refusal in facts.pop("refusals", [])]
        print_facts({**facts, "refusals": refusals})


def _totals(file: "OrderFile") -> dict[str, int]:
    return {
        "captured_minor": file.captured_minor,
        "refunded_minor": file.refunded_minor,
        "points_used": file.points_used,
        "points_earned": file.points_earned,
        "units_held": file.units_held,
        "units_sold": file.units_sold,
    }


def _print_file(file: "OrderFile", link: str) -> None:
    order = file.order
    names = {"order_id", "tenant", "customer", "status", "reason", "decision", "waits_for",
             "currency", "total_minor", "mode"}  # fmt: skip
    times = ("opened_at", "window_ends_at", "decided_at", "closed_at")
    print_facts(
        order.model_dump(mode="json", include=names)
        | {name: value for name in times if (value := getattr(order, name))}
        | _totals(file)
        | {"web_ui": link}
    )
    for name, rows in (
        ("payments", file.payments), ("refunds", file.refunds), ("stock", file.stock),
        ("balance holds", file.balance_holds), ("balance credits", file.balance_credits),
        ("points holds", file.points_holds), ("points bookings", file.points_bookings),
        ("ledger entries", file.entries), ("repair cases", file.cases),
    ):  # fmt: skip
        if rows:
            _print_rows(name, [row.model_dump(mode="json", exclude=_HIDDEN) for row in rows])


_HIDDEN = {"try_answer", "provider_id", "tenant", "order_id", "proposals", "owner", "posted_at"}


def _print_rows(name: str, rows: list[dict[str, Any]]) -> None:
    typer.echo(f"\n{name}")
    table = new_table(*(column.replace("_", " ") for column in rows[0]))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    print_table(table)
