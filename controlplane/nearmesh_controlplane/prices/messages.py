"""Prices as `nearmesh.v1` says them."""

from __future__ import annotations

from collections.abc import Iterable

from nearmesh.v1 import admin_pb2 as pb
from nearmesh_controlplane.prices.book import Prices, Transfer
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.registry.node import Node


def prices(nodes: Iterable[Node], known: Prices) -> pb.ListPricesResponse:
    """Everything that is known of prices."""
    return pb.ListPricesResponse(
        nodes=[_node(node) for node in nodes],
        transfers=[transfer(found) for found in known.transfers()],
        feed=_feed(known.feed),
    )


def transfer(found: Transfer) -> pb.TransferPrice:
    return pb.TransferPrice(
        from_region=found.from_region, to_region=found.to_region, usd_per_gb=found.usd_per_gb, source=found.source
    )


def _node(node: Node) -> pb.NodePrice:
    price = node.price
    return pb.NodePrice(
        node=node.id,
        region=node.region,
        machine_type=node.machine_type,
        usd_per_hour=price.usd_per_hour,
        spot=price.spot,
        source=price.source,
        amount=price.amount,
        currency=price.currency,
        valid_until_s=price.valid_until_s,
        note=price.note,
    )


def _feed(state: FeedState) -> pb.PriceFeed:
    return pb.PriceFeed(source=state.source, read_at_s=state.read_at_s, prices=len(state.table), error=state.error)
