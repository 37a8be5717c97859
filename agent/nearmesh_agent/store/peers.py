"""Other nodes as sources of blobs: `BlobService` on their mesh listeners. Blocking."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import grpc

from nearmesh.addresses import is_address
from nearmesh.errors import Unreachable
from nearmesh.membership import KEEPALIVE
from nearmesh.rpc import from_rpc_error
from nearmesh.tls import Credentials
from nearmesh.v1 import blob_pb2, blob_pb2_grpc
from nearmesh.v1 import node_pb2 as pb

# A node that gives less than this is slower than a bad link; its share is taken over. And what a call may take besides.
LEAST_BYTES_PER_S = 128 * 1024
PATIENCE_S = 10.0
# Whatever the control plane says.
MAX_HOLDERS = 16


class MeshPeers:
    """The nodes that the control plane named, asked again each time, as they come and go while a version is pulled."""

    def __init__(
        self, wanted: Callable[[], Sequence[pb.WantedVersion]], credentials: Callable[[], Credentials], me: str
    ) -> None:
        self._wanted = wanted
        self._credentials = credentials
        self._me = me

    def of(self, digest: str) -> Sequence[pb.Holder]:
        for version in self._wanted():
            if version.digest == digest:
                found = [holder for holder in version.holders[:MAX_HOLDERS] if holder.node != self._me]
                return [holder for holder in found if is_address(holder.address)]
        return ()

    def connect(self, holder: pb.Holder) -> MeshPeer:
        return MeshPeer(holder, self._credentials().channel_credentials())


class MeshPeer:
    """One node."""

    def __init__(self, holder: pb.Holder, credentials: grpc.ChannelCredentials) -> None:
        options = [*KEEPALIVE, ("grpc.ssl_target_name_override", holder.server_name), ("grpc.enable_retries", 0)]
        self._node = holder.node
        self._channel = grpc.secure_channel(holder.address, credentials, options=options)
        self._stub = blob_pb2_grpc.BlobServiceStub(self._channel)
        self._calls: set[Any] = set()
        self._closed = False

    def open(self, digest: str, offset: int, size: int, wait_s: float) -> MeshReader:
        if self._closed:
            raise Unreachable("the transfer was broken off")
        request = blob_pb2.ReadBlobRequest(digest=digest, offset=offset, size=size, wait_s=wait_s)
        # A share that is on its way comes as fast as the WAN brings it.
        limit_s = PATIENCE_S + (1 if not wait_s else 4) * size / LEAST_BYTES_PER_S + wait_s
        try:
            call = self._stub.Read(request, timeout=limit_s)
        except ValueError as error:
            # The channel was closed.
            raise Unreachable(str(error)) from None
        self._calls.add(call)
        if self._closed:
            call.cancel()
        return MeshReader(call, self._calls.discard)

    def here(self, digests: Collection[str]) -> Mapping[str, Sequence[tuple[int, int]]]:
        try:
            answer = self._stub.Here(blob_pb2.HereRequest(digests=digests), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except ValueError as error:
            raise Unreachable(str(error)) from None
        found: dict[str, list[tuple[int, int]]] = {}
        for part in answer.ranges:
            found.setdefault(part.digest, []).append((part.offset, part.offset + part.size))
        return found

    def break_off(self) -> None:
        self._closed = True
        for call in list(self._calls):
            call.cancel()

    def close(self) -> None:
        self.break_off()
        self._channel.close()


class MeshReader:
    """One answer."""

    def __init__(self, call: Any, over: Callable[[Any], None]) -> None:
        self._call = call
        self._messages: Iterator[blob_pb2.ReadBlobResponse] = iter(call)
        self._rest = memoryview(b"")
        self._over = over

    def readinto(self, view: memoryview) -> int:
        while not self._rest:
            try:
                self._rest = memoryview(next(self._messages).data)
            except StopIteration:
                return 0
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            except ValueError as error:
                # The channel was closed.
                raise Unreachable(str(error)) from None
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._call.cancel()
        self._over(self._call)
