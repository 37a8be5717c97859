"""The makers of versions: published parents out of the control plane's own layout, and new versions into its catalog.

What is done to make one lies in a folder for each run, so that whoever makes it again finds what the first one did and
comes to the same bytes. The work itself is another process's (`nearmesh.packaging.afresh`), which ends with this one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from nearmesh import package as packages
from nearmesh import rpc
from nearmesh.chunks import ChunkIndex
from nearmesh.client.upload import requests, steps
from nearmesh.errors import AlreadyExists, InvalidInput, NotFound, PackageError
from nearmesh.ids import check_version
from nearmesh.lineage import LINEAGE_FILE, Lineage
from nearmesh.oci import Manifest
from nearmesh.oci_layout import Layout
from nearmesh.package import MANIFEST_FILE, Package
from nearmesh.packaging import again, parameters
from nearmesh.packaging.afresh import Afresh, Packed, from_json
from nearmesh.packaging.graph import input_names
from nearmesh.packaging.killed import Killed, check_not_killed
from nearmesh.process import leashed
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog, Version
from nearmesh_controlplane.catalog.documents import document_of
from nearmesh_controlplane.catalog.publishing import Publisher
from nearmesh_controlplane.runs.candidates import Built, Limits, Parent
from nearmesh_controlplane.runs.folder import Arrays
from nearmesh_controlplane.runs.run import Check, Run, new_id, version_of

log = logging.getLogger(__name__)

# A version that is not made by then hangs.
_LIMIT_S = 3600.0
# Of making one, where a process that is at it is ended from outside.
_ATTEMPTS = 3
# Folders of runs that came to nothing go after so long.
_FORGOTTEN_S = 24 * 3600.0
# What the other process is told of this one's surroundings: it runs code of packages, which no secret concerns.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class Published:
    """Implements `Candidates`, over one layout and catalog. Belongs to one event loop."""

    def __init__(self, folder: Path, layout: Layout, catalog: Catalog, publisher: Publisher) -> None:
        """`folder` is for what is being made."""
        self._folder = folder
        self._layout = layout
        self._catalog = catalog
        self._publisher = publisher
        # One at a time: each takes the processor.
        self._making = asyncio.Lock()

    # The parent

    async def parent(self, model: str, version: str) -> Parent:
        """Raises NotFound, and PackageError where the version cannot be trained."""
        found = self._catalog.version(model, version)
        return await asyncio.to_thread(self._parent, found)

    def _parent(self, version: Version) -> Parent:
        package, files = self._opened(version.digest)
        training, trained = package.training, package.trained
        name = f"{version.model}@{version.version}"
        if training is None or trained is None:
            raise PackageError(
                f"{name} has no [training] in its model.toml, which says what rounds train and by which recipe: begin "
                "from a version that has, or bring an app of your own (--app)"
            )
        # Before the rounds, not after.
        _check_name(version)
        if lacking := [kept for kept in package.kept_files if kept not in files]:
            raise PackageError(
                f"{name} was published without {', '.join(lacking)}: raise `version` in model.toml and publish it again"
            )
        return Parent(
            model=version.model,
            version=version.version,
            digest=version.digest,
            recipe=files[training.recipe].read_bytes(),
            arrays=parameters.read(files[trained.file], training.parameters),
            metric=training.metric,
            tolerance=training.tolerance,
            inputs=input_names(files[trained.file]),
            settings=training.settings,
            limits=Limits(
                largest_site_loss=training.gate.largest_site_loss,
                smallest_mean_gain=training.gate.smallest_mean_gain,
                largest_change=training.gate.largest_change,
            ),
        )

    async def write_graph(self, parent: Parent, target: Path) -> None:
        """The graph with the parent's parameters, into the file `target`."""
        await asyncio.to_thread(self._write_graph, parent.digest, target)

    def _write_graph(self, digest: str, target: Path) -> None:
        package, files = self._opened(digest)
        assert package.trained, "parents can be trained"
        fresh = target.with_name(f".{target.name}")
        shutil.copyfile(files[package.trained.file], fresh)
        fresh.replace(target)

    def _opened(self, digest: str) -> tuple[Package, dict[str, Path]]:
        """The version's package, and its files by name. Raises NotFound, PackageError."""
        manifest = self._manifest(digest)
        files = {file.title: self._layout.path(file.digest) for file in manifest.all_files}
        if MANIFEST_FILE not in files:
            raise PackageError(f"{manifest.model}@{manifest.version} has no {MANIFEST_FILE}")
        return packages.parse(files[MANIFEST_FILE].read_text("utf-8"), MANIFEST_FILE), files

    def _manifest(self, digest: str) -> Manifest:
        return Manifest.from_bytes(self._layout.path(digest).read_bytes())

    # A new version

    async def build(self, run: Run, arrays: Arrays, lineage: Lineage) -> Built:
        """The run's parent with other parameters, as `run.new_version`: packed, its variants made and judged.

        A variant that does not pass its own gate is a failed check. Raises NotFound, PackageError.
        """
        known = await self._known(run, lineage)
        if known:
            detail = f"{known.model}@{known.version} of this run is published already"
            check = Check(name="variants", passed=True, detail=detail)
            return Built(version=known.version, checks=(check,), artifact=known)
        async with self._making:
            folder = self._folder / run.id
            await asyncio.to_thread(self._lay_out, folder, run, arrays, lineage)
            found = await self._made(folder, run)
        checks = tuple(
            Check(name=f"variant {one.variant}", passed=one.passed, detail=one.detail) for one in found.judged
        )
        return Built(version=run.new_version, checks=checks, artifact=(found.packed, lineage))

    async def _made(self, folder: Path, run: Run) -> Afresh:
        """Again, where somebody ended a process that was at it. Raises PackageError."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await _made(folder)
            except Killed as error:
                log.warning("making %s of %s, attempt %d: %s", run.new_version, run.name, attempt, error.message)
                words = error.message
        raise PackageError(f"{run.new_version} could not be made in {_ATTEMPTS} attempts: {words}")

    async def _known(self, run: Run, lineage: Lineage) -> Version | None:
        """The version of that name, where it is of this run."""
        try:
            version = self._catalog.version(run.model, run.new_version)
        except NotFound:
            return None
        return version if await asyncio.to_thread(self._is_of, version, lineage) else None

    def _is_of(self, version: Version, lineage: Lineage) -> bool:
        try:
            found = document_of(Lineage, self._layout, self._manifest(version.digest))
        except (NotFound, PackageError):
            return False
        return found is not None and (found.run, found.round, found.parent) == (
            lineage.run,
            lineage.round,
            lineage.parent,
        )

    def _lay_out(self, folder: Path, run: Run, arrays: Arrays, lineage: Lineage) -> None:
        """In a thread: the new version's package. Begun anew each time, but for what was made and measured before."""
        self._tidy()
        manifest = self._manifest(run.parent_digest)
        blobs = {file.digest: self._layout.path(file.digest) for file in manifest.all_files}
        place = folder / "package"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        again.put(again.unpack(manifest, blobs, place, run.new_version), place, arrays)
        (folder / LINEAGE_FILE).write_bytes(lineage.to_bytes())

    def _tidy(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for folder in self._folder.iterdir():
            if time.time() - folder.stat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(folder, ignore_errors=True)

    async def publish(self, built: Built, actor: str) -> Version:
        """Signed and in the catalog when this returns. Published already: what was published then.

        Raises AlreadyExists where the name is taken by something else.
        """
        if isinstance(built.artifact, Version):
            return built.artifact
        packed, lineage = built.artifact
        if packed is None:
            raise PackageError(f"{built.version} is not published: {_failed(built)}")
        try:
            version = await asyncio.create_task(self._sent(packed, actor))
        except AlreadyExists:
            version = self._catalog.version(packed.manifest.model, built.version)
            if not await asyncio.to_thread(self._is_of, version, lineage):
                raise
        await asyncio.to_thread(shutil.rmtree, self._folder / lineage.run, ignore_errors=True)
        return version

    async def _sent(self, packed: Packed, actor: str) -> Version:
        """In a task of its own, which acts for whoever promoted the run."""
        role, _, name = actor.partition("/")
        rpc.answering(rpc.Identity(name, role))
        return await self._publisher.publish(self._requests(packed))

    async def _requests(self, packed: Packed) -> AsyncIterator[pb.PublishRequest]:
        """As an upload has all of it; what is here already is not written again."""
        parts = requests(packed, steps(packed.manifest, ChunkIndex(), None), lambda sent, total: None)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield part


def _check_name(version: Version) -> None:
    """Whether a version of a run can be called after it. Raises PackageError."""
    try:
        check_version(version_of(version.version, new_id()))
    except InvalidInput as error:
        raise PackageError(
            f"{version.model}@{version.version} has too long a version: what a run makes is called after it ({error})"
        ) from None


def _failed(built: Built) -> str:
    return "; ".join(f"{check.name}: {check.detail}" for check in built.checks if not check.passed)


async def _made(folder: Path) -> Afresh:
    """Has the package in `folder` made and judged. Raises PackageError, Killed."""
    order = {"folder": folder / "package", "cache": folder / "cache", "lineage": folder / LINEAGE_FILE}
    told = json.dumps({name: str(path) for name, path in order.items()})
    process = await asyncio.create_subprocess_exec(
        *leashed([sys.executable, "-m", "nearmesh.packaging.afresh", told]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )
    try:
        async with asyncio.timeout(_LIMIT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise PackageError(f"the version was not made within {_LIMIT_S:.0f} s; look at {folder}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    check_not_killed("the process that makes versions", process.returncode)
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines()
        raise PackageError(f"the version could not be made: {said[-1] if said else f'code {process.returncode}'}")
    return await asyncio.to_thread(from_json, json.loads(output.splitlines()[-1]))
