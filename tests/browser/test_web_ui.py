"""A person with nothing but a browser: Temporal's Web UI alone tells what became of an order."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from everycent.database.reads import reading
from everycent.domain.order import CardPayment, OrderLine, PlaceOrder
from everycent.stack.embedded import EmbeddedStack
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.client import connect

SCREENSHOTS = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
PATIENCE_MS = 30_000
TENANT = "shop"
CHROMIUM_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass(frozen=True)
class WebUi:
    """The Web UI as a person uses it."""

    page: Page
    address: str

    async def list_orders(self, query: str = "") -> None:
        await self.page.goto(f"{self.address}?query={quote(query)}")

    async def add_filter(self, attribute: str, value: str) -> None:
        page = self.page
        await page.get_by_role("button", name="Add Filter").click()
        await page.keyboard.type(attribute)
        await page.get_by_role("menuitem", name=f"{attribute} Keyword").click()
        await page.get_by_placeholder("Enter value").fill(value)
        await page.get_by_role("button", name="Apply").click()

    def order(self, order_id: str) -> Locator:
        return self.page.get_by_role("link", name=f"checkout/{TENANT}/{order_id}", exact=True)

    async def open_order(self, order_id: str) -> None:
        await self.list_orders(f'EverycentOrder="{order_id}"')
        await self.order(order_id).click()
        await expect(self.page.get_by_role("heading", name=f"checkout/{TENANT}")).to_be_visible()

    async def sees(self, *texts: str) -> None:
        for text in texts:
            await expect(self.page.get_by_text(text).first).to_be_visible()

    async def sees_details(self, *texts: str) -> None:
        """Look at the last frame of the tab: the current details, which the page draws there."""
        await self.page.get_by_role("tab", name="User Metadata").click()
        told = self.page.locator("iframe").last.content_frame.locator("body")
        for text in texts:
            await expect(told).to_contain_text(text)

    async def sees_attributes(self, **values: str) -> None:
        await self.page.get_by_role("tab", name="Search Attributes").click()
        shown = self.page.get_by_text('"EverycentTenant"').locator("xpath=ancestor::*[3]")
        for name, value in values.items():
            await expect(shown).to_contain_text(f'"Everycent{name}": "{value}"')

    async def save(self, name: str) -> None:
        """Keep what is seen for the documents; a mere test run leaves the picture as it is."""
        file = SCREENSHOTS / name
        if os.environ.get("EVERYCENT_SCREENSHOTS") == "1" or not file.exists():
            file.parent.mkdir(exist_ok=True)
            await self.page.screenshot(path=file)


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser; where the project's own checks run, none is a failure."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no chromium is installed, and CI=true")
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def stack(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """The whole stack, once a browser is known to be there."""
    with EmbeddedStack(Path(tmp_path_factory.mktemp("web-ui")) / "data") as stack:
        yield stack


@pytest.fixture(scope="module")
async def orders(stack: EmbeddedStack) -> None:
    """Three orders: o-1 is sold, o-2 waits for another card, o-3 is out of stock."""
    client = await connect(stack.settings)
    await Bookings(client).receive_stock(TENANT, "LAMP", 5, request="first")
    async with reading(stack.settings) as reader:
        checkouts = Checkouts(client, reader)
        await checkouts.sell(_order("o-1", units=2))
        await checkouts.sell(_order("o-2", units=2, card_token="tok_declined"))
        await checkouts.sell(_order("o-3", units=4))


@pytest.fixture(scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """A browser with a new profile."""
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, headless=True, args=CHROMIUM_OPTIONS
        )
        yield browser
        await browser.close()


@pytest.fixture
async def web_ui(stack: EmbeddedStack, browser: Browser, orders: None) -> AsyncIterator[WebUi]:
    """The Web UI in a window that remembers nothing."""
    window = await browser.new_context(viewport={"width": 1400, "height": 780}, timezone_id="UTC")
    window.set_default_timeout(PATIENCE_MS)
    temporal = stack.settings.temporal
    address = f"{temporal.ui}/namespaces/{temporal.namespace}/workflows"
    yield WebUi(await window.new_page(), address)
    await window.close()


async def test_an_order_is_found_by_its_id_with_the_mouse(web_ui: WebUi) -> None:
    """Red when: the start does not give the order's id as a search attribute."""
    await web_ui.list_orders()
    await expect(web_ui.order("o-1")).to_be_visible()
    await web_ui.add_filter("EverycentOrder", "o-2")
    await expect(web_ui.order("o-1")).to_have_count(0)
    await expect(web_ui.order("o-2")).to_be_visible()


async def test_orders_are_found_by_how_they_ended(web_ui: WebUi) -> None:
    """Red when: the end of an order does not reach its search attribute."""
    await web_ui.list_orders('EverycentStatus="REJECTED"')
    await expect(web_ui.order("o-3")).to_be_visible()
    await expect(web_ui.order("o-1")).to_have_count(0)
    await web_ui.list_orders('EverycentWaitsFor="payment"')
    await expect(web_ui.order("o-2")).to_be_visible()
    await expect(web_ui.order("o-1")).to_have_count(0)


async def test_a_sold_order_tells_its_steps_and_its_money(web_ui: WebUi) -> None:
    """Red when: a step goes without its summary, or the details do not follow the order's end."""
    await web_ui.open_order("o-1")
    await web_ui.sees("COMPLETED", "hold the stock", "authorise payment first")
    await web_ui.sees("capture the payment", "sell the stock", "book the sale")
    await web_ui.page.get_by_text("open the order").first.scroll_into_view_if_needed()
    await web_ui.save("order-steps-in-web-ui.png")
    await web_ui.sees_details("CONFIRMED", "decision COMMITTED", "2 × LAMP: 29.33 EUR")
    await web_ui.sees_details("captured 29.33 EUR, refunded 0.00 EUR")
    await web_ui.sees_attributes(Status="CONFIRMED", Customer="ada", WaitsFor="nothing")


async def test_an_order_that_waits_tells_for_what_and_why(web_ui: WebUi) -> None:
    """Red when: the details do not say the refusals of the payments."""
    await web_ui.open_order("o-2")
    await web_ui.sees("RUNNING", "payment window", "waits for payment")
    await web_ui.sees_details(
        "waiting for payment", "refused: payment declined, code card_declined"
    )
    await web_ui.sees_attributes(Status="PENDING", WaitsFor="payment")


async def test_a_refused_order_tells_the_facts_and_what_was_undone(web_ui: WebUi) -> None:
    """Red when: the details leave out the refusal's facts or the undos that ran."""
    await web_ui.open_order("o-3")
    await web_ui.sees("COMPLETED", "release the stock", "close as REJECTED")
    await web_ui.sees_details("REJECTED: out of stock, sku LAMP, units wanted 4, units free 1")
    await web_ui.sees_details("undone: release stock", "captured 0.00 EUR")
    await web_ui.save("order-in-web-ui.png")
    await web_ui.sees_attributes(Status="REJECTED")


def _order(order_id: str, *, units: int, card_token: str = "tok_ok") -> PlaceOrder:
    return PlaceOrder(
        tenant=TENANT,
        order_id=order_id,
        customer="ada",
        currency="EUR",
        lines=(OrderLine(sku="LAMP", units=units, amount_minor=2933),),
        payment=CardPayment(card_token=card_token),
    )
