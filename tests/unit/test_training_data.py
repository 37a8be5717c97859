"""What counts as a site's data, what is held back of them, and what an operator is told of data that are wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.training.config import DataConfig
from nearmesh_agent.training.data import Data, SiteData, load, split
from nearmesh_agent.training.failures import DataError

from nearmesh.config import parse_text
from nearmesh.errors import ConfigError

TABLE = "site,age,bp,num\neast,63,145,0\nwest,67,160,2\neast,41.5,?,1\neast,56,120,0\n"
CSV: dict[str, Any] = {"format": "csv", "inputs": ("age", "bp"), "target": "num"}


def csv_file(tmp_path: Path, text: str = TABLE) -> Path:
    path = tmp_path / "patients.csv"
    path.write_text(text)
    return path


def everything(found: SiteData) -> list[tuple[Any, ...]]:
    """Rows of the only input with their targets, sorted, of both parts."""
    parts = (found.train, found.held_back)
    rows = [(*x.tolist(), y) for part in parts for x, y in zip(*part.inputs.values(), part.targets, strict=True)]
    return sorted(rows)


def test_columns_of_chosen_rows_are_the_input(tmp_path: Path) -> None:
    config = DataConfig(path=csv_file(tmp_path), where={"site": "east"}, missing=-1.0, **CSV)
    found = load(config, ["features"])
    assert everything(found) == [(41.5, -1.0, 1), (56.0, 120.0, 0), (63.0, 145.0, 0)]
    assert found.train.inputs.keys() == {"features"}
    assert found.train.inputs["features"].dtype == np.float32
    assert found.train.targets.dtype == np.int64


def test_a_target_may_be_whether_it_is_above_something(tmp_path: Path) -> None:
    found = load(DataConfig(path=csv_file(tmp_path), missing=0.0, target_above=0.5, **CSV))
    assert [row[-1] for row in everything(found)] == [1, 0, 0, 1]


def test_targets_that_are_no_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    found = load(DataConfig(path=csv_file(tmp_path, TABLE.replace("145,0", "145,0.5")), missing=0.0, **CSV))
    assert found.train.targets.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "keys", "said"),
    [
        (TABLE, {}, r"line 4, column 'bp': empty; `missing` says"),
        (TABLE.replace("63", "sixty"), {"missing": 0.0}, r"line 2, column 'age': 'sixty' is not a number"),
        (TABLE.replace("63", "inf"), {"missing": 0.0}, r"line 2, column 'age': 'inf' is not a finite"),
        (TABLE.replace("160,2", "160,"), {"missing": 0.0}, r"line 3, column 'num': empty"),
        (TABLE.replace(",160", ""), {"missing": 0.0}, r"line 3: not 4 cells"),
        (TABLE, {"inputs": ("age", "chol")}, r"no column 'chol'; it has site, age, bp, num"),
        (TABLE, {"where": {"site": "north"}}, r"no row where site = 'north'"),
        ("", {}, r"no column 'age'; it has none"),
    ],
)
def test_wrong_tables_name_file_line_and_column(tmp_path: Path, text: str, keys: dict[str, Any], said: str) -> None:
    path = csv_file(tmp_path, text)
    with pytest.raises(DataError, match=said) as raised:
        load(DataConfig(path=path, **{**CSV, **keys}))
    assert str(path) in raised.value.message


def test_csv_makes_one_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the model has 2; write a `loader`"):
        load(DataConfig(path=csv_file(tmp_path), **CSV), ["a", "b"])


def test_a_folder_of_two_parts_is_taken_as_it_stands(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **{"input.image": np.zeros((3, 2)), "target": np.array([0, 1, 2], np.uint8)})
    np.savez(tmp_path / "held_back.npz", **{"input.image": np.ones((1, 2)), "target": np.array([1])})
    found = load(DataConfig(path=tmp_path), ["image"])
    assert (len(found.train), len(found.held_back)) == (3, 1)
    assert found.train.inputs["image"].dtype == np.float32
    assert found.train.targets.dtype == np.int64


def test_one_file_is_parted(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **{"input.x": np.arange(40, dtype=np.uint8)[:, None], "target": np.arange(40) % 2})
    for path in (tmp_path, tmp_path / "data.npz"):
        found = load(DataConfig(path=path, held_back=0.25))
        assert (len(found.train), len(found.held_back)) == (30, 10)
        assert found.train.inputs["x"].dtype == np.uint8
        assert sorted([*found.train.inputs["x"].ravel(), *found.held_back.inputs["x"].ravel()]) == list(range(40))


@pytest.mark.parametrize(
    ("arrays", "inputs", "said"),
    [
        ({"target": np.zeros(3)}, [], r"no array input.NAME; it has target"),
        ({"input.x": np.zeros(3), "target": np.zeros(3)}, ["y"], r"no array input.y; it has input.x, target"),
        ({"input.x": np.zeros(3)}, ["x"], r"no array target"),
        ({"input.x": np.zeros(3), "target": np.zeros(2)}, [], r"input 'x' has 3 rows, target 2"),
        ({"input.x": np.zeros(0), "target": np.zeros(0)}, [], r"no examples"),
        ({"input.x": np.array([1, 2, np.nan]), "target": np.zeros(3)}, [], r"input 'x', row 2: not a finite number"),
        ({"input.x": np.array(["a", "b"]), "target": np.zeros(2)}, [], r"input 'x' is of <U1, expected numbers"),
        ({"input.x": np.float32(1), "target": np.zeros(2)}, [], r"x is a single number"),
        ({"input.x": np.array([{}, {}]), "target": np.zeros(2)}, [], r"allow_pickle"),
        ({"input.x": np.ones(5), "target": np.ones(5)}, [], r"5 rows, 1 of them different"),
        ({"input.x": np.zeros(300_000), "target": np.zeros(3)}, [], r"2 MiB of arrays, above largest_mib = 1"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], inputs: list[str], said: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=said):
        load(DataConfig(path=tmp_path, largest_mib=1), inputs)


def test_files_that_are_missing_or_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither train.npz and held_back.npz nor data.npz is there"):
        load(DataConfig(path=tmp_path))
    (tmp_path / "train.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"train.npz is there, and held_back.npz beside it is missing"):
        load(DataConfig(path=tmp_path))
    (tmp_path / "held_back.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"train.npz: File is not a zip file"):
        load(DataConfig(path=tmp_path))


def rows_of(count: int, seed: int = 0) -> Data:
    random = np.random.default_rng(seed)
    return Data({"x": random.normal(size=(count, 3)).astype(np.float32)}, random.integers(0, 3, count))


def keys(data: Data) -> set[bytes]:
    return {row.tobytes() for row in data.inputs["x"]}


def test_a_row_is_held_back_wherever_it_stands() -> None:
    data = rows_of(200)
    found = split(data, 0.25)
    turned = split(data.rows(slice(None, None, -1)), 0.25)
    assert len(found.held_back) == 50
    assert keys(found.held_back) == keys(turned.held_back)
    assert not keys(found.held_back) & keys(found.train)


def test_rows_that_are_added_change_little() -> None:
    data = rows_of(200)
    before, after = split(data.rows(slice(0, 180)), 0.25), split(data, 0.25)
    assert len(keys(before.held_back) - keys(after.held_back)) <= 5


def test_equal_rows_stay_together() -> None:
    data = rows_of(40)
    twice = Data({"x": np.concatenate([data.inputs["x"]] * 2)}, np.concatenate([data.targets] * 2))
    found = split(twice, 0.25)
    assert not keys(found.held_back) & keys(found.train)


@pytest.mark.parametrize("held_back", [0.01, 0.9])
def test_both_parts_have_something(held_back: float) -> None:
    found = split(rows_of(3), held_back)
    assert len(found.train) >= 1
    assert len(found.held_back) >= 1


def test_a_loader_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_loader")
    asked: list[Any] = []

    def images(config: DataConfig, inputs: tuple[str, ...]) -> SiteData:
        asked.append((config.path, inputs))
        part = Data({"image": np.zeros((2, 4))}, np.array([True, False]))
        return SiteData(part, part)

    module.images, module.wrong = images, lambda config, inputs: [1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_loader", module)
    found = load(DataConfig(loader="own_loader:images"), ["image"])
    assert asked == [(None, ("image",))]
    assert found.train.inputs["image"].dtype == np.float32
    assert found.train.targets.dtype == np.int64
    with pytest.raises(DataError, match="returned list, expected SiteData"):
        load(DataConfig(loader="own_loader:wrong"))
    with pytest.raises(DataError, match=r"no attribute 'absent'; expected package\.module:function"):
        load(DataConfig(loader="own_loader:absent"))


NODE = 'data = "state"\n[training]\nallowed = true\n'


def test_the_table_of_a_nodes_file(tmp_path: Path) -> None:
    text = NODE + '[training.data.heart]\npath = "p.csv"\nformat = "csv"\ninputs = ["a"]\ntarget = "b"\nmissing = 0\n'
    config = parse_text(NodeConfig, text + 'where = {site = "east"}\n', where="node.toml", base=tmp_path)
    assert config.training.allowed
    assert config.training.data["heart"].path == tmp_path / "p.csv"
    assert config.training.data["heart"].where == {"site": "east"}


def test_without_the_table_a_node_does_not_train(tmp_path: Path) -> None:
    assert not parse_text(NodeConfig, 'data = "state"\n', where="node.toml", base=tmp_path).training.allowed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu_share = 0", "training: cpu_share must be 0.05 to 1, got 0"),
        ('superlink = "https://x"', "training: superlink 'https://x' is not HOST:PORT"),
        ('device = "gpu"', "training: device 'gpu' is not cpu, cuda or cuda:N"),
        ("node_config = 'a b=1'", "training: node_config 'a b=1': 'a' is no pair of key=value"),
        ("node_config = 'a=b'", "training: node_config 'a=b' is no list of pairs such as"),
        ("alowed = true", "training: unknown key 'alowed'; did you mean 'allowed'?"),
        ("[training.data.m]", "training.data.m: path is missing"),
        ('[training.data.m]\npath = "p"\nheld_back = 1.0', "training.data.m: held_back must be above 0"),
        ('[training.data.m]\npath = "p"\ntarget = "t"', 'training.data.m: target is of format = "csv"'),
        ('[training.data.m]\npath = "p"\nformat = "csv"\ntarget = "t"', "training.data.m: inputs is missing"),
        (
            '[training.data.m]\npath = "p"\nformat = "csv"\ninputs = ["a", "t"]\ntarget = "t"',
            "training.data.m: inputs holds the target 't' as well",
        ),
        ('[training.data.m]\nloader = "module"', "training.data.m: loader 'module' is not package.module:function"),
    ],
)
def test_what_is_wrong_with_the_table_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_text(NodeConfig, NODE + text, where="node.toml", base=tmp_path)
    assert said in raised.value.message
