"""`nearmesh run`: start federated rounds, watch them, and take what they made into serving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import Number, note, print_json, print_table
from nearmesh.cli.run_plot import plot_option
from nearmesh.cli.run_start import promote_options, promotion, request, start_options
from nearmesh.cli.session import INTERRUPTED, Failure, Session, json_option, pass_session
from nearmesh.errors import NotFound

if TYPE_CHECKING:
    from nearmesh.client.admin import AdminClient
    from nearmesh.v1 import run_pb2

detach_option = click.option("--detach", "--no-wait", is_flag=True, help="Do not watch it: it goes on by itself.")
run_argument = click.argument("run_id", metavar="RUN")
# Looking at the newest is what people mostly want; what changes one names it.
newest_argument = click.argument("run_id", metavar="[RUN]", default="")


@click.group()
def run() -> None:
    """Federated rounds: sites train on data that stay with them, and what is better gets served."""


@run.command()
@start_options
@promote_options
@detach_option
@plot_option
@json_option
@pass_session
def start(session: Session, /, detach: bool, plot: Path | None, as_json: bool, **given: Any) -> None:
    """Start rounds, and watch them to their end.

    Every site that has data for the model, and whose operator allows training, trains it further on them; only
    weights, counts and metrics come back. Ctrl-C stops watching: the run goes on. With --auto-promote a better model
    is quantized, signed, published and rolled out; a worse one is refused, and the exit code is 1.
    """
    _check_plot(plot, detach)
    asked = request(given)
    asked.promote.CopyFrom(promotion(given))
    if given["app"]:
        from nearmesh.cli.run_app import packed

        session.place  # noqa: B018 - a mesh that is not there is told before an app is packed
        asked.app = packed(given["app"])
    found = session.ask(lambda admin: admin.runs.start(asked))
    if detach:
        _begun(found, "is started", as_json)
        return
    note(f"run {found.id} is started")
    _follow(session, found.id, as_json=as_json, plot=plot)


@run.command()
@run_argument
@promote_options
@detach_option
@plot_option
@json_option
@pass_session
def promote(session: Session, /, run_id: str, detach: bool, plot: Path | None, as_json: bool, **given: Any) -> None:
    """Take a trained run through the gate into serving.

    The sites judge it on data that they held back, its variants are made and judged, and it is published, signed and
    rolled out by a canary. What is worse is refused or taken back, and the exit code is 1.
    """
    _check_plot(plot, detach)
    found = session.ask(lambda admin: admin.runs.promote(run_id, promotion(given)))
    if detach:
        _begun(found, "is on its way into serving", as_json)
        return
    _follow(session, found.id, as_json=as_json, plot=plot, promoted=True)


def _check_plot(plot: Path | None, detach: bool) -> None:
    if plot and detach:
        raise click.UsageError(
            "--plot draws the end, which --detach does not wait for; `run show --plot` draws it later"
        )


def _begun(found: run_pb2.Run, how: str, as_json: bool) -> None:
    from nearmesh.cli import run_records

    if as_json:
        print_json(run_records.run(found))
    else:
        click.echo(f"run {found.id} {how}; {_look_after(found.id)}")


def _look_after(run_id: str) -> str:
    return f"`nearmesh run watch {run_id}` shows how far it is, and `nearmesh run stop {run_id}` ends it"


def _follow(
    session: Session, run_id: str, *, as_json: bool, plot: Path | None, known: bool = True, promoted: bool = False
) -> None:
    """Watches it, and tells its end. Raises Failure when it did not go as it was asked to."""
    from nearmesh.cli import run_records, run_watch

    try:
        if as_json:
            ended = run_watch.watched(session, run_id, run_watch.Silent(), known=known, promoted=promoted)
        else:
            with run_watch.shown() as screen:
                ended = run_watch.watched(session, run_id, screen, known=known, promoted=promoted)
    except KeyboardInterrupt:
        note(f"run {run_id} goes on; {_look_after(run_id)}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    if as_json:
        print_json(run_records.run(ended))
    _end(ended, plot, say=not as_json)


def _end(ended: run_pb2.Run, plot: Path | None, *, say: bool) -> None:
    from nearmesh.cli import run_tables, run_words

    if say:
        run_tables.print_run(ended, facts=False)
    good, words = run_words.verdict(ended)
    # Why a run failed says more than that there is nothing to draw of it.
    if plot and (good or run_words.metric_of(ended)):
        _draw(ended, plot)
    if not good:
        raise Failure(words)
    if say:
        click.echo(words)


def _draw(found: run_pb2.Run, plot: Path) -> None:
    from nearmesh.cli.run_plot import draw

    draw(found, plot)
    note(f"{plot} is drawn")


@run.command()
@newest_argument
@click.option("--json", "as_json", is_flag=True, help="The whole run in one line of JSON whenever something changes.")
@plot_option
@pass_session
def watch(session: Session, run_id: str, as_json: bool, plot: Path | None) -> None:
    """Show a run until it has ended, over restarts of the control plane; without RUN the newest.

    Exit code 1 when it failed, was refused, or was taken back.
    """
    from nearmesh.cli import run_watch

    run_id = run_id or session.ask(_newest)
    if not as_json:
        _follow(session, run_id, as_json=False, plot=plot, known=False)
        return
    _end(run_watch.watched(session, run_id, run_watch.JsonLines(), known=False), plot, say=False)


@run.command("list")
@click.option("--model", default="", metavar="NAME", help="Of this model alone.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest so many.")
@json_option
@pass_session
def list_(session: Session, model: str, limit: int, as_json: bool) -> None:
    """Runs, newest first."""
    from nearmesh.cli import run_records, run_tables

    found = session.ask(lambda admin: admin.runs.list(model, limit))
    if as_json:
        print_json([run_records.run(one) for one in found])
    else:
        run_tables.print_runs(found)


@run.command()
@newest_argument
@plot_option
@json_option
@pass_session
def show(session: Session, run_id: str, plot: Path | None, as_json: bool) -> None:
    """One run, without RUN the newest: its rounds by sites, the sites, and what the gate saw."""
    from nearmesh.cli import run_records, run_tables

    found = session.ask(lambda admin: _one(admin, run_id))
    if as_json:
        print_json(run_records.run(found))
    else:
        run_tables.print_run(found)
    if plot:
        _draw(found, plot)


async def _one(admin: AdminClient, run_id: str) -> run_pb2.Run:
    """In full; a list has no sites."""
    return await admin.runs.get(run_id or await _newest(admin))


async def _newest(admin: AdminClient) -> str:
    """Raises NotFound where there is none."""
    found = await admin.runs.list(limit=1)
    if not found:
        raise NotFound("no run yet: `nearmesh run start --model NAME` begins one")
    return found[0].id


@run.command()
@run_argument
@json_option
@pass_session
def stop(session: Session, run_id: str, as_json: bool) -> None:
    """End a run after the round under way; asked again, at once. What its rounds have made so far is kept."""
    from nearmesh.cli import run_records, run_words
    from nearmesh.client.runs import ENDED

    found = session.ask(lambda admin: admin.runs.stop(run_id))
    if as_json:
        print_json(run_records.run(found))
    elif found.state in ENDED:
        click.echo(run_words.headline(found))
    else:
        click.echo(f"run {run_id} ends after what is under way; `nearmesh run stop {run_id}` again ends it at once")


@run.command()
@json_option
def strategies(as_json: bool) -> None:
    """The strategies, and what each may be told."""
    from dataclasses import asdict

    from nearmesh.strategies import STRATEGIES

    if as_json:
        print_json(
            [
                {
                    "strategy": one.name,
                    "about": one.about,
                    "robust": one.robust,
                    "options": [asdict(option) for option in one.options],
                }
                for one in STRATEGIES.values()
            ]
        )
        return
    rows = []
    for one in STRATEGIES.values():
        rows.append((one.name, "", "", one.about + (" (robust)" if one.robust else "")))
        rows += [("", option.name, f"{option.default:g}", option.about) for option in one.options]
    print_table(("strategy", "option", Number("default"), "what it does"), rows)
