"""`nearmesh`: the commands by name, the options that name a mesh, and what a failure looks like.

A command's module is imported only when that command runs, so that help and usage errors come at once.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nearmesh import __version__
from nearmesh.cli.place import Options
from nearmesh.cli.session import INTERRUPTED, Failure, Session, dial
from nearmesh.errors import ConfigError, MeshError, PackageError

# name: its line in the help. Each lives in `nearmesh.cli.NAME`, as a click command of that name.
COMMANDS = {
    "dev": "A whole mesh on this machine.",
    "status": "The mesh on one screen: nodes, models, routes.",
    "node": "Join machines, look after them, price them.",
    "model": "Make packages, publish and deploy them, roll them back.",
    "route": "Which node answers whom, and why.",
    "vectors": "Collections at the sites: import, search, retrieve.",
    "run": "Federated rounds: train at the sites, serve what is better.",
    "price": "What nodes and transfers cost, and by whose word.",
    "infer": "Ask a model, and see who answered at what price.",
    "client": "What apps need to find the mesh.",
    "token": "Bearer tokens for people and apps.",
    "gateway": "Run a gateway for stock clients.",
    "controlplane": "The control planes, and which of them leads.",
    "audit": "What operators changed.",
}


class Commands(click.Group):
    """Finds commands by name, and turns every failure into one line and an exit code."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        found = getattr(importlib.import_module(f"nearmesh.cli.{name}"), name)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (ConfigError, PackageError) as error:
            # Each of its lines is a mistake in a file.
            raise Failure(error.message, many=True) from None
        except MeshError as error:
            raise Failure(error.message) from None
        except BaseExceptionGroup as group:
            raise Failure(_only_ours(group)) from None
        except UnicodeEncodeError as error:
            if error.encoding != "utf-8":
                # Of what is printed.
                raise
            raise Failure(f"{error.object[:80]!r} has bytes that are no UTF-8, which no message carries") from None
        except OSError as error:
            # A reader that went away (`| head`) is click's to handle; the rest is a file that cannot be used.
            if error.errno == errno.EPIPE:
                raise
            raise Failure(str(error)) from None
        except (KeyboardInterrupt, click.Abort):
            context.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--mesh",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="NEARMESH_MESH",
    show_envvar=True,
    help="Folder of a local mesh; by default the nearest .nearmesh/dev upwards.",
)
@click.option(
    "--control-plane",
    metavar="HOST:PORT",
    envvar="NEARMESH_CONTROL_PLANE",
    show_envvar=True,
    help="Of another mesh; of several, all with commas between.",
)
@click.option(
    "--ca",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="NEARMESH_CA",
    show_envvar=True,
    help="The other mesh's CA certificate, PEM.",
)
@click.option("--token", envvar="NEARMESH_TOKEN", show_envvar=True, help="Bearer token, or the file that holds it.")
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context, /, mesh: Path | None, **remote: Any) -> None:
    """Look after an inference mesh: its nodes, its models, its routes."""
    if context.get_parameter_source("mesh") is ParameterSource.COMMANDLINE:
        # Who names a local mesh on the command line does not mean the other one that the environment names.
        remote = {name: value for name, value in remote.items() if _typed(context, name)}
    context.obj = Session(Options(mesh=mesh, **remote), context.obj or dial)


def _only_ours(group: BaseExceptionGroup[Any]) -> str:
    """What the errors of tasks that ran together say; a group with anything else in it is a bug and stays one."""
    ours, others = group.split(MeshError)
    if others is not None or ours is None:
        raise group
    return "; ".join(dict.fromkeys(_messages(ours)))


def _messages(group: BaseExceptionGroup[Any]) -> Iterator[str]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _messages(error)
        else:
            yield str(error)


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE
