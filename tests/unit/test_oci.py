"""Manifests: they survive the round trip, equal ones have equal bytes, and hostile ones are refused as such."""

import copy
import hashlib
import json
from dataclasses import replace

import pytest

from nearmesh import oci
from nearmesh.chunks import CHUNKS_TYPE, MAX_INDEX_BYTES
from nearmesh.errors import PackageError
from nearmesh.oci import Descriptor, Manifest

ONE, TWO, THREE, FOUR, FIVE = (oci.digest_bytes(text) for text in (b"one", b"two", b"three", b"four", b"five"))

MANIFEST = Manifest(
    "file-type",
    "3.3",
    Descriptor(oci.CONFIG_TYPE, ONE, 3),
    (Descriptor(oci.WEIGHT_CONFIG_TYPE, TWO, 3, "model.toml"), Descriptor(oci.WEIGHT_TYPE, THREE, 5, "fp32.onnx")),
)
WITH_CHUNKS = replace(MANIFEST, chunks=Descriptor(CHUNKS_TYPE, FOUR, 7, "nearmesh.chunks.json"))

WORKSHOP = replace(WITH_CHUNKS, workshop=(Descriptor(oci.CODE_TYPE, FIVE, 9, "training.py", workshop=True),))


@pytest.mark.parametrize("manifest", [MANIFEST, WITH_CHUNKS, WORKSHOP])
def test_round_trip(manifest):
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_manifest_is_a_model_pack_whose_layers_other_tools_can_name():
    body = json.loads(WITH_CHUNKS.to_bytes())
    assert body["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert body["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert [(layer["mediaType"], layer["annotations"]) for layer in body["layers"]] == [
        (media_type, {"org.cncf.model.filepath": name, "org.opencontainers.image.title": name})
        for media_type, name in (
            ("application/vnd.cncf.model.weight.config.v1.raw", "model.toml"),
            ("application/vnd.cncf.model.weight.v1.raw", "fp32.onnx"),
            ("application/vnd.nearmesh.model.chunks.v1+json", "nearmesh.chunks.json"),
        )
    ]
    assert [blob.digest for blob in WITH_CHUNKS.blobs] == [ONE, TWO, THREE, FOUR]


def test_nodes_pull_all_but_what_new_versions_are_made_with():
    assert [blob.digest for blob in WORKSHOP.blobs] == [ONE, TWO, THREE, FIVE, FOUR]
    assert [blob.digest for blob in WORKSHOP.node_blobs] == [ONE, TWO, THREE, FOUR]
    assert [file.title for file in WORKSHOP.all_files] == ["model.toml", "fp32.onnx", "training.py"]
    assert WORKSHOP.size_bytes == WITH_CHUNKS.size_bytes + 9
    # A file that nodes have is pulled, whatever else has the same bytes.
    same = replace(MANIFEST, workshop=(Descriptor(oci.CODE_TYPE, TWO, 3, "copy.py", workshop=True),))
    assert [blob.digest for blob in same.node_blobs] == [ONE, TWO, THREE]
    hostile = replace(WORKSHOP.workshop[0], title="fp32.onnx")
    with pytest.raises(PackageError, match="two of its files have one title"):
        Manifest.from_bytes(replace(MANIFEST, workshop=(hostile,)).to_bytes())


def test_bytes_are_canonical():
    body = json.loads(MANIFEST.to_bytes())
    shuffled = json.dumps(dict(reversed(body.items())), indent=4).encode()
    assert Manifest.from_bytes(shuffled).to_bytes() == MANIFEST.to_bytes()
    assert body["mediaType"] == oci.MANIFEST_TYPE and body["schemaVersion"] == 2


def test_equal_files_are_one_blob():
    twice = Manifest("m", "1", Descriptor(oci.CONFIG_TYPE, ONE, 3), (*MANIFEST.files, MANIFEST.files[0]))
    assert [blob.digest for blob in twice.blobs] == [ONE, TWO, THREE]
    assert twice.size_bytes == 11


def changed(*path, to):
    """The manifest as JSON with one value replaced."""
    body = copy.deepcopy(json.loads(MANIFEST.to_bytes()))
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(body).encode()


def titled(title):
    return changed("layers", 0, "annotations", to={oci.TITLE: title})


def layers(*found):
    return changed("layers", to=[layer.to_json() for layer in found])


@pytest.mark.parametrize("key", ["org.cncf.model.filepath", "org.opencontainers.image.title"])
def test_one_of_the_two_names_is_enough(key):
    assert Manifest.from_bytes(changed("layers", 0, "annotations", to={key: "model.toml"})) == MANIFEST


def test_what_an_earlier_nearmesh_published_is_refused_with_the_remedy():
    with pytest.raises(PackageError, match=r"published by an earlier Nearmesh.*raise `version`.*publish it again"):
        Manifest.from_bytes(changed("artifactType", to="application/vnd.nearmesh.model.v1"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.toml", oci.WEIGHT_CONFIG_TYPE),
        ("labels.txt", oci.WEIGHT_CONFIG_TYPE),
        ("tokenizer.json", oci.WEIGHT_CONFIG_TYPE),
        ("weights", oci.WEIGHT_CONFIG_TYPE),
        ("fp32.onnx", oci.WEIGHT_TYPE),
        ("FP32.ONNX", oci.WEIGHT_TYPE),
        ("fp32.onnx.data", oci.WEIGHT_TYPE),
        ("steps.py", oci.CODE_TYPE),
        ("warmup.npz", oci.DATASET_TYPE),
        ("LICENSE", oci.DOC_TYPE),
        ("README.md", oci.DOC_TYPE),
        ("report.json", oci.DOC_TYPE),
    ],
)
def test_media_types_of_files(name, kind):
    assert oci.file_type(name) == kind


HOSTILE = {
    "nothing": b"",
    "not JSON": b"\x00\x01",
    "not UTF-8": b"\xff\xfe{}",
    "cut off": MANIFEST.to_bytes()[:-1],
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "an image": changed("artifactType", to="application/vnd.oci.image.config.v1+json"),
    "no name": changed("annotations", to={}),
    "annotations as a list": changed("annotations", to=[1]),
    "a name that is no label": changed("annotations", oci.TITLE, to="../etc"),
    "a name that is a number": changed("annotations", oci.TITLE, to=5),
    "a version with a slash": changed("annotations", "org.opencontainers.image.version", to="1/0"),
    "layers as a number": changed("layers", to=3),
    "a layer that is text": changed("layers", 0, to="model.toml"),
    "a layer without a digest": changed("layers", 0, to={"mediaType": "x", "size": 1}),
    "a digest of another kind": changed("layers", 0, "digest", to="md5:abc"),
    "a digest that is a path": changed("layers", 0, "digest", to="sha256:../../etc/passwd"),
    "a digest in capitals": changed("layers", 0, "digest", to="sha256:" + "A" * 64),
    "a digest that is a number": changed("config", "digest", to=1),
    "a negative size": changed("layers", 0, "size", to=-1),
    "a size that is text": changed("layers", 0, "size", to="large"),
    "a size that is null": changed("config", "size", to=None),
    "a title that climbs": titled("../../etc/passwd"),
    "an absolute title": titled("/etc/passwd"),
    "a title that is a folder": titled(".."),
    "a title that is here": titled("."),
    "a title that is a number": titled(5),
    "a title that is a list": titled(["/"]),
    "a title with a drive": titled("C:model.toml"),
    "a size that is true": changed("layers", 0, "size", to=True),
    "a media type that is a number": changed("config", "mediaType", to=1),
    "a title with a zero": titled("model\x00.toml"),
    "an infinite size": changed("layers", 0, "size", to=float("inf")),
    "too deep": b"[" * 100_000,
    "two files of one title": changed("layers", 0, "annotations", to={oci.TITLE: "fp32.onnx"}),
    "two names of one file": changed("layers", 0, "annotations", to={oci.TITLE: "a", oci.FILEPATH: "b"}),
    "a path": changed("layers", 0, "annotations", to={oci.FILEPATH: "folder/model.toml"}),
    "a file without a name": changed("layers", 0, "annotations", to={}),
    "a packed layer": changed("layers", 0, "mediaType", to="application/vnd.cncf.model.weight.v1.tar"),
    "an image's layer": changed("layers", 0, "mediaType", to="application/vnd.oci.image.layer.v1.tar+gzip"),
    "an image's config": changed("config", "mediaType", to="application/vnd.oci.image.config.v1+json"),
    "another schema": changed("schemaVersion", to=1),
    "another media type": changed("mediaType", to=oci.INDEX_TYPE),
    "two chunk indexes": layers(
        *MANIFEST.files, Descriptor(CHUNKS_TYPE, FOUR, 7, "a.json"), Descriptor(CHUNKS_TYPE, ONE, 7, "b.json")
    ),
    "a size that no file has": changed("layers", 0, "size", to=oci.MAX_FILE_BYTES + 1),
    "a size beyond 64 bits": changed("layers", 0, "size", to=10**30),
    "a file named as the manifest": titled("manifest.json"),
    "a file named as what nodes keep": titled(".signature.json"),
    "a chunk index that is too large": layers(
        *MANIFEST.files, Descriptor(CHUNKS_TYPE, FOUR, MAX_INDEX_BYTES + 1, "a.json")
    ),
    "a chunk index named as a file": layers(*MANIFEST.files, Descriptor(CHUNKS_TYPE, FOUR, 7, "model.toml")),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_manifests(data):
    with pytest.raises(PackageError):
        Manifest.from_bytes(data)


def test_a_manifest_has_a_largest_size():
    with pytest.raises(PackageError, match="above the limit"):
        Manifest.from_bytes(b" " * (oci.MAX_MANIFEST_BYTES + 1))


def test_digests(tmp_path):
    content = bytes(range(256)) * 9000
    path = tmp_path / "blob"
    path.write_bytes(content)
    assert oci.digest_file(path) == oci.digest_bytes(content) == "sha256:" + hashlib.sha256(content).hexdigest()
