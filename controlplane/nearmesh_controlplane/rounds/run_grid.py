"""Flower's grid as an app of the data team's own finds it: the run's sites alone, and answers taken as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from flwr.app import Message

from nearmesh_controlplane.rounds.asking import pause_s, push
from nearmesh_controlplane.runs.folder import RunFolder


def only_sites(grid: Any, folder: RunFolder) -> Any:
    """The same grid, on which an app finds the run's sites alone: others are there for other runs."""
    all_nodes = grid.get_nodes

    def get_nodes() -> list[Any]:
        sites = folder.sites()
        return [node for node in all_nodes() if node.node_id in sites]

    grid.get_nodes = get_nodes
    grid.get_node_ids = lambda: [node.node_id for node in get_nodes()]
    return grid


def soon(
    grid: Any,
    heard: Callable[[Collection[int]], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """The same grid, whose `send_and_receive` looks often; `heard` is told whose answers have come.

    Flower's own 3 s between two looks would be most of a short round.
    """

    def send_and_receive(messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        waited_for = {id for id in push(grid, list(messages)) if id}
        began_s, found = clock(), []
        while waited_for and (timeout is None or clock() - began_s < timeout):
            fresh = list(grid.pull_messages(waited_for))
            if fresh:
                found += fresh
                waited_for -= {message.metadata.reply_to_message_id for message in fresh}
                heard([message.metadata.src_node_id for message in found])
            else:
                sleep(pause_s(clock() - began_s))
        return found

    grid.send_and_receive = send_and_receive
    return grid
