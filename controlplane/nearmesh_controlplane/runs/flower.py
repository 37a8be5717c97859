"""Federated runs' engine: Flower, through the Control API of a SuperLink.

Flower's own message classes are imported when the first run needs them, since a control plane may do without Flower.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import threading
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nearmesh.errors import InvalidInput
from nearmesh.ssh_keys import key_of
from nearmesh_controlplane.runs.engine import EngineAway, EngineStatus, RunConfig, State
from nearmesh_controlplane.runs.superlink import SuperLink

T = TypeVar("T")

_MEDIA_TYPE, _STREAM_MEDIA_TYPE = "application/protobuf", "application/flower-protobuf-stream"
# Before each message of a stream stands its length, big end first.
_LENGTH_BYTES = 4
# Of a log, which Flower gives whole and, of a run that goes on, without an end.
_LOG_WITHIN_S, _LOG_CHARACTERS, _LOG_BYTES = 2.0, 8_000, 16 * 1024 * 1024
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Flower's modules import each other in circles, in which two threads get lost; two runs may begin at once.
_IMPORTING = threading.Lock()
# As Flower calls them.
_STATES: Mapping[str, State] = {"pending": "waiting", "starting": "waiting", "running": "running"}
_GONE = "unregistered"
_ENDS: Mapping[str, State] = {"completed": "finished", "failed": "failed", "stopped": "stopped"}


class FlowerEngine:
    """Runs Flower apps through a SuperLink."""

    def __init__(self, superlink: SuperLink) -> None:
        self._superlink = superlink

    async def prepare(self) -> None:
        await self._superlink.needed()
        # A fifth of a second, the first time.
        await asyncio.to_thread(_messages)

    async def release(self) -> None:
        self._superlink.not_needed()

    async def register(self, keys: Mapping[str, str]) -> dict[str, int]:
        pems = {node: _pem(line) for node, line in keys.items()}
        known = await self._known()
        for pem in pems.values():
            if pem not in known:
                known[pem] = await self._register(pem)
        return {node: known[pem] for node, pem in pems.items()}

    async def online(self) -> frozenset[int]:
        return frozenset(found.node_id for found in await self._nodes() if found.status == "online")

    async def start(self, app: Path, run_config: RunConfig, folder: Path | None = None) -> str:
        bundle = await asyncio.to_thread(_bundle, app, run_config)
        control = _messages()
        answer = await self._call("start-run", bundle, control.StartRunResponse)
        assert answer is not None
        if not answer.run_id:
            raise InvalidInput(f"Flower refuses the app {app}")
        if folder is not None:
            await asyncio.to_thread(self._superlink.note, str(answer.run_id), folder)
        return str(answer.run_id)

    async def status(self, run: str) -> EngineStatus:
        control = _messages()
        # Asked first: an app that has come to its end is known as such before it is gone.
        died = await asyncio.to_thread(self._superlink.server_app_died, run)
        request = control.ListRunsRequest(run_id=int(run))
        answer = await self._call("list-runs", request, control.ListRunsResponse, allowed=(404,))
        found = answer.run_dict.get(int(run)) if answer is not None else None
        if found is None:
            return EngineStatus(state="lost", detail="the SuperLink does not know the run; its database is another one")
        ended = found.status.status == "finished"
        state = _ENDS.get(found.status.sub_status, "failed") if ended else _STATES.get(found.status.status, "waiting")
        if state == "running" and died:
            return EngineStatus(state="failed", detail="the process of its server app died")
        return EngineStatus(state=state, detail=found.status.details)

    async def log(self, run: str) -> str:
        control = _messages()
        request = control.StreamLogsRequest(run_id=int(run), after_timestamp=0.0)
        held = bytearray()
        with _away():
            async with self._superlink.client.stream(
                "POST",
                self._superlink.url("/v1/control/stream-logs"),
                content=request.SerializeToString(),
                headers={"content-type": _MEDIA_TYPE, "accept": _STREAM_MEDIA_TYPE, "accept-encoding": "identity"},
            ) as response:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOG_WITHIN_S):
                        async for piece in response.aiter_raw():
                            held += piece
                            if len(held) > _LOG_BYTES:
                                break
                if response.is_error:
                    return ""
        texts = [control.StreamLogsResponse.FromString(one).log_output for one in _framed(bytes(held))]
        return _COLOURS.sub("", "".join(texts))[-_LOG_CHARACTERS:]

    async def stop(self, run: str) -> None:
        control = _messages()
        request = control.StopRunRequest(run_id=int(run))
        # Unknown, or over already.
        await self._call("stop-run", request, control.StopRunResponse, allowed=(404, 412))
        # Asked for a run that has ended, Flower throws away what its messages have left.
        await self.status(run)

    # How it is asked

    async def _nodes(self) -> list[Any]:
        control = _messages()
        answer = await self._call("list-nodes", control.ListNodesRequest(), control.ListNodesResponse)
        return list(answer.nodes_info)

    async def _known(self) -> dict[bytes, int]:
        """Ids of the nodes that are let in, by public key in PEM."""
        return {bytes(found.public_key): found.node_id for found in await self._nodes() if found.status != _GONE}

    async def _register(self, pem: bytes) -> int:
        control = _messages()
        request = control.RegisterNodeRequest(public_key=pem)
        answer = await self._call("register-node", request, control.RegisterNodeResponse, allowed=(412,))
        # Else somebody registered it meanwhile, or it was unregistered: Flower takes a key once.
        found = answer.node_id if answer is not None else (await self._known()).get(pem)
        if not found:
            raise InvalidInput("Flower was told before to let this key in no more; the node has to join anew")
        return int(found)

    async def _call(self, name: str, request: Any, answer: Any, allowed: Collection[int] = ()) -> Any:
        """The answer; None where it is one of the `allowed` errors. Raises EngineAway, InvalidInput."""
        content = await asyncio.to_thread(request.SerializeToString)
        with _away():
            response = await self._superlink.client.post(
                self._superlink.url(f"/v1/control/{name}"), content=content, headers={"content-type": _MEDIA_TYPE}
            )
        if response.status_code in allowed:
            return None
        if response.is_server_error:
            raise EngineAway(f"the SuperLink answered {name} with {response.status_code}: {_said(response)}")
        if response.is_error:
            raise InvalidInput(f"Flower refuses {name} ({response.status_code}): {_said(response)}")
        return answer.FromString(response.content)


def _messages() -> Any:
    with _IMPORTING:
        from flwr.proto import control_pb2

        return control_pb2


def _pem(line: str) -> bytes:
    return key_of(line).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _bundle(app: Path, run_config: RunConfig) -> Any:
    """The request that starts an app. Raises InvalidInput, which says what Flower's own answer would not."""
    with _IMPORTING:
        from flwr.cli.build import build_fab_from_disk
        from flwr.common.config import flatten_dict, fuse_dicts, get_fab_config
        from flwr.common.serde import user_config_to_proto
    try:
        content = app.read_bytes() if app.is_file() else build_fab_from_disk(app)
        own = flatten_dict(get_fab_config(content)["tool"]["flwr"]["app"].get("config"))
        fuse_dicts(own, dict(run_config), check_keys=True)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"the Flower app {app} cannot be run: {error}") from None
    request = _messages().StartRunRequest(override_config=user_config_to_proto(dict(run_config)))
    request.fab.hash_str, request.fab.content = hashlib.sha256(content).hexdigest(), content
    return request


def _framed(held: bytes) -> list[bytes]:
    """The messages of a stream that have come whole."""
    found, at = [], 0
    while at + _LENGTH_BYTES <= len(held):
        length = int.from_bytes(held[at : at + _LENGTH_BYTES], "big")
        begin, at = at + _LENGTH_BYTES, at + _LENGTH_BYTES + length
        if at <= len(held):
            found.append(held[begin:at])
    return found


def _said(response: httpx.Response) -> str:
    """What Flower gives as the reason."""
    try:
        body = json.loads(response.content)
        return " ".join(str(body[name]) for name in ("detail", "extra") if name in body) or "no reason given"
    except (ValueError, TypeError):
        return response.text[:200]


@contextlib.contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise EngineAway(f"the SuperLink does not answer: {error or type(error).__name__}") from None
