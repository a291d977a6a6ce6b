"""`everycent stock | account | points …`: what comes in outside of orders."""

import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    Request,
    Tenant,
    books,
    new_table,
    print_facts,
    print_json,
    print_table,
    run,
    say,
    shop,
)

if TYPE_CHECKING:
    from starters.bookings import Bookings

Sku = Annotated[str, typer.Argument(metavar="SKU")]


def register(app: typer.Typer) -> None:
    """Add the groups to the command line."""
    stock = typer.Typer(no_args_is_help=True, help="Units of goods.")
    stock.command("set")(set_stock)
    stock.command("receive")(receive_stock)
    stock.command("show")(show_stock)
    app.add_typer(stock, name="stock")
    account = typer.Typer(no_args_is_help=True, help="Customers' stored balances.")
    account.command()(deposit)
    app.add_typer(account, name="account")
    points = typer.Typer(no_args_is_help=True, help="Customers' points.")
    points.command()(grant)
    app.add_typer(points, name="points")


def set_stock(
    sku: Sku,
    units: Annotated[int, typer.Argument(min=0)],
    request: Request = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make so many units of a SKU free; the difference is booked in or out."""
    _book(
        lambda at, name: at.set_stock(tenant, sku, units, request=name), request, as_json, data_dir
    )


def receive_stock(
    sku: Sku,
    units: Annotated[int, typer.Argument(min=1)],
    request: Request = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Book units in that arrived."""
    _book(
        lambda at, name: at.receive_stock(tenant, sku, units, request=name),
        request, as_json, data_dir,
    )  # fmt: skip


def show_stock(
    sku: Annotated[str | None, typer.Argument(metavar="[SKU]")] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the stock: received = free + held + sold + written off."""
    found = run(_stock(tenant, sku, data_dir))
    if as_json:
        print_json(list(found))
        return
    table = new_table("sku", "received", "free", "held", "sold", "written off")
    for each in found:
        numbers = (each.received, each.free, each.held, each.sold, each.written_off)
        table.add_row(each.sku, *map(str, numbers))
    print_table(table)


def deposit(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    amount_minor: Annotated[int, typer.Argument(metavar="AMOUNT_MINOR", min=1)],
    currency: Annotated[str, typer.Option(help="Three letters.")] = "USD",
    request: Request = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Put money into a stored balance, in minor units; a new account is opened."""
    _book(
        lambda at, name: at.deposit(tenant, account, amount_minor, currency, request=name),
        request, as_json, data_dir,
    )  # fmt: skip


def grant(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER")],
    points: Annotated[int, typer.Argument(min=1)],
    request: Request = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Give a customer points."""
    _book(
        lambda at, name: at.grant_points(tenant, customer, points, request=name),
        request, as_json, data_dir,
    )  # fmt: skip


def _book(
    book: "Callable[[Bookings, str], Awaitable[Any]]",
    request: str | None,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Make one booking and print its answer; a new id is told, so that it can be typed again."""
    name = request or uuid.uuid4().hex

    async def work() -> Any:
        async with shop(data_dir) as at:
            return await book(at.bookings, name)

    answer = run(work())
    if request is None:
        say(f"booked as --request {name}")
    if as_json:
        print_json(answer)
    else:
        print_facts(answer.model_dump(mode="json", exclude={"kind"}))


async def _stock(tenant: str, sku: str | None, data_dir: Path) -> Any:
    async with books(data_dir) as reader:
        return await reader.stock(tenant, sku)
