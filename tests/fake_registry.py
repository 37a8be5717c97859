"""A registry with one version, for tests of pulling: as much of the OCI pull API as a node's store asks for."""

from __future__ import annotations

import httpx

from nearmesh.oci import CONFIG_TYPE, MANIFEST_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes

FILES = {"model.toml": b"name", "fp32.onnx": b"weights" * 1000, "empty": b""}
CONFIG = b"{}"
MANIFEST = Manifest(
    "m",
    "1",
    Descriptor(CONFIG_TYPE, digest_bytes(CONFIG), len(CONFIG)),
    tuple(Descriptor(WEIGHT_TYPE, digest_bytes(data), len(data), title) for title, data in FILES.items()),
).to_bytes()
DIGEST = digest_bytes(MANIFEST)


class FakeRegistry:
    """Answers as a registry should, until a test changes what it has. A handler for `httpx.MockTransport`."""

    def __init__(self) -> None:
        self.manifest = MANIFEST
        self.blobs = {digest_bytes(data): data for data in (CONFIG, *FILES.values())}
        self.asked: list[str] = []
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(path)
        if self.status != 200:
            return httpx.Response(self.status)
        if path == f"/v2/m/manifests/{DIGEST}":
            return httpx.Response(200, content=self.manifest, headers={"Content-Type": MANIFEST_TYPE})
        data = self.blobs.get(path.rpartition("/")[2])
        return httpx.Response(404) if data is None else httpx.Response(200, content=data)

    @property
    def weights(self) -> str:
        return digest_bytes(FILES["fp32.onnx"])
