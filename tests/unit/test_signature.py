"""Signatures: cosign's layout, the same each time, and refused with the reason when anything was changed."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nearmesh import signature
from nearmesh.errors import SignatureError
from nearmesh.oci import MANIFEST_TYPE, Descriptor, digest_bytes
from nearmesh.tls import new_key

DIGEST, OTHER = digest_bytes(b"a manifest"), digest_bytes(b"another")
REFERENCE = "mesh/file-type"
KEY, STRANGER = new_key(), new_key()
PEM = signature.public_pem(KEY)
TEXT = signature.payload(REFERENCE, DIGEST)
GOOD = signature.sign(KEY, TEXT)


def test_what_is_signed_is_cosigns_text():
    assert json.loads(TEXT) == {
        "critical": {
            "identity": {"docker-reference": REFERENCE},
            "image": {"docker-manifest-digest": DIGEST},
            "type": "cosign container image signature",
        },
        "optional": None,
    }


def test_a_right_signature_passes():
    signature.check([PEM], DIGEST, TEXT, GOOD)
    signature.check([signature.public_pem(STRANGER), PEM.encode()], DIGEST, TEXT, GOOD)


def test_the_same_key_signs_alike():
    assert signature.sign(KEY, TEXT) == GOOD


def test_a_randomized_signature_of_another_tool_passes():
    from cryptography.hazmat.primitives import hashes

    made = base64.b64encode(KEY.sign(TEXT, ec.ECDSA(hashes.SHA256()))).decode()
    signature.check([PEM], DIGEST, TEXT, made)


def flipped(text):
    raw = bytearray(base64.b64decode(text))
    raw[-1] ^= 1
    return base64.b64encode(raw).decode()


ED25519 = ed25519.Ed25519PrivateKey.generate().public_key()
NO_EC = ED25519.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("keys", "digest", "text", "signed", "said"),
    [
        ([], DIGEST, TEXT, GOOD, "no key"),
        ([signature.public_pem(STRANGER)], DIGEST, TEXT, GOOD, "not by any of the 1 keys"),
        ([PEM], DIGEST, TEXT, flipped(GOOD), "not by any"),
        ([PEM], DIGEST, TEXT, "", "not by any"),
        ([PEM], DIGEST, TEXT, "not Base64!", "is not Base64"),
        ([PEM], DIGEST, TEXT, "\u00e9", "is not Base64"),
        ([PEM], DIGEST, TEXT.replace(b"file-type", b"file-typo"), GOOD, "not by any"),
        ([PEM], OTHER, TEXT, GOOD, f"is of {DIGEST}"),
        (["no key"], DIGEST, TEXT, GOOD, "not a public key"),
        ([NO_EC], DIGEST, TEXT, GOOD, "not an EC key"),
    ],
    # By number: signatures are others in each process, and all workers have to name the cases alike.
    ids=range(10),
)
def test_anything_else_is_refused_with_the_reason(keys, digest, text, signed, said):
    with pytest.raises(SignatureError, match=said):
        signature.check(keys, digest, text, signed)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"critical": {"type": "atomic container signature"}}',
        signature.payload(REFERENCE, DIGEST).replace(b"sha256:", b"md5:"),
        TEXT.replace(b'"docker-manifest-digest":"', b'"docker-manifest-digest":5,"x":"'),
    ],
)
def test_a_signed_text_that_names_no_digest_is_refused(text):
    with pytest.raises(SignatureError):
        signature.check([PEM], DIGEST, text, signature.sign(KEY, text))


def test_a_signature_lies_in_a_registry_as_cosign_puts_it():
    made = signature.attached(KEY, REFERENCE, Descriptor(MANIFEST_TYPE, DIGEST, 10))
    assert signature.tag(DIGEST) == f"sha256-{DIGEST[7:]}.sig"
    assert signature.signed_by(signature.tag(DIGEST)) == DIGEST
    assert [signature.signed_by(tag) for tag in ("1.0", "sha256-1.sig", DIGEST)] == [None] * 3
    body = json.loads(made.manifest)
    assert body["mediaType"] == MANIFEST_TYPE and body["subject"]["digest"] == DIGEST
    assert body["config"]["digest"] in made.blobs and digest_bytes(made.manifest) == made.digest
    ((layer, signed),) = signature.signatures(made.manifest)
    assert made.blobs[layer.digest] == TEXT and layer.size_bytes == len(TEXT)
    assert body["layers"][0]["annotations"] == {"dev.cosignproject.cosign/signature": signed}
    signature.check([PEM], DIGEST, made.blobs[layer.digest], signed)
    assert made == signature.attached(KEY, REFERENCE, Descriptor(MANIFEST_TYPE, DIGEST, 10))


MADE = json.loads(signature.attached(KEY, REFERENCE, Descriptor(MANIFEST_TYPE, DIGEST, 10)).manifest)


def layer(**changes):
    return json.dumps(MADE | {"layers": [MADE["layers"][0] | changes]}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps(MADE | {"layers": []}).encode(),
        layer(mediaType="text/plain"),
        layer(annotations={}),
        layer(annotations={"dev.cosignproject.cosign/signature": 5}),
        layer(digest="sha256:../../etc"),
        layer(size=-1),
        layer(size=10**9),
        layer(size="large"),
        layer(size=3.5),
        layer(size=True),
        b" " * (5 * 1024 * 1024),
    ],
)
def test_hostile_manifests_of_signatures(data):
    with pytest.raises(SignatureError):
        signature.signatures(data)
