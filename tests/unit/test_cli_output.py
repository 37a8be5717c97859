"""Numbers on the screen, and how far a deployment is."""

from __future__ import annotations

import pytest

from nearmesh.cli.output import ago, moment, ms, size
from nearmesh.cli.rollout import progress
from nearmesh.routing import format_usd
from nearmesh.v1 import admin_pb2, node_pb2
from tests.fake_admin import OTHER, deployment, node, replica

READY, LOADING, FAILED = (
    node_pb2.REPLICA_STATE_READY,
    node_pb2.REPLICA_STATE_LOADING,
    node_pb2.REPLICA_STATE_FAILED,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0000228, "0.00002280"),
        (0.0027471, "0.002747"),
        (0.7068, "0.7068"),
        (12.5, "12.50"),
        (12345.6, "12346"),
    ],
)
def test_prices_have_four_digits_and_no_exponent(value: float, text: str) -> None:
    assert format_usd(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0"), (0.0257, "0.026"), (0.1, "0.1"), (9.96, "10.0"), (99.94, "99.9"), (123.4, "123")],
)
def test_times(value: float, text: str) -> None:
    assert ms(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1_234_567, "1.2 MB"), (5 * 10**9, "5.0 GB"), (10**15, "1000.0 TB")]
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(("at_s", "text"), [(0, "never"), (995, "5 s ago"), (880, "2 min ago"), (1005, "0 s ago")])
def test_ago(at_s: float, text: str) -> None:
    assert ago(at_s, 1000.0) == text


def test_moment() -> None:
    assert moment(86400.5) == "1970-01-02 00:00:00"
    assert moment(0) == "-"


def test_progress_counts_live_nodes_that_the_deployment_covers() -> None:
    nodes = [
        node("ready", "here", "r"),
        node("old-version", "here", "r"),
        node("loading", "here", "r"),
        node("failed", "here", "r"),
        node("elsewhere", "there", "r"),
        node("away", "here", "r", live=False),
        node("draining", "here", "r", draining=True),
        node("cordoned", "here", "r", cordoned=True),
        node("removed", "here", "r", removed=True),
        node("gateway", "here", "r", kind=admin_pb2.NODE_KIND_GATEWAY),
    ]
    replicas = [
        replica("ready", READY),
        replica("old-version", READY, digest=OTHER),
        replica("loading", LOADING),
        replica("failed", FAILED, "no memory"),
        replica("elsewhere", READY),
    ]
    found = progress(deployment("digits", ("here",)), nodes, replicas)
    assert found.serving == ("ready",)
    assert found.pending == {"old-version": "waiting", "loading": "loading"}
    assert found.failed == {"failed": "no memory"}
    assert (found.settled, found.expected) == (True, 4)


def test_progress_without_a_live_node_is_settled() -> None:
    found = progress(deployment("digits"), [], [])
    assert (found.settled, found.expected) == (True, 0)


def test_progress_waits_while_any_node_is_pending() -> None:
    found = progress(deployment("digits"), [node("a", "s", "r"), node("b", "s", "r")], [replica("a", READY)])
    assert not found.settled
