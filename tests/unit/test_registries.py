"""Other registries: what is pushed and pulled there, and that nothing is believed that they send."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from nearmesh import signature
from nearmesh.errors import (
    DigestMismatch,
    MeshError,
    NotFound,
    PackageError,
    PermissionDenied,
    SignatureError,
    Unauthenticated,
    Unreachable,
)
from nearmesh.oci import MANIFEST_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.registries import fetching, transfer
from tests.fake_registry import DIGEST, FILES, MANIFEST
from tests.http_registry import BASIC, KEY, LOGIN, PEM, SIGNED, STRANGER, Registry, filled, opened, unseen


@pytest.mark.parametrize("wants", ["", "basic", "bearer"])
@pytest.mark.parametrize("referrers", [False, True])
def test_a_version_is_pushed_as_it_is_with_its_signature(wants: str, referrers: bool) -> None:
    target, told = Registry(wants, referrers), list[tuple[int, int]]()
    with opened(filled()) as source, opened(target, LOGIN) as to:
        assert transfer.push(source, DIGEST, to, "first", lambda done, total: told.append((done, total)))
        transfer.check_signature(to, DIGEST, [PEM])
        transfer.check_files(to, Manifest.from_bytes(MANIFEST), unseen)
        assert to.manifest("first") == to.manifest(DIGEST) == MANIFEST
    size = Manifest.from_bytes(MANIFEST).size_bytes
    assert told[0] == (0, size) and told[-1] == (size, size)
    fallback = target.manifests.get(DIGEST.replace(":", "-"))
    assert (fallback is None) == referrers
    if fallback:
        (listed,) = json.loads(fallback)["manifests"]
        assert (listed["digest"], listed["artifactType"]) == (SIGNED.digest, signature.ARTIFACT_TYPE)


def test_what_is_there_already_is_not_sent_again() -> None:
    target = filled()
    with opened(filled()) as source, opened(target) as to:
        transfer.push(source, DIGEST, to, "again", unseen)
        transfer.push(source, DIGEST, to, "again", unseen)
    assert not [asked for asked in target.asked if asked.startswith("POST")]
    assert len(json.loads(target.manifests[DIGEST.replace(":", "-")])["manifests"]) == 1


def test_a_version_is_pulled_to_disk(tmp_path: Path) -> None:
    with opened(filled()) as source:
        pulled = fetching.pull(source, "1", tmp_path, unseen)
    assert (pulled.digest, pulled.manifest_bytes) == (DIGEST, MANIFEST)
    for blob in pulled.manifest.blobs:
        path = pulled.blobs[blob.digest]
        assert isinstance(path, Path) and digest_bytes(path.read_bytes()) == blob.digest


def test_a_login_is_asked_for_once(tmp_path: Path) -> None:
    registry = filled(wants="bearer")
    with opened(registry, LOGIN) as source:
        fetching.pull(source, "1", tmp_path, unseen)
    assert registry.asked.count("GET /token") == 1


@pytest.mark.parametrize("wants", ["basic", "bearer"])
def test_who_may_not_is_told_how(wants: str) -> None:
    with opened(filled(wants=wants)) as source, pytest.raises(Unauthenticated, match="docker login r"):
        source.manifest("1")


def test_a_login_is_not_shown_elsewhere() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "storage":
            assert "Authorization" not in request.headers
            return httpx.Response(201) if request.method == "PUT" else httpx.Response(200, content=b"abc")
        if request.headers.get("Authorization") != BASIC:
            return httpx.Response(401, headers={"WWW-Authenticate": "Basic"})
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "https://storage/upload"})
        return httpx.Response(307, headers={"Location": "https://storage/blob"})

    blob = Descriptor("x", digest_bytes(b"abc"), 3)
    with opened(answer, LOGIN) as client:
        assert b"".join(client.pieces(blob)) == b"abc"
        client.upload(blob, lambda: iter([b"abc"]))


def test_a_token_server_without_tls_gets_no_password() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.scheme == "https"
        return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="http://evil/token"'})

    with opened(answer, LOGIN) as client, pytest.raises(Unauthenticated, match="not https"):
        client.manifest("1")


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionDenied), (404, NotFound), (500, Unreachable)])
def test_what_registries_refuse(status: int, kind: type[MeshError]) -> None:
    with opened(lambda _: httpx.Response(status, text="because")) as client, pytest.raises(kind, match="because"):
        client.manifest("1")


def test_a_registry_that_is_not_there() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with opened(answer) as client, pytest.raises(Unreachable, match="registry r/m: refused"):
        client.has(DIGEST)


# ---- nothing is believed


@pytest.mark.parametrize("said", [["t"], "t", 7, {"token": ["t"]}, {"token": "a\r\nb"}, {"token": "\u00e9"}])
def test_a_token_server_that_answers_with_something_else(said: object) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            return httpx.Response(200, json=said)
        return httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="https://r/token"'})

    with opened(answer, LOGIN) as client, pytest.raises(Unreachable, match="answers with something that is none"):
        client.manifest("1")


@pytest.mark.parametrize("place", ["http://[", "https://r:port/x", "https://\u0000/"])
def test_addresses_that_are_none(place: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": place})
        return httpx.Response(401, headers={"WWW-Authenticate": f'Bearer realm="{place}"'})

    with opened(answer, LOGIN) as client:
        with pytest.raises(Unreachable):
            client.upload(Descriptor("x", digest_bytes(b"abc"), 3), lambda: iter([b"abc"]))
        with pytest.raises(Unreachable):
            client.manifest("1")


@pytest.mark.parametrize("listed", [7, {"a": 1}, ["text"]])
def test_a_list_of_referrers_that_is_none(listed: object) -> None:
    target = Registry()
    target.manifests[DIGEST.replace(":", "-")] = json.dumps({"manifests": listed}).encode()
    with opened(filled()) as source, opened(target) as to, pytest.raises(PackageError, match="is no OCI index"):
        transfer.push(source, DIGEST, to, "1", unseen)


WEIGHTS = digest_bytes(FILES["fp32.onnx"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (FILES["fp32.onnx"][:-1] + b"x", f"fp32.onnx is {WEIGHTS}"),
        (FILES["fp32.onnx"][:-1], f"fp32.onnx is {WEIGHTS}"),
        (FILES["fp32.onnx"] + b"x", "sends more than"),
    ],
)
def test_p5_a_tampered_file_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    registry, target = filled(), Registry()
    registry.blobs[WEIGHTS] = data
    with opened(registry) as source, opened(target) as to:
        with pytest.raises(DigestMismatch, match=said):
            fetching.pull(source, "1", tmp_path, unseen)
        with pytest.raises(DigestMismatch, match=said):
            transfer.check_files(source, Manifest.from_bytes(MANIFEST), unseen)
        with pytest.raises(DigestMismatch, match=said):
            transfer.push(source, DIGEST, to, "1", unseen)
    assert target.manifests == {} and WEIGHTS not in target.blobs


def test_p5_a_tampered_manifest_is_refused(tmp_path: Path) -> None:
    registry = filled()
    other = MANIFEST.replace(b'"m"', b'"n"')
    registry.manifests = {**registry.manifests, "1": other, DIGEST: other}
    with opened(registry) as source:
        with pytest.raises(DigestMismatch, match="gave the manifest"):
            fetching.pull(source, DIGEST, tmp_path, unseen)
        # By its tag it may be another version: it is one that nobody signed.
        pulled = fetching.pull(source, "1", tmp_path, unseen)
        with pytest.raises(SignatureError, match="is not signed"):
            transfer.check_signature(source, pulled.digest, [PEM])


def test_what_is_no_model_is_not_pulled(tmp_path: Path) -> None:
    registry = filled()
    registry.manifests["1"] = SIGNED.manifest
    with opened(registry) as source, pytest.raises(PackageError, match="artifact type"):
        fetching.pull(source, "1", tmp_path, unseen)


(PAYLOAD,) = (digest for digest, data in SIGNED.blobs.items() if b"critical" in data)


def unsigned(registry: Registry) -> None:
    del registry.manifests[signature.tag(DIGEST)]


def payload_of_another(registry: Registry) -> None:
    registry.blobs[PAYLOAD] = registry.blobs[PAYLOAD].replace(DIGEST.encode(), WEIGHTS.encode())


def payload_gone(registry: Registry) -> None:
    del registry.blobs[PAYLOAD]


def signed_by_a_stranger(registry: Registry) -> None:
    made = signature.attached(STRANGER, "mesh/m", Descriptor(MANIFEST_TYPE, DIGEST, len(MANIFEST)))
    registry.manifests[signature.tag(DIGEST)] = made.manifest
    registry.blobs |= made.blobs


def signature_of_another(registry: Registry) -> None:
    made = signature.attached(KEY, "mesh/m", Descriptor(MANIFEST_TYPE, WEIGHTS, 5))
    registry.manifests[signature.tag(DIGEST)] = made.manifest
    registry.blobs |= made.blobs


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unsigned, "is not signed"),
        (payload_of_another, "r/m gave sha256"),
        (payload_gone, "answered 404"),
        (signed_by_a_stranger, "not by any of the 1 keys"),
        (signature_of_another, f"holds, but is of {WEIGHTS}"),
    ],
)
def test_p5_a_tampered_signature_is_refused(spoil: Callable[[Registry], None], said: str) -> None:
    registry = filled()
    spoil(registry)
    with opened(registry) as source, pytest.raises(SignatureError, match=said):
        transfer.check_signature(source, DIGEST, [PEM])


def test_one_good_signature_among_others_is_enough() -> None:
    registry = filled()
    made = signature.attached(STRANGER, "mesh/m", Descriptor(MANIFEST_TYPE, DIGEST, len(MANIFEST)))
    body = json.loads(SIGNED.manifest)
    body["layers"] = [*json.loads(made.manifest)["layers"], *body["layers"]]
    registry.manifests[signature.tag(DIGEST)] = json.dumps(body).encode()
    registry.blobs |= made.blobs
    with opened(registry) as source:
        transfer.check_signature(source, DIGEST, [PEM])
