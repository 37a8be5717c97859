"""Names, digests and identities."""

from __future__ import annotations

import pytest

from nearmesh.errors import InvalidInput
from nearmesh.ids import MachineId, check_digest, check_label, check_version, node_server_name

LONGEST = "a" * 63


@pytest.mark.parametrize("name", ["a", "0", "europe-west1", "a-b--c", LONGEST])
def test_labels(name: str) -> None:
    assert check_label("node", name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a.b", "a b", "é", "a\n", "../a", LONGEST + "a", "a/b", "a\0"]
)
def test_what_is_no_label(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"^node "):
        check_label("node", name)


@pytest.mark.parametrize("version", ["1", "1.2.3", "v1", "2026-11-20", "1.0+gpu_2", "a" * 64])
def test_versions(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["", ".1", "-1", "+1", "_1", "1/2", "1 2", "1\n", "a" * 65, "é"])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(InvalidInput, match=r"^version "):
        check_version(version)


def test_digests() -> None:
    right = "sha256:" + "0123456789abcdef" * 4
    assert check_digest(right) == right


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "md5:" + "0" * 64])
def test_what_is_no_digest(digest: str) -> None:
    with pytest.raises(InvalidInput, match=r"^digest "):
        check_digest(digest)


@pytest.mark.parametrize("digest", ["SHA256:" + "0" * 64, "sha256:" + "A" * 64, "sha256:" + "0" * 64 + "\n"])
def test_digests_are_compared_as_text_so_they_have_one_spelling(digest: str) -> None:
    with pytest.raises(InvalidInput):
        check_digest(digest)


@pytest.mark.parametrize("kind", ["node", "gateway"])
def test_an_identity_is_its_uri(kind: str) -> None:
    who = MachineId("my-mesh", kind, "n1")  # type: ignore[arg-type]
    assert who.spiffe == f"spiffe://my-mesh/{kind}/n1"
    assert who.dns == "n1.my-mesh" == node_server_name("my-mesh", "n1")
    assert MachineId.parse(who.spiffe) == who


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://m/node/",
        "spiffe://m/admin/n",
        "spiffe://m/node/n/more",
        "spiffe:///node/n",
        "https://m/node/n",
        "spiffe://m/node/N",
        "spiffe://M/node/n",
        "spiffe://m/node/n\n",
        "spiffe://m.evil.example/node/n",
    ],
)
def test_what_is_no_identity(uri: str) -> None:
    with pytest.raises(InvalidInput):
        MachineId.parse(uri)
