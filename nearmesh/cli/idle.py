"""`nearmesh model idle`: what becomes of a model that nobody asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import moment, print_json
from nearmesh.cli.price import Duration
from nearmesh.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from nearmesh.cli.records import Record

_UNITS = (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0))


class DurationOrNever(Duration):
    """A time such as 10m, or "never", which is 0."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        return 0.0 if value == "never" else super().convert(value, param, context)


@click.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--unload-after",
    type=DurationOrNever(),
    metavar="10m",
    help="It leaves a node's memory when nobody asked that node for so long; never: the node's own rule.",
)
@click.option(
    "--scale-to-zero-after",
    type=DurationOrNever(),
    metavar="1h",
    help="Its replicas leave all nodes but those that keep it when nobody in the mesh asked for so long; or never.",
)
@click.option("--keep", type=click.IntRange(0), help="So many nodes keep it then; 0 is for clients with the SDK alone.")
@json_option
@pass_session
def idle(
    session: Session,
    name: str,
    unload_after: float | None,
    scale_to_zero_after: float | None,
    keep: int | None,
    as_json: bool,
) -> None:
    """What becomes of NAME when nobody asks for it.

    First it leaves memory, where the next request loads it again. Then its replicas leave the nodes, but for some that
    keep it on disk; they come back when requests follow each other. It wins over the [idle] section of the package,
    also of later versions. Without options it is shown.
    """
    from nearmesh.cli import records

    if unload_after is None and scale_to_zero_after is None and keep is None:
        message = session.ask(lambda admin: admin.model(name))
        found = records.model(message)
        if as_json:
            print_json({"model": name} | {key: found[key] for key in ("idle", "asleep", "asleep_since_s", "kept")})
        else:
            print_idle(found)
        return
    policy = records.idle(
        session.ask(
            lambda admin: admin.set_idle(
                name, unload_after_s=unload_after, scale_to_zero_after_s=scale_to_zero_after, keep=keep
            )
        )
    )
    if as_json:
        print_json({"model": name, "idle": policy})
    else:
        click.echo(f"{name}: {described(policy)}")


def print_idle(record: Record) -> None:
    """Of one model, the policy and what has become of it."""
    click.echo(f"{record['model']}: {described(record['idle'])}")
    if record["asleep"]:
        kept = ", ".join(record["kept"]) or "no node"
        click.echo(f"asleep since {moment(record['asleep_since_s'])} UTC, kept by {kept}")


def described(policy: Record) -> str:
    """In words, what is said of a model that nobody asks for."""
    unload_s, zero_s, keep = (policy[key] for key in ("unload_after_s", "scale_to_zero_after_s", "keep"))
    memory = f"leaves memory after {span(unload_s)}" if unload_s else "leaves memory by each node's own rule"
    if not zero_s:
        return f"when nobody asks for it, it {memory}; its replicas stay"
    left = "no node keeps it" if not keep else f"{keep} {'node keeps' if keep == 1 else 'nodes keep'} it"
    return f"when nobody asks for it, it {memory}; after {span(zero_s)} {left}"


def span(seconds: float) -> str:
    """A time in the largest unit that is not more than it, such as 1.5h."""
    name, unit = next(((n, u) for n, u in _UNITS if seconds >= u), _UNITS[-1])
    return f"{seconds / unit:.3g}{name}"
