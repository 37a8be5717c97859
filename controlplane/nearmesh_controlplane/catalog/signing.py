"""The signatures of published versions: made with the authority's key, kept in the layout beside what they sign.

A signature follows from the key and the version alone. So each control plane makes those that it lacks, for versions
that it copied from another one or that were published before there were signatures, and all of them are the same.
"""

from __future__ import annotations

import threading

from cryptography.hazmat.primitives.asymmetric import ec

from nearmesh import signature
from nearmesh.oci import MANIFEST_TYPE, Descriptor
from nearmesh.oci_layout import Layout


class Signing:
    """Signs what lies in one layout. May be called in any thread."""

    def __init__(self, mesh: str, key: ec.EllipticCurvePrivateKey, layout: Layout) -> None:
        self._mesh = mesh
        self._key = key
        self._layout = layout
        self._made: dict[str, Descriptor] = {}
        self._one_at_a_time = threading.Lock()

    def signed(self, model: str, digest: str) -> Descriptor:
        """The manifest of the version's signature, which lies in the layout with all that it names. Raises NotFound."""
        with self._one_at_a_time:
            found = self._made.get(digest)
            if found is None:
                found = self._made[digest] = self._sign(model, digest)
        return found

    def _sign(self, model: str, digest: str) -> Descriptor:
        subject = Descriptor(MANIFEST_TYPE, digest, self._layout.path(digest).stat().st_size)
        made = signature.attached(self._key, f"{self._mesh}/{model}", subject)
        for name, data in made.blobs.items():
            self._layout.add(Descriptor("", name, len(data)), data)
        self._layout.add_manifest(made.manifest, made.digest, f"{model}:{signature.tag(digest)}")
        return Descriptor(MANIFEST_TYPE, made.digest, len(made.manifest))
