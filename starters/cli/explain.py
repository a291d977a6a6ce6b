"""`everycent explain | replay`: what happened to an order, and whether it would happen again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    Tenant,
    print_json,
    run,
    say,
    silence_the_sdk,
)

if TYPE_CHECKING:
    from everycent.proof.bundle import Bundle, Replayed
    from everycent.proof.timeline import Timeline

Name = Annotated[
    str,
    typer.Argument(
        metavar="ORDER",
        help="The order's id; or SHOP/ORDER, a step's key, the workflow's id, the request id of a"
        " payment, or its id at the provider.",
    ),
]


BundleFile = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="FILE",
        help="Write it all into a file too, redacted, to give away and to `everycent replay`.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(explain)
    app.command()(replay)


def explain(
    name: Name,
    bundle: BundleFile = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Tell all that happened to an order, in order, why it waits, and the next command to type.

    Who does not answer is named, and the others speak. Exit code 2 when no such order ever came, 4
    when nothing was found and not everybody could be asked, 5 when an invariant does not hold.
    """
    told = run(_explain(tenant, name, data_dir, bundle))
    if as_json:
        print_json(told)
    else:
        _print(told)
    if not told.found:
        say(f"error: {_not_found(told)}")
        raise typer.Exit(ExitCode.UNREACHABLE if told.silent else ExitCode.INVALID)
    if told.broken:
        raise typer.Exit(ExitCode.BROKEN)


def replay(
    file: Annotated[Path, typer.Argument(help="What `everycent explain --bundle` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Replay a bundle's runs under the code that is installed here; no server is needed.

    Exit code 5 when the code goes another way than a run went, 2 when there is no run to replay.
    """
    bundle, runs = run(_replay(file))
    if as_json:
        print_json({"order_id": bundle.timeline.order_id, "runs": runs})
    else:
        for each in runs:
            how = f"goes another way: {each.differs}" if each.differs else "replays"
            typer.echo(f"run {each.run_id} of {each.flow} by everycent {bundle.everycent}: {how}")
    if not runs:
        say(f"error: {file} holds no run: Temporal had none of this order, or did not answer")
        raise typer.Exit(ExitCode.INVALID)
    if any(each.differs for each in runs):
        raise typer.Exit(ExitCode.BROKEN)


async def _explain(tenant: str, name: str, data_dir: Path, file: Path | None) -> "Timeline":
    from everycent.proof.explain import hear
    from everycent.proof.naming import find
    from everycent.settings import load

    silence_the_sdk()
    settings = load(data_dir, "reader")
    heard = await hear(settings, *await find(settings, tenant, name))
    told = heard.told()
    if file is not None and told.found:
        from everycent.proof.bundle import bundle_of, write_bundle

        bundle = await bundle_of(heard)
        write_bundle(bundle, file)
        runs = f"{len(bundle.histories)} run{'s' * (len(bundle.histories) != 1)}"
        say(f"wrote {file}: {len(bundle.timeline.events)} events, {runs}, redacted")
    return told


async def _replay(file: Path) -> "tuple[Bundle, list[Replayed]]":
    from everycent.proof.bundle import read_bundle, replay

    silence_the_sdk()
    bundle = read_bundle(file)
    return bundle, await replay(bundle)


def _not_found(told: "Timeline") -> str:
    order = f"order {told.order_id} of tenant {told.tenant}"
    if told.silent:
        return f"nothing found of {order}, and no answer from {', '.join(sorted(told.silent))}"
    return f"there is no {order}"


def _print(told: "Timeline") -> None:
    from everycent.proof.timeline_text import as_text

    for line in as_text(told):
        typer.echo(line)
