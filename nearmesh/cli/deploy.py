"""`nearmesh model deploy`, `rollback` and `rollout`: bring a version to its nodes, watch that, and take it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import console, note, print_json
from nearmesh.cli.price import Duration
from nearmesh.cli.session import Failure, Session, json_option, pass_session

if TYPE_CHECKING:
    from nearmesh.cli.rollout import Progress
    from nearmesh.client.admin import AdminClient
    from nearmesh.v1 import catalog_pb2

STRATEGIES = ("rolling", "canary", "all")


class Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(name for part in value.split(",") if (name := part.strip()))


class Steps(click.ParamType[tuple[float, ...]]):
    """Per cents with commas between, as shares of 1."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(part.strip().removesuffix("%")) / 100 for part in value.split(","))
        except ValueError:
            found = ()
        if not found or any(not 0 <= share < 1 for share in found) or list(found) != sorted(found):
            self.fail(
                f"{value!r} is no row of growing per cents, each from 0 to below 100; expected such as 5,25,50",
                param,
                context,
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which nodes, and how."""

    sites: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    replicas: int = 0
    strategy: str = STRATEGIES[0]
    steps: tuple[float, ...] = ()
    step_s: float = 0.0
    step_requests: int = 0

    def __post_init__(self) -> None:
        if self.strategy != "canary" and (self.steps or self.step_requests):
            raise click.UsageError(f"--steps and --step-requests go with --strategy canary, not {self.strategy}")


site_option = click.option("--site", "site", multiple=True, help="Only there; may be repeated. Default: every site.")
detach_option = click.option("--detach", "--no-wait", is_flag=True, help="Do not watch it: it goes on by itself.")
timeout_option = click.option(
    "--timeout",
    "limit_s",
    type=click.FloatRange(0, min_open=True),
    help="Seconds to watch it for; it goes on all the same.  [default: to its end]",
)


@click.command()
@click.argument("target", metavar="NAME@VERSION")
@click.option("--sites", type=Names(), default=(), metavar="SITE,SITE", help="Only there. Default: every site.")
@site_option
@click.option("--regions", type=Names(), default=(), metavar="REGION,REGION", help="Only in these regions.")
@click.option(
    "--replicas",
    type=click.IntRange(0),
    default=0,
    help="On so many nodes of those, chosen by demand and price. 0: all.",
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default=STRATEGIES[0],
    show_default=True,
    help="One node after the other; a growing share of the requests first; or all nodes at once.",
)
@click.option(
    "--steps", type=Steps(), default=(), metavar="5,25,50", help="A canary's shares, per cent; 0 only compares."
)
@click.option("--step-time", type=Duration(), metavar="30s", help="How long each step, or each node, is watched.")
@click.option("--step-requests", type=click.IntRange(0), default=0, help="Requests that a step waits for. 0: 50.")
@detach_option
@timeout_option
@json_option
@pass_session
def deploy(
    session: Session,
    target: str,
    sites: tuple[str, ...],
    site: tuple[str, ...],
    regions: tuple[str, ...],
    replicas: int,
    strategy: str,
    steps: tuple[float, ...],
    step_time: float | None,
    step_requests: int,
    detach: bool,
    limit_s: float | None,
    as_json: bool,
) -> None:
    """Bring a published version to its nodes.

    On each node the present version serves until the new one has proven itself. A version that does worse than the
    present one is taken back by itself; the command then ends with exit code 1.
    """
    name, _, version = target.partition("@")
    if not name or not version:
        raise click.UsageError(f"{target!r} is not NAME@VERSION; `nearmesh model show` lists a model's versions")
    where = Where(
        sites=(*sites, *site),
        regions=regions,
        replicas=replicas,
        strategy=strategy,
        steps=steps,
        step_s=step_time or 0.0,
        step_requests=step_requests,
    )
    roll_out(session, name, version, where, detach=detach, limit_s=limit_s, as_json=as_json)


def roll_out(
    session: Session, model: str, version: str, where: Where, *, detach: bool, limit_s: float | None, as_json: bool
) -> None:
    """Begins a rollout and, if wanted, watches it. Raises Failure when it did not come to its end."""
    from nearmesh.cli import records, rollouts

    deployment = session.ask(lambda admin: _begun(admin, model, version, where))
    if detach:
        if as_json:
            print_json({**records.deployment(deployment), "progress": None})
        else:
            click.echo(
                f"{model}@{version} is on its way; `nearmesh model rollout watch {model}` shows how far it is, "
                f"and `nearmesh model show {model}` what each node makes of it"
            )
        return
    last, ended = rollouts.watched(session, model, deployment.rollout, limit_s=limit_s, quiet=as_json)
    if as_json:
        good, _ = rollouts.verdict(ended)
        how = {"progress": rollouts.progress(ended if good else last), "rollout": records.rollout(ended)}
        print_json({**records.deployment(deployment), **how})
    _end(ended, say=not as_json)


async def _begun(admin: AdminClient, model: str, version: str, where: Where) -> catalog_pb2.Deployment:
    from nearmesh.v1 import catalog_pb2

    options = catalog_pb2.RolloutOptions(step_s=where.step_s, step_requests=where.step_requests)
    return await admin.deploy(
        model,
        version,
        where.sites,
        regions=where.regions,
        replicas=where.replicas,
        strategy=where.strategy,
        steps=where.steps,
        options=options,
    )


def _end(ended: catalog_pb2.Rollout, *, say: bool) -> None:
    """The verdict. Raises Failure where the version is not the wanted one now."""
    from nearmesh.cli import rollouts

    good, words = rollouts.verdict(ended)
    if not good:
        raise Failure(words)
    if say:
        click.echo(words)


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until every live node there serves it.")
@click.option("--timeout", "limit_s", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True)
@json_option
@pass_session
def rollback(session: Session, name: str, wait: bool, limit_s: float, as_json: bool) -> None:
    """Go back to the version before, within seconds.

    A rollout that runs is ended, and every node keeps what it had. Else the version before the present one is deployed
    at the same places; it still lies on the nodes' disks.
    """
    take_effect(session, lambda admin: admin.rollback(name), wait, limit_s, as_json)


def take_effect(
    session: Session, start: Callable[[AdminClient], Any], wait: bool, limit_s: float, as_json: bool
) -> None:
    """Starts a deployment at once and, if wanted, watches it. Raises Failure when a node cannot serve it."""
    from nearmesh.cli import records

    async def run(admin: AdminClient) -> tuple[catalog_pb2.Deployment, Progress | None]:
        deployment = await start(admin)
        # A rollout that was ended before anything was deployed goes back to nothing.
        return deployment, await _watch(admin, deployment, limit_s) if wait and deployment.version else None

    deployment, progress = session.ask(run)
    if as_json:
        print_json(records.deployment(deployment) | {"progress": _progress_record(progress)})
    else:
        click.echo(_said(deployment, progress))
    if progress and progress.failed:
        reasons = "; ".join(f"{node}: {why}" for node, why in progress.failed.items())
        raise Failure(f"{deployment.model}@{deployment.version} failed on {reasons}")


async def _watch(admin: AdminClient, deployment: catalog_pb2.Deployment, limit_s: float) -> Progress:
    from nearmesh.cli.rollout import follow

    with console(err=True).status("deploying") as status:

        def show_progress(found: Progress) -> None:
            waiting = ", ".join(f"{node} {state}" for node, state in found.pending.items())
            status.update(f"{len(found.serving)} of {found.expected} nodes serve it; {waiting}")

        return await follow(admin, deployment, limit_s=limit_s, on_progress=show_progress)


def _progress_record(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    return {
        "serving": list(progress.serving),
        "pending": dict(progress.pending),
        "failed": dict(progress.failed),
    }


def _said(deployment: catalog_pb2.Deployment, progress: Progress | None) -> str:
    if not deployment.version:
        return f"the rollout of {deployment.model} is taken back; no version of it was deployed before"
    name = f"{deployment.model}@{deployment.version}"
    where = ", ".join((*deployment.sites, *deployment.regions)) or "every site"
    if progress is None:
        return f"{name} is wanted at {where}; `nearmesh model show {deployment.model}` says how far it is"
    if not progress.expected:
        note("No live node there takes it at present; those that come will.")
        return f"{name} is wanted at {where}"
    return f"{name} is wanted at {where}; {len(progress.serving)} of {progress.expected} live nodes serve it"


@click.group()
def rollout() -> None:
    """Watch versions on their way, and hold or end them."""


@rollout.command("list")
@click.argument("name", metavar="[NAME]", default="")
@json_option
@pass_session
def list_(session: Session, name: str, as_json: bool) -> None:
    """Every rollout, the newest first."""
    from nearmesh.cli import records, rollouts

    found = [records.rollout(message) for message in session.ask(lambda admin: admin.rollouts(name))]
    if as_json:
        print_json(found)
    else:
        rollouts.print_rollouts(found)


_number = click.option("--number", type=click.IntRange(1), help="Of `rollout list`; the newest by default.")


@rollout.command()
@click.argument("name", metavar="NAME")
@_number
@json_option
@pass_session
def show(session: Session, name: str, number: int | None, as_json: bool) -> None:
    """One rollout in full, with what its nodes have counted."""
    from nearmesh.cli import records, rollouts

    found = session.ask(lambda admin: admin.rollout(name, number or 0))
    if as_json:
        print_json(records.rollout(found))
    else:
        console().print(rollouts.picture(found))


@rollout.command()
@click.argument("name", metavar="NAME")
@_number
@timeout_option
@json_option
@pass_session
def watch(session: Session, name: str, number: int | None, limit_s: float | None, as_json: bool) -> None:
    """Until its end; exit code 1 if it was taken back."""
    from nearmesh.cli import records, rollouts

    _, ended = rollouts.watched(session, name, number or 0, limit_s=limit_s, quiet=as_json)
    if as_json:
        print_json(records.rollout(ended))
    _end(ended, say=not as_json)


def _changes(change: str, summary: str) -> click.Command:
    @rollout.command(change, help=summary)
    @click.argument("name", metavar="NAME")
    @json_option
    @pass_session
    def run(session: Session, name: str, as_json: bool) -> None:
        from nearmesh.cli import records, rollouts

        found = session.ask(lambda admin: admin.change_rollout(name, change))
        if as_json:
            print_json(records.rollout(found))
        else:
            click.echo(rollouts.headline(found))

    return run


for _change, _summary in (
    ("pause", "Keep it where it is, watched all the same."),
    ("resume", "Go on; a step begins anew."),
    ("abort", "End it: every node goes back to what it had."),
):
    _changes(_change, _summary)
