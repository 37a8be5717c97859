"""`nearmesh infer` without a mesh: values and files into arrays, images into tensors, answers onto the screen."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from nearmesh.cli.answer_text import describe, to_json, top
from nearmesh.cli.images import Scaling, read_image
from nearmesh.cli.infer import Request, _decision
from nearmesh.cli.tensor_input import Spec, pick, read_input, split
from nearmesh.errors import DeadlineExceeded, InvalidInput, MeshError, NotFound, Unreachable
from nearmesh.v1 import route_pb2

PLAIN = Scaling()


def read(text: str | Path, datatype: str, *shape: int, scaling: Scaling = PLAIN) -> np.ndarray:
    return read_input(str(text), Spec("x", datatype, shape), scaling)


# ---- values


@pytest.mark.parametrize(
    ("text", "datatype", "shape", "expected"),
    [
        ("16000", "INT64", (), np.array(16000, np.int64)),
        ("3", "FP32", (-1, 1), np.array([[3]], np.float32)),
        ("[1, 2]", "INT32", (-1, 2), np.array([[1, 2]], np.int32)),
        ("[[1, 2], [3, 4]]", "FP16", (-1, 2), np.array([[1, 2], [3, 4]], np.float16)),
        ("[true, false]", "BOOL", (2,), np.array([True, False])),
        ("[0, 1]", "BOOL", (2,), np.array([False, True])),
        ("2.0", "UINT8", (1,), np.array([2], np.uint8)),
        ("18446744073709551615", "UINT64", (1,), np.array([2**64 - 1], np.uint64)),
        ("[0.1]", "FP32", (1,), np.array([0.1], np.float32)),
    ],
)
def test_values_written_out(text: str, datatype: str, shape: tuple[int, ...], expected: np.ndarray) -> None:
    found = read(text, datatype, *shape)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", [b"hello"]),
        ("5", [b"5"]),
        ('"quoted"', [b"quoted"]),
        ('["a", "Grüße"]', [b"a", "Grüße".encode()]),
        ("[no json", [b"[no json"]),
    ],
)
def test_text_inputs(text: str, expected: list[bytes]) -> None:
    assert read(text, "BYTES", -1).tolist() == expected


def test_any_file_may_be_the_contents_of_a_text_input(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\xff")
    assert read(tmp_path / "a.bin", "BYTES", -1).tolist() == [b"\0\xff"]


@pytest.mark.parametrize(
    ("text", "datatype", "says"),
    [
        ("1.5", "INT32", "cannot hold"),
        ("256", "UINT8", "cannot hold"),
        ("-1", "UINT8", "cannot hold"),
        ("2", "BOOL", "cannot hold"),
        ("1e300", "FP32", "cannot hold"),
        ("[[1], [1, 2]]", "FP32", "differ in length"),
        ('["a"]', "FP32", "not made of numbers"),
        ("1" + 30 * "0", "INT64", "not made of numbers"),
        ("null", "FP32", "not made of numbers"),
        ("cat.gif", "FP32", "neither a number"),
        ("nowhere.npy", "FP32", "No such file"),
        ("nowhere.json", "FP32", "No such file"),
        ("nowhere.png", "FP32", "nowhere.png"),
        ("[1]", "BYTES", "is no text"),
    ],
)
def test_values_that_do_not_fit(text: str, datatype: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read(text, datatype, -1, 3, -1, -1)


# ---- files


def test_numpy_files(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "one.npz", anything=array)
    np.savez(tmp_path / "named.npz", x=array, y=array + 1)
    np.savez(tmp_path / "warmup.npz", **{"input.x": array, "output.x": array + 1})
    for name in ("a.npy", "one.npz", "named.npz", "warmup.npz"):
        found = read(tmp_path / name, "FP32", -1, 3)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array)
    np.savez(tmp_path / "other.npz", a=array, b=array)
    with pytest.raises(InvalidInput, match="it has a, b"):
        read(tmp_path / "other.npz", "FP32", -1, 3)


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz", "a.json", "a.png"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(InvalidInput, match=name):
            read(tmp_path / name, "FP32", 1, 3, -1, -1)
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InvalidInput, match="pickled"):
        read(tmp_path / "pickled.npy", "FP32", 1)


def test_json_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[1, 2, 3]]")
    np.testing.assert_array_equal(read(tmp_path / "a.json", "INT8", -1, 3), [[1, 2, 3]])


def test_names_and_values_are_split() -> None:
    assert split(["x=1", "y=a=b"], "--input") == {"x": "1", "y": "a=b"}
    for given in (["x"], ["=1"], ["x="], ["x=1", "x=2"]):
        with pytest.raises(InvalidInput):
            split(given, "--input")
    specs = {"bytes": Spec("bytes", "INT32", (-1, 2048))}
    with pytest.raises(InvalidInput, match="did you mean 'bytes'"):
        pick("byte", specs, "input")
    with pytest.raises(InvalidInput, match="it has bytes"):
        pick("qqq", specs, "input")


# ---- images


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """4 wide, 2 high; red on the left, blue on the right."""
    image = pytest.importorskip("PIL.Image", reason="images are read with Pillow (extra images)")
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, :2, 0] = 255
    pixels[:, 2:, 2] = 51
    image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize(
    ("datatype", "shape", "expected"),
    [
        ("FP32", (-1, 3, -1, -1), (1, 3, 2, 4)),
        ("FP32", (-1, -1, -1, -1), (1, 3, 2, 4)),
        ("FP16", (-1, -1, -1, 3), (1, 2, 4, 3)),
        ("FP32", (1, 1, 8, 6), (1, 1, 8, 6)),
        ("UINT8", (-1, -1, -1, 3), (1, 2, 4, 3)),
        ("UINT8", (-1, -1, -1, -1), (1, 2, 4, 3)),
        ("UINT8", (1, 3, -1, -1), (1, 3, 2, 4)),
        ("FP32", (3, -1, -1), (3, 2, 4)),
        ("UINT8", (-1, -1), (2, 4)),
    ],
)
def test_an_image_takes_the_models_layout(
    picture: Path, datatype: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert read(picture, datatype, *shape).shape == expected


def test_pixels_are_scaled_for_float_inputs_only(picture: Path) -> None:
    floats = read(picture, "FP32", 1, 3, 2, 4)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats[0, :, 0, 0], [1, 0, 0])
    np.testing.assert_allclose(floats[0, :, 0, 3], [0, 0, 0.2], atol=1e-6)
    np.testing.assert_array_equal(read(picture, "UINT8", 1, 2, 4, 3)[0, 0, 3], [0, 0, 51])
    signed = read(picture, "FP32", 1, 3, 2, 4, scaling=Scaling(mean=(0.5,), std=(0.5, 0.5, 0.25)))
    np.testing.assert_allclose(signed[0, :, 0, 0], [1, -1, -2])


def test_a_size_may_be_asked_for(picture: Path) -> None:
    assert read(picture, "FP32", 1, 3, -1, -1, scaling=Scaling(size=(64, 32))).shape == (1, 3, 32, 64)
    with pytest.raises(InvalidInput, match="the model takes 8x6"):
        read(picture, "FP32", 1, 3, 6, 8, scaling=Scaling(size=(64, 32)))


@pytest.mark.parametrize(
    ("datatype", "shape", "scaling", "says"),
    [
        ("BOOL", (1, 3, 2, 4), PLAIN, "float or an integer"),
        ("UINT8", (1, 2, 4, 3), Scaling(mean=(0.5,)), "for float inputs"),
        ("FP32", (1, 2, 3, 4, 5), PLAIN, "2 to 4 dimensions"),
        ("UINT8", (1, 2, 4, 7), PLAIN, "7 channels"),
        ("FP32", (1, 3, 2, 4), Scaling(std=(1.0, 2.0)), "1 or that many"),
    ],
)
def test_images_that_do_not_fit(
    picture: Path, datatype: str, shape: tuple[int, ...], scaling: Scaling, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        read_image(picture, "x", datatype, shape, scaling)


def test_nothing_is_divided_by_zero() -> None:
    with pytest.raises(InvalidInput, match="divided by 0"):
        Scaling(std=(1.0, 0.0))


# ---- answers


def test_small_answers_stand_in_full_and_large_ones_in_figures() -> None:
    assert describe("y", np.array([[1.5, 2]], np.float32)) == "y  FP32 [1, 2]\n  [[1.5 2. ]]"
    large = describe("y", np.arange(1000, dtype=np.float32))
    assert large.splitlines() == ["y  FP32 [1000]", "  min 0, mean 499.5, max 999; begins with 0, 1, 2, 3, 4, 5"]
    assert "'a', 'a'" in describe("y", np.full(100, b"a", object))
    assert "Grüße" in describe("y", np.array(["Grüße".encode()], object))
    assert describe("y", np.zeros((0, 3), np.int32)).startswith("y  INT32 [0, 3]")


def test_scores_come_with_their_labels() -> None:
    labels = tuple("abcdefg")
    scores = np.array([[0, 0.5, 0.1, 0, 0, 0.4, 0], [1, 0, 0, 0, 0, 0, 0]], np.float32)
    ranked = top(scores, labels)
    assert [row[0][0] for row in ranked] == ["b", "a"]
    assert [label for label, _ in ranked[0]] == ["b", "f", "c", "a", "d"]
    assert "row 0  'b' 0.5, 'f' 0.4" in describe("y", scores, labels)
    assert "and 12 more rows" in describe("y", np.zeros((20, 7), np.float32), labels)
    assert top(scores, ("too", "few")) == []


def test_answers_as_json() -> None:
    odd = np.array([1.5, np.nan, np.inf, -np.inf], np.float32)
    assert to_json(odd) == {"dtype": "FP32", "shape": [4], "data": [1.5, "NaN", "Infinity", "-Infinity"]}
    assert to_json(np.array([[b"a", b"\xff"]], object))["data"] == [["a", "\\xff"]]
    found = to_json(np.array([[0.25, 0.75]]), ("no", "yes"))
    assert found["top"] == [[{"label": "yes", "score": 0.75}, {"label": "no", "score": 0.25}]]
    json.dumps(found, allow_nan=False)


# ---- the decision


class Admin:
    """A control plane that explains one thing, or fails."""

    def __init__(self, told: route_pb2.Route | MeshError) -> None:
        self._told = told

    async def __aenter__(self) -> Admin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def explain(self, model: str, region: str, *, objective: str) -> route_pb2.Route:
        if isinstance(self._told, MeshError):
            raise self._told
        return self._told


class Sdk:
    """A mesh that goes by a snapshot."""

    async def explain(self, model: str, *, objective: str | None, deadline_s: float | None) -> route_pb2.Route:
        return route_pb2.Route(model=model, objective=objective or "nearest", expires_at_s=1e9)


async def decision(told: route_pb2.Route | MeshError) -> route_pb2.Route:
    request = Request(
        model="m", region="here", inputs={}, outputs={}, objective="cheapest", deadline_s=None, scaling=PLAIN
    )
    session: Any = type("Session", (), {"dial": lambda self: Admin(told)})()
    mesh: Any = Sdk()
    return await _decision(session, mesh, request)


async def test_the_decision_is_the_control_plane_s_own() -> None:
    assert await decision(route_pb2.Route(model="m", generation=7)) == route_pb2.Route(model="m", generation=7)
    with pytest.raises(NotFound):
        await decision(NotFound("no model 'm'"))


@pytest.mark.parametrize("error", [Unreachable("cp:7400 cannot be reached"), DeadlineExceeded("15 s")])
async def test_p2_without_the_control_plane_the_decision_is_what_the_sdk_goes_by(
    error: MeshError, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (await decision(error)).expires_at_s == 1e9
    said = capsys.readouterr()
    assert said.out == "" and error.message in said.err, "what programs read stays as it is"
