"""Holds the command lines that documents show against the real commands, without running them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
from nearmesh_agent.main import main as agent
from nearmesh_controlplane.main import main as controlplane

from nearmesh.cli.main import main as nearmesh

PROGRAMS: dict[str, click.Command] = {
    "nearmesh": nearmesh,
    "nearmesh-agent": agent,
    "nearmesh-controlplane": controlplane,
}
# From here on the shell has the rest.
_SHELL = {">", ">>", "|", "||", "&&", ";", "&", "2>"}
# What may stand before a program: a prompt, another user, variables, a folder.
_BEFORE = re.compile(r"^\s*(?:[$#] )?(?:runuser -u \w+ -- )?(?:\w+=\S+ )*(?:\S*/)?(?=nearmesh)")


def commands_in(document: Path) -> list[str]:
    """The lines of fenced or indented code that run one of our programs, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", document.read_text("utf-8"))
    fenced = re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}.*$", text, flags=re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()] + indented
    found = [_BEFORE.sub("", line, count=1) for line in lines if _BEFORE.match(line)]
    return [line for line in found if line.split()[0] in PROGRAMS]


def check_command(line: str) -> None:
    """Raises click.UsageError for an option or a command that is not there, or something that is missing."""
    words = shlex.split(line, comments=True)
    end = next((index for index, word in enumerate(words) if word in _SHELL), len(words))
    command, arguments = PROGRAMS[words[0]], words[1:end]
    while True:
        context = click.Context(command, info_name=command.name)
        given, rest, _ = command.make_parser(context).parse_args(arguments)
        if {"--help", "-h", "--version"} & set(arguments):
            return
        for parameter in command.params:
            value = given.get(parameter.name or "")
            # What was not given is a mark of click's own.
            if parameter.required and not (isinstance(value, str | tuple | list) and value):
                raise click.MissingParameter(ctx=context, param=parameter)
        if not rest:
            return
        if not isinstance(command, click.Group):
            raise click.UsageError(f"{line}: too many arguments: {rest}")
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"{line}: no command {rest[0]!r}")
        command, arguments = found, rest[1:]
