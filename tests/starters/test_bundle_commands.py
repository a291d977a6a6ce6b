"""`everycent explain --bundle` and `everycent replay`: a story to give away, and to replay."""

import asyncio
import base64
import gzip
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from temporalio.client import Client
from typer.testing import CliRunner, Result

from everycent.domain.order import CancelOrder, CardPayment, PayOrder, PlaceOrder, RedirectPayment
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.cli.app import app
from tests.replay.edited import OneStepMore
from tests.starters.conftest import CommandLine

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
CUSTOMER, OPERATOR = "Ada.Lovelace", "gunter@operations"
REASON = "Mr Babbage wants it no more"


@pytest.fixture(autouse=True)
async def stock(bookings: Bookings, tenant: str) -> None:
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "o-1.bundle"


async def in_clear(file: Path) -> str:
    """Return all that a bundle holds; the payloads of its histories are in base64 there."""
    told = gzip.decompress(file.read_bytes()).decode()
    hidden = (base64.b64decode(data) for data in re.findall(r'"data":"([^"]*)"', told))
    return told + "\n".join(each.decode() for each in hidden)


async def secrets_of(everycent: CommandLine) -> set[str]:
    """Return what the services and the provider know of the order that nobody else may."""
    shown = await everycent.json("order", "show", "o-1")
    provider_ids = {each["provider_id"] for each in shown["payments"]} - {None}
    assert provider_ids
    return {CUSTOMER, "tok_", "/pay/int", "http:", OPERATOR, "Babbage", *provider_ids}


@pytest.mark.requirement("I16")
async def test_an_order_is_given_away_without_its_secrets_and_replays_anywhere(
    everycent: CommandLine,
    an_order: Callable[..., PlaceOrder],
    checkouts: Checkouts,
    client: Client,
    tenant: str,
    file: Path,
    until: Until,
) -> None:
    """Two runs: a declined card and a page to pay on, terminated by hand; taken up, cancelled.

    Red when: a secret stays in the timeline or in a history, or a run is left out.
    """
    card = CardPayment(card_token="tok_declined")
    await checkouts.place(an_order(payment=card).model_copy(update={"customer": CUSTOMER}))
    await checkouts.pay(tenant, "o-1", PayOrder(payment=RedirectPayment(request_id="second")))

    async def on_the_page() -> bool:
        told = await everycent.json("explain", "o-1")
        return any(command.startswith("curl") for command in told["next_commands"])

    await until(on_the_page)
    by_hand = await Client.connect(client.service_client.config.target_host, identity=OPERATOR)
    await by_hand.get_workflow_handle(f"checkout/{tenant}/o-1").terminate(reason=REASON)
    await checkouts.take_up(tenant, "o-1")
    await checkouts.cancel(tenant, "o-1", CancelOrder(reason=REASON))
    await client.get_workflow_handle(f"checkout/{tenant}/o-1").result()

    plain = await everycent("explain", "o-1", "--json", "--bundle", str(file))
    assert (plain.exit_code, plain.stdout[:1]) == (0, "{"), plain.stderr
    assert f"wrote {file}: " in plain.stderr
    told, secrets = await in_clear(file), await secrets_of(everycent)
    for secret in secrets:
        assert secret.lower() not in told.lower(), secret
    for stays in ("LAMP", "2999", "29.99 USD", f"{tenant}/o-1/pay/second", "card_declined"):
        assert stays in told

    timeline = json.loads(gzip.decompress(file.read_bytes()))["timeline"]
    whole = json.loads(plain.stdout)
    assert [e["at"] for e in timeline["events"]] == [e["at"] for e in whole["events"]]
    said = [event["what"] for event in timeline["events"]]
    assert {"open the order", "hold the stock", "reservation reserve TRIED 1 × LAMP"} <= {*said}
    done = await asyncio.to_thread(_replay, file)
    assert done.exit_code == 0, done.output
    assert [line.rsplit(": ")[-1] for line in done.stdout.splitlines()] == ["replays", "replays"]


@pytest.mark.requirement("I16")
async def test_code_that_goes_another_way_is_found_by_replay(
    everycent: CommandLine,
    an_order: Callable[..., PlaceOrder],
    checkouts: Checkouts,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red when: `replay` compares nothing, or does not say so by its exit code."""
    await checkouts.sell(an_order())
    assert (await everycent("explain", "o-1", "--bundle", str(file))).exit_code == 0
    assert (await asyncio.to_thread(_replay, file)).exit_code == 0
    monkeypatch.setattr("everycent.proof.bundle.FLOWS", (OneStepMore,))
    done = await asyncio.to_thread(_replay, file, "--json")
    assert done.exit_code == 5
    [run] = json.loads(done.stdout)["runs"]
    assert "Nondeterminism error" in run["differs"]


@pytest.mark.requirement("I16")
async def test_what_is_no_bundle_is_refused_in_one_line(
    everycent: CommandLine, file: Path, tmp_path: Path
) -> None:
    """Red when: a wrong or missing file is a traceback, or an unknown order leaves a file."""
    file.write_text("{}")
    wrong = [file, tmp_path / "missing", _packed(tmp_path, b"{}"), _cut(tmp_path)]
    for each in wrong:
        done = await asyncio.to_thread(_replay, each)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    unknown = tmp_path / "never.bundle"
    assert (await everycent("explain", "never", "--bundle", str(unknown))).exit_code == 2
    assert not unknown.exists()


def _packed(folder: Path, content: bytes) -> Path:
    file = folder / "other.bundle"
    file.write_bytes(gzip.compress(content))
    return file


def _cut(folder: Path) -> Path:
    file = folder / "cut.bundle"
    file.write_bytes(gzip.compress(b"{}" * 1000)[:-12])
    return file


def _replay(file: Path, *words: str) -> Result:
    """Replay where nothing runs: the command is told of no folder and no server."""
    nowhere = {"EVERYCENT_DATA_DIR": str(file.parent), "TEMPORAL_ADDRESS": "127.0.0.1:1"}
    return CliRunner().invoke(app, ["replay", str(file), *words], env=nowhere)
