"""Prices of a real control plane: from a feed to the list of nodes, with all that can happen to a feed in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nearmesh.client.admin import AdminClient
from nearmesh.errors import InvalidInput, NotFound
from nearmesh.v1 import admin_pb2
from tests.integration.mesh_processes import REGION, control_plane, node, until

HEADER = "machine_type,region,usd_per_hour,usd_per_hour_spot\n"


def move_in(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.replace(path)


async def prices_when(
    operator: AdminClient, check: Callable[[admin_pb2.ListPricesResponse], bool], what: str
) -> admin_pb2.ListPricesResponse:
    async def found() -> admin_pb2.ListPricesResponse | None:
        answer = await operator.prices()
        return answer if check(answer) else None

    answer = await until(found, what=what)
    assert isinstance(answer, admin_pb2.ListPricesResponse)
    return answer


async def test_from_a_feed_to_the_list_of_nodes_and_back(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    settings: dict[str, Any] = {"prices": {"feed": "../prices.csv", "every_s": 1}, "currencies": {"EUR": 1.25}}
    async with control_plane(tmp_path / "plane", **settings) as plane, plane.operator() as operator:

        async def one() -> admin_pb2.Node:
            (found,) = await operator.nodes()
            return found

        feed = (await prices_when(operator, lambda p: bool(p.feed.error), "the missing feed is noticed")).feed
        assert (feed.read_at_s, feed.prices) == (0, 0) and "No such file" in feed.error
        async with node(plane, tmp_path / "node", "n", usd_per_hour=9.0, spot=True, machine_type="g2"):
            assert ((await one()).usd_per_hour, (await one()).price_source, (await one()).spot) == (9.0, "node", True)
            move_in(path, HEADER + f"g2,{REGION},0.7,0.2\n")
            answer = await prices_when(operator, lambda p: p.nodes[0].source == "feed", "the feed's price counts")
            assert (answer.nodes[0].usd_per_hour, answer.nodes[0].spot, answer.feed.error) == (0.2, True, "")
            assert answer.feed.source == str(path.parent / "plane" / ".." / "prices.csv")
            assert ((await one()).usd_per_hour, (await one()).price_source) == (0.2, "feed")
            # Cut off while it is written: the prices stay, and the list says where it breaks off.
            path.write_text(HEADER + f"g2,{REGION},0.7,0.")
            answer = await prices_when(operator, lambda p: bool(p.feed.error), "the broken feed is noticed")
            assert "its last line has no end" in answer.feed.error
            assert (answer.nodes[0].usd_per_hour, answer.feed.prices) == (0.2, 1)
            # An operator's price goes first, and ends by itself.
            with pytest.raises(InvalidInput, match="'CHF' has no rate; those with one are EUR, USD"):
                await operator.set_price("n", 2.0, currency="CHF")
            assert (await operator.set_price("n", 2.0, currency="EUR", valid_for_s=1.0)).usd_per_hour == 2.5
            answer = await prices_when(operator, lambda p: p.nodes[0].source == "feed", "the operator's price ends")
            assert answer.nodes[0].note.startswith("the operator's price ended 20")
            await operator.set_transfer_price(REGION, "*", 0.08)
            # The feed is gone and the control plane with it: what counted counts when it is back.
            path.unlink()
            await plane.kill()
            await plane.start()
            answer = await prices_when(operator, lambda p: bool(p.feed.error), "the missing feed is noticed again")
            assert (answer.nodes[0].usd_per_hour, answer.nodes[0].source, answer.feed.prices) == (0.2, "feed", 1)
            assert [(t.from_region, t.to_region, t.usd_per_gb, t.source) for t in answer.transfers] == [
                (REGION, "*", 0.08, "operator")
            ]
            with pytest.raises(NotFound, match="no operator set a price"):
                await operator.unset_transfer_price("*", "*")
            assert "Traceback" not in plane.log


class Prices(BaseHTTPRequestHandler):
    """Serves the server's `text` with an ETag."""

    def do_GET(self) -> None:
        text, etag = self.server.text.encode(), f'"{hash(self.server.text)}"'  # type: ignore[attr-defined]
        known = self.headers.get("if-none-match") == etag
        self.server.answers.append(304 if known else 200)  # type: ignore[attr-defined]
        self.send_response(304 if known else 200)
        self.send_header("etag", etag)
        self.send_header("content-length", "0" if known else str(len(text)))
        self.end_headers()
        if not known:
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Quietly."""


@contextmanager
def serving(text: str) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prices)
    server.text, server.answers = text, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_feed_from_a_server(tmp_path: Path) -> None:
    with serving('[{"from_region": "*", "to_region": "*", "usd_per_gb": 0.02}]') as server:
        url = f"http://127.0.0.1:{server.server_port}/prices.json?key=secret"
        settings: dict[str, Any] = {"prices": {"feed": url, "every_s": 1}}
        async with control_plane(tmp_path / "plane", **settings) as plane, plane.operator() as operator:
            answer = await prices_when(operator, lambda p: bool(p.transfers), "the feed is read")
            assert (answer.transfers[0].usd_per_gb, answer.transfers[0].source) == (0.02, "feed")
            assert answer.feed.source == url.partition("?")[0]

            async def asked_again() -> bool:
                return 304 in server.answers

            await until(asked_again, what="the server is asked for what is new")
            server.text = '[{"from_region": "*", "to_region": "*", "usd_per_gb": "cheap"}]'
            answer = await prices_when(operator, lambda p: bool(p.feed.error), "the bad list is noticed")
            assert answer.feed.error == "row 1: usd_per_gb is 'cheap'; expected a number of 0 or more"
            assert answer.transfers[0].usd_per_gb == 0.02
            server.text = '[{"from_region": "*", "to_region": "*", "usd_per_gb": 0.03}]'
            await prices_when(operator, lambda p: p.transfers[0].usd_per_gb == 0.03, "the new list counts")
            assert "secret" not in plane.log
