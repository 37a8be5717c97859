"""The commands over a control plane that is only pretended: what is asked of it, and what is printed where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nearmesh.cli import drain, output
from nearmesh.errors import Unsupported
from nearmesh.v1 import admin_pb2, node_pb2
from tests.fake_admin import OTHER, Bench, candidate, local_mesh, node, replica


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("NEARMESH_MESH", "NEARMESH_CONTROL_PLANE", "NEARMESH_CA", "NEARMESH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Bench(local_mesh(tmp_path))


def test_tokens_stand_alone_on_stdout(run: Bench) -> None:
    done = run(
        "node", "token", "node-c", "--site", "site-a", "--region", "us-east1", "--kind", "gateway", "--hours", "2"
    )
    assert (done.exit_code, done.stdout) == (0, "join.me.once\n")
    assert "nearmesh gateway run" in done.stderr
    assert run.admin.done == [("join_token", "node-c", "site-a", "us-east1", {"kind": "gateway", "lifetime_s": 7200.0})]
    done = run("token", "issue", "--subject", "app", "--role", "client", "--days", "0.5")
    assert done.stdout == "fresh.client.token\n"
    assert run.admin.done == [("issue_token", "app", "client", {"lifetime_s": 43200.0})]


def test_nodes_as_a_table_and_as_json(run: Bench) -> None:
    done = run("node", "list")
    assert done.exit_code == 0
    assert "USD per hour" in done.stdout
    assert "0.7000" in done.stdout
    assert "never" in done.stdout
    found = json.loads(run("node", "list", "--json").stdout)
    assert [(n["node"], n["kind"], n["state"]) for n in found] == [
        ("node-a", "node", "live"),
        ("node-b", "node", "gone"),
        ("gateway-a", "gateway", "live"),
    ]
    assert found[0].keys() >= {"site", "region", "usd_per_hour", "ready_replicas", "draining", "cordoned", "removed"}


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({}, "live"),
        ({"notice": "spot", "notice_s": 24.6}, "leaving in 25 s: spot"),
        ({"notice": "spot", "notice_s": 24.6, "live": False}, "gone"),
        ({"draining": True}, "live, draining"),
        ({"draining": True, "drained": True, "cordoned": True}, "live, drained, cordoned"),
        ({"removed": True, "notice": "spot"}, "removed"),
    ],
)
def test_a_nodes_state(run: Bench, more: dict[str, Any], state: str) -> None:
    run.pretend(node_list=[node("n", "s", "us-east1", **more)])
    assert json.loads(run("node", "list", "--json").stdout)[0]["state"] == state


def test_an_empty_mesh_says_what_to_do(run: Bench) -> None:
    run.pretend(node_list=[])
    assert "nearmesh node token" in run("node", "list").stdout
    assert run("node", "list", "--json").stdout == "[]\n"


def test_nodes_are_changed(run: Bench) -> None:
    assert run("node", "drain", "node-a").exit_code == 0
    assert run.admin.done == [("drain", "node-a", False)]
    assert run("node", "cordon", "node-a", "--undo").exit_code == 0
    assert run.admin.done == [("cordon", "node-a", True)]
    assert run("node", "remove", "node-a", "--yes").exit_code == 0
    assert run.admin.done == [("remove", "node-a")]


@pytest.mark.parametrize(
    "change",
    [("drain",), ("drain", "--wait"), ("cordon",), ("remove", "--yes"), ("price", "0.5"), ("price", "--unset")],
)
def test_programs_are_told_of_a_change_as_of_a_node(run: Bench, change: tuple[str, ...]) -> None:
    run.pretend(node_list=[node("node-b", "site-b", "us-east1", draining=True, drained=True)])
    found = json.loads(run("node", *change[:1], "node-b", *change[1:], "--json").stdout)
    assert (found["node"], found["state"]) == ("node-b", "live, drained")


def test_a_drain_is_waited_for(run: Bench) -> None:
    done = run("node", "drain", "node-b", "--wait", "--undo")
    assert done.exit_code == 2 and "--undo takes it back at once" in done.stderr
    run.pretend(node_list=[node("node-b", "site-b", "us-east1", draining=True, drained=True)])
    done = run("node", "drain", "node-b", "--wait")
    assert (done.exit_code, done.stdout) == (0, "node-b is drained: nothing is under way on it\n")
    run.pretend(node_list=[node("node-b", "site-b", "us-east1", draining=True, in_flight=1, sequences=2)])
    done = run("node", "drain", "node-b", "--wait", "--timeout", "0.01")
    assert done.exit_code == 1
    assert "after 0.01 s node-b is draining: 1 request and 2 sequences under way" in done.stderr
    run.pretend(node_list=[node("node-b", "site-b", "us-east1")])
    assert "somebody took it back" in run("node", "drain", "node-b", "--wait").stderr


def test_a_node_that_is_away_for_a_moment_is_waited_for(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run.pretend(node_list=[node("node-b", "site-b", "us-east1", draining=True, live=False)])
    assert "node-b is away" in run("node", "drain", "node-b", "--wait", "--timeout", "0.01").stderr
    monkeypatch.setattr(drain, "GONE_AFTER_S", 0.0)
    assert run("node", "drain", "node-b", "--wait").stdout == "node-b is away\n"


def test_an_unknown_node_is_one_line(run: Bench) -> None:
    done = run("node", "drain", "nope")
    assert (done.exit_code, done.stderr) == (1, "error: no node 'nope'; the mesh has some\n")


def test_models(run: Bench) -> None:
    failed = replica("node-b", node_pb2.REPLICA_STATE_FAILED, "warm-up gave 3, expected 4", OTHER)
    run.pretend(replica_list=[replica("node-a", node_pb2.REPLICA_STATE_READY), failed])
    shown = run("model", "show", "digits").stdout
    assert "1.2 MB" in shown
    assert "warm-up gave 3, expected 4" in shown
    found = json.loads(run("model", "list", "--json").stdout)
    assert [r["state"] for r in found[0]["replicas"]] == ["ready", "failed"]
    assert found[0]["versions"][0]["size_bytes"] == 1_234_567
    assert json.loads(run("model", "show", "digits", "--json").stdout) == found[0]


def test_how_far_a_pull_has_come(run: Bench) -> None:
    pulling = replica("node-a", node_pb2.REPLICA_STATE_PULLING)
    pulling.status.pull_bytes, pulling.status.pulled_bytes = 1_000_000_000, 430_000_000
    run.pretend(replica_list=[pulling])
    shown = " ".join(run("model", "show", "digits").stdout.split())
    assert "pulling ━━━━━╌╌╌╌╌╌╌ 43% of 1.0 GB" in shown
    (found,) = json.loads(run("model", "list", "--json").stdout)[0]["replicas"]
    assert (found["state"], found["pull_bytes"], found["pulled_bytes"]) == ("pulling", 1_000_000_000, 430_000_000)


def test_rollback_that_cannot_be(run: Bench) -> None:
    done = run("model", "rollback", "digits")
    assert (done.exit_code, done.stderr) == (1, "error: 'digits' has been deployed in one version only (1)\n")


def test_routes(run: Bench) -> None:
    choices = json.loads(run("route", "show", "digits", "--json").stdout)
    assert {(c["client_region"], c["objective"]) for c in choices} == {
        (region, objective)
        for region in ("europe-west1", "us-east1")
        for objective in ("cheapest-in-time", "nearest", "cheapest")
    }
    assert {c["node"] for c in choices} == {"node-a"}
    assert "0.00002280" in run("route", "show", "digits").stdout


def test_traffic_that_is_split_is_shown_with_its_shares(run: Bench) -> None:
    both = [candidate("node-a", True, 0.002, "won", share=0.6), candidate("node-b", True, 0.003, "won", share=0.4)]
    run.pretend(candidates=[*both, candidate("node-c", True, 0.001, "lost")])
    cell = run("route", "show", "digits").stdout
    assert "node-a 60 % (41.0 ms, 0.002000), node-b 40 % (41.0 ms, 0.003000)" in cell, cell
    shares = json.loads(run("route", "show", "digits", "--json").stdout)[0]["shares"]
    assert [(one["node"], one["share"], one["usd_per_1000"]) for one in shares] == [
        ("node-a", 0.6, 0.002),
        ("node-b", 0.4, 0.003),
    ]
    assert "node-a 60 %, node-b 40 %" in run("status").stdout


def test_route_explain(run: Bench) -> None:
    explain = ("route", "explain", "--model", "digits", "--from")
    explained = json.loads(run(*explain, "us-east1", "--json").stdout)
    first, second = explained["candidates"]
    # Less than the sum of two 95th percentiles.
    assert first["total_ms_p50"] < first["total_ms_p95"] < 42.5 < first["total_ms_p99"] < 50
    assert (first["p_in_time"], first["share"], second["total_ms_p95"]) == (0.9987, 1.0, None)
    assert (explained["generation"], explained["demand_per_s"], explained["expires_at_s"]) == (7, 12.3, 0)
    assert [row["reporter"] for row in explained["accuracy"]] == ["clients", "gateway"], "of this region"
    shown = run(*explain, "us-east1", "--objective", "nearest").stdout
    assert "digits@1 from us-east1: nearest within 300 ms" in shown
    assert "12.3 requests per second" in shown and "no. 7" in shown and "snapshot" not in shown
    assert "the last 1,240 calls: 51 % within p50, 96 % within p95, 99 % within p99; 1 % late; 2 failed" in shown
    assert "the last 30 calls by gateways nobody compared" in shown
    assert "99.9 %" in shown and "100 %" in shown and "0.00002280" in shown
    assert "not ready: gone" in shown and "inferred from the distance" in shown
    assert "the last" not in run(*explain, "us-east1", "--objective", "cheapest").stdout


def test_route_explain_says_what_a_price_is_made_of_and_what_comes_from_a_snapshot(run: Bench) -> None:
    dear = candidate("node-a", True, 0.002, "won", spot=True, transfer_usd_per_1000=0.001)
    run.pretend(candidates=[dear], expires_at_s=86400.0, accuracy_error=Unsupported("not here"))
    shown = run("route", "explain", "--model", "digits", "--from", "us-east1").stdout
    assert "spot, with transfer" in shown
    assert "from a snapshot that is good until 1970-01-02 00:00:00 UTC" in shown
    assert "inferred" not in shown, "a snapshot does not say who measured"


@pytest.mark.parametrize(
    ("place", "asked", "says"),
    [
        ("us-east1", ("us-east1", "", None, None), "from us-east1:"),
        ("us-east1/home", ("us-east1", "home", None, None), "from us-east1/home:"),
        ("-33.9,18.4", ("", "", -33.9, 18.4), "from -33.9,18.4, placed as europe-west1:"),
        ("50, 4", ("", "", 50.0, 4.0), "from 50,4, placed as europe-west1:"),
    ],
)
def test_route_explain_from_anywhere(run: Bench, place: str, asked: tuple[object, ...], says: str) -> None:
    shown = run("route", "explain", "--model", "digits", "--from", place)
    assert says in shown.stdout
    assert run.admin.done == [("explain", "digits", *asked)]


@pytest.mark.parametrize("place", ["", "No where", "us-east1/", "91,0", "0,181", "1,2,3"])
def test_route_explain_from_nowhere(run: Bench, place: str) -> None:
    done = run("route", "explain", "--model", "digits", "--from", place)
    assert done.exit_code == 2
    assert "expected REGION, REGION/SITE or LATITUDE,LONGITUDE" in done.stderr


def test_route_explain_fits_into_120_columns(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("node-asia-northeast1", "node-southamerica-east1")
    run.pretend(
        candidates=[
            candidate(name, True, 0.0000228, "farther", region=name[5:], share=0.5, spot=True) for name in names
        ]
    )
    monkeypatch.setattr(output, "PIPE_COLUMNS", 120)
    lines = run("route", "explain", "--model", "digits", "--from", "us-east1").stdout.splitlines()
    for name in names:
        row = next(line for line in lines if line.startswith(name))
        assert len(row) <= 120 and row.rstrip().endswith("spot"), row


def test_route_accuracy(run: Bench) -> None:
    shown = run("route", "accuracy", "digits").stdout
    assert "51 %" in shown and "1.04" in shown and "1,240" in shown
    assert [row["answered"] for row in json.loads(run("route", "accuracy", "--json").stdout)] == [1240.4, 30, 9]
    assert "no calls have been reported" in run("route", "accuracy", "other").stdout


def test_route_set(run: Bench) -> None:
    assert run("route", "set", "digits", "--deadline-ms", "150").stdout == "digits: nearest within 150 ms\n"
    record = json.loads(run("route", "set", "digits", "--objective", "cheapest", "--json").stdout)
    assert record == {"model": "digits", "objective": "cheapest", "deadline_ms": 300, "regions": []}


def test_what_becomes_of_a_model_that_nobody_asks_for(run: Bench) -> None:
    done = run("model", "idle", "digits", "--unload-after", "10m", "--scale-to-zero-after", "90m")
    assert done.stdout == ("digits: when nobody asks for it, it leaves memory after 10m; after 1.5h 1 node keeps it\n")
    assert run.admin.done == [
        ("set_idle", "digits", {"unload_after_s": 600.0, "scale_to_zero_after_s": 5400.0, "keep": None})
    ]
    done = run("model", "idle", "digits", "--unload-after", "never", "--scale-to-zero-after", "1d", "--keep", "0")
    assert done.stdout.endswith("it leaves memory by each node's own rule; after 1d no node keeps it\n")
    record = json.loads(run("model", "idle", "digits", "--keep", "2", "--json").stdout)
    idle = {"unload_after_s": 0.0, "scale_to_zero_after_s": 0.0, "keep": 2}
    assert record == {"model": "digits", "idle": idle}
    done = run("model", "idle", "digits", "--unload-after", "0s")
    assert (done.exit_code, "no time above 0" in done.stderr) == (2, True)


def test_whether_a_model_is_asleep_is_shown(run: Bench) -> None:
    assert "asleep" not in run("model", "idle", "digits").stdout
    run.pretend(sleeping=True)
    assert "asleep since 1970-01-01 00:00:05 UTC, kept by node-a" in run("model", "idle", "digits").stdout
    assert "asleep since 1970-01-01 00:00:05 UTC, kept by node-a" in run("model", "show", "digits").stdout
    record = json.loads(run("model", "idle", "digits", "--json").stdout)
    assert (record["asleep"], record["kept"]) == (True, ["node-a"])


def test_a_model_is_bound_to_regions_and_freed(run: Bench) -> None:
    done = run("route", "set", "digits", "--regions", "europe-west1, us-east1")
    assert done.stdout == "digits: nearest within 300 ms, only in europe-west1, us-east1\n"
    assert (done.stderr, run.admin.done) == ("", [("set_policy", "digits", ["europe-west1", "us-east1"], False)])
    run("route", "set", "digits", "--any-region")
    assert run.admin.done == [("set_policy", "digits", [], True)]
    done = run("route", "set", "digits", "--regions", "europe-wset1", "--json")
    assert json.loads(done.stdout)["regions"] == ["europe-wset1"]
    assert done.stderr == "no node of this mesh is in europe-wset1\n", "a slip of the pen has no node"


def test_clients_of_a_region_are_bound_and_freed(run: Bench) -> None:
    done = run("route", "residency", "us-east1", "us-east1", "us-west1")
    assert done.stdout == "clients of us-east1 are answered only from us-east1, us-west1\n"
    assert done.stderr == "no node of this mesh is in us-west1\n"
    assert run.admin.done == [("set_residency", "us-east1", ("us-east1", "us-west1"))]
    done = run("route", "residency", "us-east1", "--clear")
    assert done.stdout == "clients of us-east1 are answered from any region\n"
    assert run.admin.done == [("set_residency", "us-east1", ())]
    assert "europe-west1, europe-west4" in run("route", "residency").stdout
    rules = json.loads(run("route", "residency", "--json").stdout)
    assert rules == [{"client_region": "europe-west1", "regions": ["europe-west1", "europe-west4"]}]
    run.pretend(rules=[])
    assert run("route", "residency").stdout == "any region may answer any client\n"


# ---- prices


def test_a_price_of_a_node(run: Bench) -> None:
    assert run("node", "price", "node-a", "0.25").stdout == "node-a costs 0.2500 USD per hour\n"
    assert run.admin.done == [("set_price", "node-a", 0.25, {"currency": "", "valid_for_s": 0.0})]
    done = run("node", "price", "node-a", "0.25", "--currency", "eur", "--for", "1.5h", "--json")
    assert run.admin.done == [("set_price", "node-a", 0.25, {"currency": "EUR", "valid_for_s": 5400.0})]
    assert json.loads(done.stdout)["usd_per_hour"] == 0.25
    done = run("node", "price", "node-a", "--unset")
    assert done.stdout == "node-a costs 0.7000 USD per hour, by the feed's word\n"
    assert run.admin.done == [("unset_price", "node-a")]
    assert " until 2" in run("node", "price", "node-a", "1", "--for", "7d").stdout


def test_all_prices(run: Bench) -> None:
    shown = run("price", "list").stdout
    for words in (
        "node-a  europe-west1  -                    0.5400  on demand  operator  1970-01-02 00:00:00  0.5 EUR",
        "the operator's price ended",
        "us-east1  *       0.1200  feed",
        "feed prices.csv: 2 prices, read 1970-01-01 01:00:00 UTC",
        "not taken over since: line 3: usd_per_hour is 'free'",
    ):
        assert words in shown, shown
    found = json.loads(run("price", "list", "--json").stdout)
    assert found.keys() == {"nodes", "transfers", "feed"}
    assert [node["source"] for node in found["nodes"]] == ["operator", "feed"]
    run.pretend(price_list=admin_pb2.ListPricesResponse())
    assert "[prices] in mesh.toml" in run("price", "list").stdout


def test_transfers(run: Bench) -> None:
    done = run("price", "transfer", "us-east1", "*", "0.08")
    assert done.stdout == "us-east1 to * costs 0.08000 USD per GB\n"
    assert run.admin.done == [("set_transfer_price", "us-east1", "*", 0.08)]
    record = json.loads(run("price", "transfer", "us-east1", "*", "--unset", "--json").stdout)
    assert record == {"from_region": "us-east1", "to_region": "*", "usd_per_gb": 0.0, "source": "operator"}
    assert run.admin.done == [("unset_transfer_price", "us-east1", "*")]


def test_audit_prints_words_as_they_are(run: Bench) -> None:
    assert "1970-01-01 00:00:00  operator/me  drain  node-a  [x]" in run("audit").stdout
    assert json.loads(run("audit", "--json").stdout)[0]["detail"] == "[x]"


def test_status(run: Bench) -> None:
    done = run("status")
    assert done.exit_code == 0
    assert [
        word
        for word in ("Control planes", "Nodes", "Models", "Routes", "gateway-a", "digits")
        if word not in done.stdout
    ] == []
    found = json.loads(run("status", "--json").stdout)
    assert found.keys() == {"control_planes", "nodes", "models", "routes"}
    assert len(found["routes"]) == 2


def test_control_planes(run: Bench) -> None:
    shown = run("controlplane", "list").stdout
    assert "leads, term 3" in shown and "follows" in shown and "cp:7401" in shown
    found = json.loads(run("controlplane", "list", "--json").stdout)
    assert [(one["control_plane"], one["leader"], one["term"]) for one in found] == [("a", True, 3), ("b", False, 0)]
