"""Other registries: how they are named, how one logs in, and that nothing is believed that they send."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from nearmesh import signature
from nearmesh.chunks import CHUNKS_TYPE, Chunk, ChunkIndex
from nearmesh.errors import (
    ConfigError,
    DigestMismatch,
    InvalidInput,
    MeshError,
    NotFound,
    PackageError,
    PermissionDenied,
    SignatureError,
    Unauthenticated,
    Unreachable,
)
from nearmesh.oci import CONFIG_TYPE, MANIFEST_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.registries import credentials, fetching, transfer
from nearmesh.registries.client import RegistryClient
from nearmesh.registries.credentials import Login
from nearmesh.registries.reference import Reference, check_repository, tag_of
from nearmesh.tls import new_key
from tests.fake_registry import CONFIG, DIGEST, FILES, MANIFEST

KEY, STRANGER = new_key(), new_key()
PEM = signature.public_pem(KEY)
SIGNED = signature.attached(KEY, "mesh/m", Descriptor(MANIFEST_TYPE, DIGEST, len(MANIFEST)))
LOGIN = Login("me", "secret")
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()

# ---- names


@pytest.mark.parametrize(
    ("text", "expected", "url"),
    [
        ("oci://ghcr.io/team/model:1.0", Reference("ghcr.io", "team/model", "1.0"), "https://ghcr.io"),
        ("oci://localhost:5000/m", Reference("localhost:5000", "m"), "http://localhost:5000"),
        ("oci://127.0.0.1:5000/m:A_b", Reference("127.0.0.1:5000", "m", "A_b"), "http://127.0.0.1:5000"),
        ("oci://[::1]:5000/m", Reference("[::1]:5000", "m"), "http://[::1]:5000"),
        ("oci://10.0.0.7:5000/m", Reference("10.0.0.7:5000", "m"), "https://10.0.0.7:5000"),
        (f"oci://h/a/b/c@{DIGEST}", Reference("h", "a/b/c", "", DIGEST), "https://h"),
        (f"oci://h/a:1@{DIGEST}", Reference("h", "a", "1", DIGEST), "https://h"),
    ],
)
def test_names(text: str, expected: Reference, url: str) -> None:
    assert Reference.parse(text) == expected
    assert expected.url == url
    assert expected.wanted == (expected.digest or expected.tag or "latest")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oci://",
        "oci://host",
        "oci://host/",
        "oci:///m",
        "docker://host/m",
        "host/m",
        "oci://host/Model",
        "oci://host/a//b",
        "oci://host/../m",
        "oci://host/m:",
        "oci://host/m@",
        "oci://host/m: 1",
        "oci://host/m:.1",
        "oci://user@host/m",
        "oci://ho st/m",
        "oci://host:port/m",
        "oci://host/m@sha256:1",
        "oci://host/" + "a" * 300,
    ],
)
def test_no_names(text: str) -> None:
    with pytest.raises(InvalidInput):
        Reference.parse(text)


def test_versions_as_tags() -> None:
    assert [tag_of(version) for version in ("1.0", "1.0+gpu")] == ["1.0", "1.0_gpu"]


@pytest.mark.parametrize("url", ["https://h/m", "http://127.0.0.1:5000/a/b"])
def test_places_that_nodes_pull_from(url: str) -> None:
    assert check_repository(url) == url


@pytest.mark.parametrize(
    "url",
    ["", "h/m", "ftp://h/m", "https://h", "https://h/", "https://h/m:1", "https://h/m/", "https://u@h/m", "oci://h/m"],
)
def test_no_places(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_repository(url)


# ---- logins


def config(folder: Path, body: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(body))
    return path


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("name", ["h:5000", "https://h:5000", "https://h:5000/v2/"])
def test_a_login_in_dockers_file(tmp_path: Path, name: str) -> None:
    path = config(tmp_path, {"auths": {"other": {"auth": encoded("x:y")}, name: {"auth": encoded("me:se:cret")}}})
    assert credentials.find("h:5000", path) == Login("me", "se:cret")
    assert "secret" not in repr(LOGIN)


def test_no_login(tmp_path: Path) -> None:
    assert credentials.find("h", tmp_path / "config.json") is None
    for body in ({}, {"auths": {}}, {"auths": {"h": {}}}):
        assert credentials.find("h", config(tmp_path, body)) is None


@pytest.mark.parametrize(
    "body", ["text", [], {"auths": {"h": {"auth": "no Base64"}}}, {"auths": []}, {"auths": {"h": "text"}}]
)
def test_a_file_that_is_none(tmp_path: Path, body: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        credentials.find("h", config(tmp_path, body))


def test_dockers_folder_is_named_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert credentials.config_file() == tmp_path / "config.json"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('read host; echo "{\\"Username\\": \\"$host\\", \\"Secret\\": \\"s\\"}"', Login("h", "s")),
        ("echo credentials not found; exit 1", None),
    ],
)
@pytest.mark.parametrize("body", [{"credsStore": "test"}, {"credHelpers": {"h": "test"}}])
def test_a_helper_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: Login | None, body: object
) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert credentials.find("h", config(tmp_path, body)) == expected


def test_a_helper_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="docker-credential-nowhere"):
        credentials.find("h", config(tmp_path, {"credsStore": "nowhere"}))


# ---- the client


@dataclass
class Registry:
    """A registry in memory, that may want a login: 'basic', or 'bearer' with a token server of its own."""

    wants: str = ""
    referrers: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: bool = True
    sent_bytes: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        if path == "/token":
            right = request.headers.get("Authorization") == BASIC
            assert request.url.params["scope"] == "repository:m:pull,push"
            return httpx.Response(200, json={"token": "t"}) if right else httpx.Response(401)
        shown = request.headers.get("Authorization")
        if self.wants == "basic" and shown != BASIC:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if self.wants == "bearer" and shown != "Bearer t":
            challenge = 'Bearer realm="https://r/token",service="r",scope="repository:m:pull,push"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        return self._answer(request, path.removeprefix("/v2/m/"))

    def _answer(self, request: httpx.Request, path: str) -> httpx.Response:
        kind, _, name = path.partition("/")
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "/v2/m/blobs/uploads/7?state=x"})
        if request.method == "PUT" and kind == "blobs":
            assert request.headers["Content-Length"] and request.url.params["state"] == "x"
            digest, data = request.url.params["digest"], request.read()
            if digest_bytes(data) != digest:
                return httpx.Response(400, json={"errors": [{"code": "DIGEST_INVALID"}]})
            self.blobs[digest] = data
            return httpx.Response(201)
        if request.method == "PUT":
            self.manifests[name] = self.manifests[digest_bytes(request.read())] = request.read()
            return httpx.Response(201, headers={"OCI-Subject": "x"} if self.referrers else {})
        data = {"manifests": self.manifests, "blobs": self.blobs}[kind].get(name)
        if data is None:
            return httpx.Response(404)
        self.sent_bytes += len(data)
        if self.ranges and (wanted := request.headers.get("Range")):
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            self.sent_bytes += last + 1 - first - len(data)
            return httpx.Response(206, content=data[first : last + 1])
        return httpx.Response(200, content=data)


def filled(**more: str) -> Registry:
    found = Registry(**more)  # type: ignore[arg-type]
    found.blobs = {digest_bytes(data): data for data in (CONFIG, *FILES.values())} | dict(SIGNED.blobs)
    found.manifests = {"1": MANIFEST, DIGEST: MANIFEST, signature.tag(DIGEST): SIGNED.manifest}
    return found


def opened(registry: Callable[[httpx.Request], httpx.Response], login: Login | None = None) -> RegistryClient:
    return RegistryClient("https://r", "m", login=login, transport=httpx.MockTransport(registry))


def unseen(done: int, total: int) -> None:
    """Nobody watches."""


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


# ---- what is there already is not fetched

PARTS = [bytes([number]) * (1000 + number) for number in range(6)]
LARGE = b"".join(PARTS)
CUT = tuple(
    Chunk(sum(len(part) for part in PARTS[:number]), len(part), digest_bytes(part)) for number, part in enumerate(PARTS)
)
CHUNKS = ChunkIndex({digest_bytes(LARGE): CUT}).to_bytes()


def chunked(**more: bool) -> Registry:
    """A registry with a version of one large file."""
    blobs = {digest_bytes(data): data for data in (CONFIG, LARGE, CHUNKS, b"name")}
    files = tuple(Descriptor(WEIGHT_TYPE, digest_bytes(data), len(data), title) for title, data in CONTENTS.items())
    index = Descriptor(CHUNKS_TYPE, digest_bytes(CHUNKS), len(CHUNKS), "chunks.json")
    made = Manifest("m", "2", Descriptor(CONFIG_TYPE, digest_bytes(CONFIG), len(CONFIG)), files, index).to_bytes()
    return Registry(blobs=blobs, manifests={"2": made}, **more)


CONTENTS = {"fp32.onnx": LARGE, "model.toml": b"name"}


def lacks(blobs: set[bytes], parts: set[int]) -> fetching.Lacks:
    def found(digests: Sequence[str], chunks: bool) -> frozenset[str]:
        wanted = {CUT[number].digest for number in parts} if chunks else {digest_bytes(blob) for blob in blobs}
        assert wanted <= set(digests)
        return frozenset(wanted)

    return found


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("parts", [{0}, {2, 3}, {0, 2, 3, 5}, {5}, set(range(6))])
def test_only_the_lacking_chunks_are_fetched(tmp_path: Path, parts: set[int], ranges: bool) -> None:
    registry, told = chunked(ranges=ranges), [(0, 0)]
    with opened(registry) as source:
        pulled = fetching.pull(
            source, "2", tmp_path, lambda done, total: told.append((done, total)), lacks({LARGE}, parts)
        )
    path = pulled.blobs[digest_bytes(LARGE)]
    assert isinstance(path, Path)
    data = path.read_bytes()
    assert len(data) == len(LARGE) and digest_bytes(b"name") not in pulled.blobs
    for number, chunk in enumerate(CUT):
        expected = PARTS[number] if number in parts else bytes(chunk.size_bytes)
        assert data[chunk.offset : chunk.end] == expected
    wanted = sum(len(PARTS[number]) for number in parts)
    assert told[-1] == (wanted, wanted)
    if ranges:
        assert registry.sent_bytes == wanted + len(CHUNKS) + len(registry.manifests["2"])


def test_who_has_everything_fetches_nothing(tmp_path: Path) -> None:
    registry = chunked()
    with opened(registry) as source:
        fetching.pull(source, "2", tmp_path, unseen, lambda digests, chunks: frozenset())
    assert registry.sent_bytes == len(CHUNKS) + len(registry.manifests["2"])


@pytest.mark.parametrize("spoiled", [LARGE[:3000] + b"x" + LARGE[3001:], LARGE[:2500]])
def test_p5_a_chunk_that_is_another_is_refused(tmp_path: Path, spoiled: bytes) -> None:
    registry = chunked()
    registry.blobs[digest_bytes(LARGE)] = spoiled
    with opened(registry) as source, pytest.raises(DigestMismatch, match="the chunk at 2001 is"):
        fetching.pull(source, "2", tmp_path, unseen, lacks({LARGE}, {2, 3}))


def test_a_tampered_index_is_refused(tmp_path: Path) -> None:
    registry = chunked()
    registry.blobs[digest_bytes(CHUNKS)] = CHUNKS.replace(b"1000", b"1001")
    with opened(registry) as source, pytest.raises(DigestMismatch, match=r"chunks\.json is"):
        fetching.pull(source, "2", tmp_path, unseen)
