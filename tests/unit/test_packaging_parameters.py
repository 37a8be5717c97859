"""A graph's parameters by name: what is read is what is there, and what is written is nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nearmesh.errors import PackageError
from nearmesh.packaging.parameters import read, write

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([1, 2, 3], np.float16)


def graph(path: Path, *more: TensorProto, external: bool = False) -> Path:
    """Of a weight (FP32), a bias (FP16) and a count (INT64)."""
    tensors = [
        numpy_helper.from_array(WEIGHT, "layer.weight"),
        # Halves as numbers of 32 bits, as some exporters write them.
        helper.make_tensor("layer.bias", TensorProto.FLOAT16, [3], BIAS),
        numpy_helper.from_array(np.array([7], np.int64), "count"),
        *more,
    ]
    node = helper.make_node("Identity", ["layer.weight"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    model = helper.make_model(helper.make_graph([node], "g", [], [out], tensors))
    path.parent.mkdir(exist_ok=True)
    if external:
        for tensor in model.graph.initializer:
            if not tensor.raw_data:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, str(path), save_as_external_data=True, location="weights.data", size_threshold=0)
    else:
        onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("external", [False, True])
def test_what_is_written_is_read_and_nothing_else_changes(tmp_path: Path, external: bool) -> None:
    path, target = graph(tmp_path / "a" / "g.onnx", external=external), tmp_path / "b" / "new.onnx"
    target.parent.mkdir()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    new = {"layer.bias": BIAS * 2, "layer.weight": np.asfortranarray(WEIGHT + 1)}

    write(path, new, target)

    found = read(target, ["layer.weight", "layer.bias"])
    assert list(found) == ["layer.weight", "layer.bias"]
    for name, array in found.items():
        assert array.dtype == new[name].dtype
        np.testing.assert_array_equal(array, new[name])
        array += 1  # they are the caller's own
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert sorted(file.name for file in target.parent.iterdir()) == ["new.onnx", *(["weights.data"] * external)]
    kept = {tensor.name: tensor for tensor in onnx.load(str(target)).graph.initializer}
    assert numpy_helper.to_array(kept["count"]).tolist() == [7]
    onnx.checker.check_model(str(target))


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx")
    arrays = read(path, ["layer.weight", "layer.bias"])
    write(path, arrays, tmp_path / "one.onnx")
    write(path, dict(reversed(arrays.items())), tmp_path / "two.onnx")
    write(tmp_path / "two.onnx", arrays, tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_part_of_the_parameters_may_be_written(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx")
    write(path, {"layer.bias": BIAS + 1}, tmp_path / "new.onnx")
    np.testing.assert_array_equal(read(tmp_path / "new.onnx", ["layer.weight"])["layer.weight"], WEIGHT)


def test_everything_that_does_not_fit_is_named_at_once(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx")
    wrong = {
        "layer.weights": WEIGHT,
        "layer.weight": WEIGHT.T.astype(np.float64),
        "layer.bias": BIAS.astype(np.float32),
        "count": np.array([1], np.int64),
    }
    with pytest.raises(PackageError) as caught:
        write(path, wrong, tmp_path / "new.onnx")
    assert caught.value.message.replace(f"{path}: ", "").splitlines() == [
        "the graph has no initializer 'layer.weights'; did you mean 'layer.weight'?",
        "initializer 'count' is INT64; parameters are FLOAT, DOUBLE, FLOAT16",
        "array 'layer.weight' has shape [3, 2], the initializer [2, 3]",
        "array 'layer.weight' is float64, the initializer float32",
        "array 'layer.bias' is float32, the initializer float16",
    ]
    assert not (tmp_path / "new.onnx").exists()


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (helper.make_tensor("x", TensorProto.BFLOAT16, [1], [1.0]), "initializer 'x' is BFLOAT16; parameters are"),
        (
            TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[2], raw_data=b"\0" * 4),
            r"initializer 'x' has 4 bytes; its shape \[2\] needs 8",
        ),
    ],
)
def test_what_is_no_parameter_is_refused(tmp_path: Path, tensor: TensorProto, said: str) -> None:
    with pytest.raises(PackageError, match=said):
        read(graph(tmp_path / "g.onnx", tensor), ["x"])


@pytest.mark.parametrize("external", [False, True])
def test_a_scalar_and_an_empty_tensor_are_parameters(tmp_path: Path, external: bool) -> None:
    tensors = [numpy_helper.from_array(np.array(2.5), "s"), numpy_helper.from_array(np.zeros((0, 3), np.float32), "e")]
    path = graph(tmp_path / "a" / "g.onnx", *tensors, external=external)
    write(path, read(path, ["s", "e"]), tmp_path / "new.onnx")
    found = read(tmp_path / "new.onnx", ["s", "e"])
    assert (found["s"].shape, float(found["s"]), found["e"].shape) == ((), 2.5, (0, 3))


def test_a_file_beside_the_graph_is_not_written_in_place(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", external=True)
    with pytest.raises(PackageError, match=r"weights\.data lies beside both g\.onnx and new\.onnx"):
        write(path, read(path, ["layer.weight"]), tmp_path / "new.onnx")


def test_a_file_beside_the_graph_has_to_be_there_whole(tmp_path: Path) -> None:
    path = graph(tmp_path / "g.onnx", external=True)
    data = tmp_path / "weights.data"
    data.write_bytes(data.read_bytes()[:4])
    with pytest.raises(PackageError, match=r"initializer 'layer.weight' has 4 bytes; its shape \[2, 3\] needs 24"):
        read(path, ["layer.weight"])
    data.unlink()
    with pytest.raises(PackageError, match="which is no file beside it"):
        read(path, ["layer.weight"])


def test_a_graph_does_not_reach_out_of_its_folder(tmp_path: Path) -> None:
    path = graph(tmp_path / "a" / "g.onnx", external=True)
    model = onnx.load(str(path), load_external_data=False)
    (tmp_path / "secret").write_bytes(b"x" * 100)
    model.graph.initializer[0].external_data[0].value = "../secret"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(PackageError, match=r"'\.\./secret', which is no file beside it"):
        read(path, ["layer.weight"])


def test_tensors_that_share_bytes_are_not_changed_unasked(tmp_path: Path) -> None:
    path = graph(tmp_path / "a" / "g.onnx", external=True)
    model = onnx.load(str(path), load_external_data=False)
    tied = model.graph.initializer.add()
    tied.CopyFrom(model.graph.initializer[0])
    tied.name = "tied"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(PackageError, match=r"'tied' and 'layer.weight' share bytes of 'weights.data'"):
        write(path, {"tied": WEIGHT}, tmp_path / "new.onnx")
    write(path, {"layer.bias": BIAS}, tmp_path / "new.onnx")


def test_what_is_no_graph_says_so(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(PackageError, match=r"g\.onnx is not an ONNX model"):
        read(tmp_path / "g.onnx", ["x"])
    with pytest.raises(PackageError, match=r"gone\.onnx is not an ONNX model"):
        read(tmp_path / "gone.onnx", ["x"])
