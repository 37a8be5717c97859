"""Price feeds: what is one, what is not and why, and that no bytes at all can do harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearmesh_controlplane.prices.currencies import Currencies, Money
from nearmesh_controlplane.prices.parser import COLUMNS, MAX_BYTES, MAX_ROWS, BadFeed, parse
from nearmesh_controlplane.prices.table import FeedPrice, PriceTable

CURRENCIES = Currencies({"EUR": 1.25})
HEADER = "machine_type,region,usd_per_hour,usd_per_hour_spot\n"


def usd(amount: float) -> Money:
    return Money(amount, amount, "USD")


def read(text: str) -> PriceTable:
    return parse(text.encode(), CURRENCIES)


def test_a_price_list_of_a_cloud() -> None:
    """The columns that such lists have, some of no interest; not everything is sold on both terms, or at all."""
    table = read(
        "machine_type,vcpus,memory_gib,region,usd_per_hour,usd_per_hour_spot\n"
        "g2-standard-4,4,16,us-east1,0.70683,0.28273\n"
        "a2-highgpu-1g,12,85,us-east1,3.67,\n"
        "e2-medium,1,4,us-east1,,0.01\r\n"
        "\n"
        "none,1,1,us-east1,,\n"
    )
    assert table.by_type == {
        ("us-east1", "g2-standard-4"): FeedPrice(usd(0.70683), usd(0.28273)),
        ("us-east1", "a2-highgpu-1g"): FeedPrice(usd(3.67), None),
        ("us-east1", "e2-medium"): FeedPrice(None, usd(0.01)),
    }
    assert len(table) == 3


def test_nodes_currencies_ends_and_transfers_in_one_csv() -> None:
    table = read(
        "\ufeffnode,amount,amount_spot,currency,valid_until,from_region,to_region,usd_per_gb\n"
        "a,2,1.5,EUR,2026-03-01T12:00:00+01:00,,,\n"
        'b, "3" ,,,1000.5,,,\n'.replace(' "3" ', '"3"')
        + "c,4,,USD,2026-03-01,,,\n"
        + ",,,,,us-east1,*,0.08\n"
        + ",,,,,,,\n"
    )
    assert table.by_node == {
        "a": FeedPrice(Money(2.5, 2.0, "EUR"), Money(1.875, 1.5, "EUR"), 1772362800.0),
        "b": FeedPrice(usd(3.0), None, 1000.5),
        "c": FeedPrice(usd(4.0), None, 1772323200.0),
    }
    assert table.transfers == {("us-east1", "*"): 0.08}


@pytest.mark.parametrize("whole", [True, False])
def test_json(whole: bool) -> None:
    prices: list[Any] = [
        {"node": "a", "usd_per_hour": 1, "usd_per_hour_spot": None},
        {"region": "us-east1", "machine_type": "g2", "usd_per_hour": "0.5", "valid_until": 1e9, "cores": [4]},
    ]
    transfers = [{"from_region": "*", "to_region": "*", "usd_per_gb": 1e-3}]
    table = read(json.dumps([*prices, *transfers] if whole else {"prices": prices, "transfers": transfers}))
    assert table.by_node == {"a": FeedPrice(usd(1.0), None)}
    assert table.by_type == {("us-east1", "g2"): FeedPrice(usd(0.5), None, 1e9)}
    assert table.transfers == {("*", "*"): 0.001}


def test_all_of_one_clouds_prices() -> None:
    folder = os.environ.get("NEARMESH_TEST_DATA")
    path = Path(folder, "gcp_prices", "snapshot_2025-06-26.csv") if folder else None
    if path is None or not path.is_file():
        pytest.skip("no cloud's price list; set NEARMESH_TEST_DATA to the folder that has gcp_prices/")
    table = parse(path.read_bytes(), CURRENCIES)
    assert len(table.by_type) > 13_000
    price = table.by_type["us-east1", "g2-standard-4"]
    assert price.on_demand and price.spot and 0 < price.spot.usd < price.on_demand.usd < 1.2


BAD = [
    # What a writer that was cut off leaves.
    ("", "it is empty"),
    ("  \n ", "it is empty"),
    (HEADER, "it has no prices"),
    (HEADER + "g2,us-east1,,\n", "it has no prices"),
    (HEADER + "g2,us-east1,0.7,0.2\ng2,us-west1,0.7", "its last line has no end"),
    (HEADER + "g2,us-east1,0.7,0.2\ng2,us-west1,0.7\n", "line 3: 3 cells, and the header has 4"),
    (HEADER + 'g2,us-east1,"0.7,0.2\n', "line 2: unexpected end of data"),
    ('[{"node": "a", "usd_per_hour": 1}', "it is not JSON: Expecting ',' delimiter: line 1 column 34"),
    # Numbers that are none.
    (HEADER + "g2,us-east1,nan,0.2\n", "line 2: usd_per_hour is 'nan'; expected a number of 0 or more"),
    (HEADER + "g2,us-east1,0.7,inf\n", "line 2: usd_per_hour_spot is 'inf'"),
    (HEADER + "g2,us-east1,-0.7,0.2\n", "line 2: usd_per_hour is '-0.7'"),
    (HEADER + "g2,us-east1,1e6,0.2\n", "line 2: a price of 1000000.0 USD is not between 0 and 1,000,000"),
    (HEADER + "g2,us-east1,1e999,0.2\n", "line 2: a price of inf USD"),
    (HEADER + "g2,us-east1,1_0,0.2\n", "line 2: usd_per_hour is '1_0'"),
    (HEADER + "g2,us-east1,١,0.2\n", "line 2: usd_per_hour is '١'"),
    (HEADER + 'g2,us-east1,"1,5",0.2\n', "line 2: usd_per_hour is '1,5'"),
    (HEADER + f"g2,us-east1,{'9' * 99},0.2\n", "line 2: a price of 1e+99 USD"),
    (HEADER + f"g2,us-east1,{'x' * 99},0.2\n", f"line 2: usd_per_hour is '{'x' * 56}...; expected"),
    ('[{"node": "a", "usd_per_hour": NaN}]', "it is not JSON: NaN is no price"),
    ('[{"node": "a", "usd_per_hour": -1}]', "row 1: usd_per_hour is '-1'"),
    ('[{"node": "a", "usd_per_hour": true}]', "row 1: usd_per_hour is True; expected a number or a text"),
    ('[{"node": "a", "usd_per_hour": [1]}]', "row 1: usd_per_hour is a list"),
    (f'[{{"node": "a", "usd_per_hour": {"9" * 5000}}}]', "it is not JSON: Exceeds the limit"),
    # Columns.
    ("node;usd_per_hour\na;1\n", "line 1: its columns are separated by ';'; expected commas"),
    ("a,b\n1,2\n", "line 1: columns 'a, b'; expected node"),
    ("region,usd_per_hour\nus-east1,1\n", "expected node, or region and machine_type"),
    ("from_region,to_region\na,b\n", "or from_region, to_region, usd_per_gb"),
    ("node,usd_per_hours\na,1\n", "line 1: unknown column 'usd_per_hours'; did you mean 'usd_per_hour'?"),
    ("node,node,usd_per_hour\na,b,1\n", "line 1: there are two columns 'node'"),
    ('[{"nod": "a", "usd_per_hour": 1}]', "row 1: unknown column 'nod'; did you mean 'node'?"),
    ('{"price": []}', "unknown key 'price'; expected a list, or 'prices' and 'transfers'"),
    ('{"prices": {}}', "prices is not a list"),
    ('{"prices": [1]}', "prices row 1: 1 is not an object"),
    ("[[]]", "row 1: a list is not an object"),
    # Whom and what.
    (HEADER + "g2,,0.7,0.2\n", "line 2: region is empty"),
    (HEADER + ",us-east1,0.7,0.2\n", "line 2: machine_type is empty"),
    (HEADER + f"{'g' * 129},us-east1,0.7,0.2\n", "has more than 128 characters"),
    (
        HEADER + "g2,us-east1,1,1\nn1,us-east1,1,1\ng2,us-east1,2,1\n",
        "line 4: 'region us-east1 machine_type g2' is priced twice, first at line 2",
    ),
    ('[{"node": "a", "usd_per_hour": 1}, {"node": "a", "usd_per_hour": 1}]', "row 2: 'node a' is priced twice"),
    ('node,usd_per_hour\n"a\nb",1\n"a\nb",1\n', "line 5: 'node a\\nb' is priced twice, first at line 3"),
    ('"a\nb","a\nb"\n', "line 3: there are two columns 'a\\nb'"),
    (f"node,amount,currency\na,1,{'C' * 999}\n", f"line 2: currency '{'C' * 20}' has no rate"),
    ("node,amount,currency\na,1,CHF\n", "line 2: currency 'CHF' has no rate; those with one are EUR, USD"),
    ("node,usd_per_hour,currency\na,1,EUR\n", "line 2: it has usd_per_hour and amount or a currency"),
    ("node,usd_per_hour,amount\na,1,1\n", "line 2: it has usd_per_hour and amount or a currency"),
    ("node,usd_per_hour,valid_until\na,1,tomorrow\n", "line 2: valid_until is 'tomorrow'; expected such as 2026-"),
    ("node,usd_per_hour,valid_until\na,1,1e300\n", "line 2: valid_until is '1e300'"),
    ("node,usd_per_hour,valid_until\na,1,0001-01-01\n", "line 2: valid_until is '0001-01-01'"),
    ("from_region,to_region,usd_per_gb\na,,1\n", "line 2: to_region is empty"),
    ("from_region,to_region,usd_per_gb\na,b,\n", "line 2: usd_per_gb is ''"),
    ("from_region,to_region,usd_per_gb\na,b,1\na,b,1\n", "line 3: 'transfer a b' is priced twice"),
    # Sizes.
    ("node,usd_per_hour\n" + "".join(f"n{i},1\n" for i in range(MAX_ROWS + 1)), "it has more than 100000 rows"),
    ("[" * 100_000, "it is not JSON"),
    (json.dumps([{f"k{i}": 1, "node": f"n{i}", "usd_per_hour": 1} for i in range(101)]), "different sets of keys"),
    (",".join(f"c{i}" for i in range(1001)) + "\n", "line 1: 1001 columns; at most 1000"),
    ("node,usd_per_hour\n" + "x" * 140_000 + ",1\n", "line 2: field larger than field limit"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_what_is_no_feed_says_where_and_why(text: str, said: str) -> None:
    with pytest.raises(BadFeed) as caught:
        read(text)
    assert said in caught.value.message
    assert len(caught.value.message) < 400 and len(caught.value.message.splitlines()) == 1


def test_bytes_that_are_no_text_and_too_many_of_them() -> None:
    with pytest.raises(BadFeed, match="it is not UTF-8: byte 18 is 0xff"):
        parse(b"node,usd_per_hour\n\xff,1\n", CURRENCIES)
    with pytest.raises(BadFeed, match="not UTF-8"):
        parse((HEADER + "g2,zürich,1,1\n").encode()[: len(HEADER) + 5], CURRENCIES)
    with pytest.raises(BadFeed, match="it has more than 8388608 bytes"):
        parse(b" " * (MAX_BYTES + 1), CURRENCIES)


def test_a_feed_that_is_cut_off_anywhere_is_noticed_unless_it_ends_with_a_line() -> None:
    """A file that ends with a whole line looks whole; against those, the reader waits until a file has come to rest."""
    whole = (HEADER + "g2,us-east1,0.71,0.28\nn1,us-east1,0.19,0.04\n").encode()
    for end in range(len(whole)):
        if whole[:end].endswith(b"\n") and whole[:end] != HEADER.encode():
            continue
        with pytest.raises(BadFeed):
            parse(whole[:end], CURRENCIES)
    document = json.dumps([{"node": "a", "usd_per_hour": 1.5}]).encode()
    for end in range(len(document)):
        with pytest.raises(BadFeed):
            parse(document[:end], CURRENCIES)


cells = st.one_of(
    st.sampled_from(
        ["", "0", "1.5", "-1", "nan", "EUR", "CHF", "us-east1", "*", "2026-01-01", "1e400", '"', ",", "\x00"]
    ),
    st.text(max_size=8),
)
csvs = st.builds(
    lambda names, rows: "\n".join(",".join(row) for row in [names, *rows]) + "\n",
    st.lists(st.sampled_from([*COLUMNS, "other"]), max_size=6),
    st.lists(st.lists(cells, max_size=6), max_size=5),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | cells,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*COLUMNS, "x"]), inner, max_size=4),
    max_leaves=12,
)
jsons = st.builds(
    json.dumps,
    values
    | st.lists(st.dictionaries(st.sampled_from(COLUMNS), values, max_size=6), max_size=4)
    | st.dictionaries(st.sampled_from(["prices", "transfers", ""]), values, max_size=2),
)


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(str.encode), csvs.map(str.encode), jsons.map(str.encode)
    )
)
def test_any_bytes_are_a_feed_or_a_reason(data: bytes) -> None:
    try:
        table = parse(data, CURRENCIES)
    except BadFeed as error:
        assert len(error.message.splitlines()) == 1
        return
    prices = [
        price for row in (*table.by_node.values(), *table.by_type.values()) for price in (row.on_demand, row.spot)
    ]
    assert prices or table.transfers
    assert all(0 <= price.usd < 1e6 for price in prices if price)
    assert all(0 <= usd_per_gb < 1e6 for usd_per_gb in table.transfers.values())
