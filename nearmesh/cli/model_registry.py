"""`nearmesh model push`, `pull`, `export`, `verify` and `key`: versions in other registries, and who signed them."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import note, print_json, size
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.cli.transfer_bar import transfer_bar
from nearmesh.errors import ConfigError, DigestMismatch, Incomplete, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nearmesh.client.admin import AdminClient
    from nearmesh.registries.client import RegistryClient
    from nearmesh.v1 import catalog_pb2

SCHEME = "oci://"

_key = click.option(
    "--key",
    "key_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key that has to have signed it, PEM.",
)


@click.command()
@click.argument("target", metavar="NAME@VERSION")
@click.argument("place", metavar="oci://HOST/NAME[:TAG]")
@click.option(
    "--nodes/--no-nodes", "nodes", default=None, help="Whether nodes pull the version from there from now on."
)
@json_option
@pass_session
def push(session: Session, target: str, place: str, nodes: bool | None, as_json: bool) -> None:
    """Copy a version to another registry.

    As it is, so that its digest stays the same, and with its signature. Without a TAG it gets its version as one.
    Logins come from where `docker login` keeps them; files that are there already are not sent again.

    With --nodes, nodes pull this version from there, which has to let anybody read it; where they cannot, they pull it
    from the mesh. --no-nodes takes that back.
    """
    from nearmesh.registries.reference import Reference, tag_of

    version, where = session.ask(lambda admin: _found(admin, target))
    to = Reference.parse(place)
    if to.digest:
        raise click.UsageError(f"{place!r} names a digest; a version is pushed to a tag")
    tag = to.tag or tag_of(version.version)
    with _transfer(), _own(session, where, version.model) as source, _other(to) as registry:
        from nearmesh.registries.transfer import push as copy

        with transfer_bar(f"pushing to {to.host}") as on_progress:
            signed = copy(source, version.digest, registry, tag, on_progress)
    if nodes is not None:
        registry_url = f"{to.url}/{to.name}" if nodes else ""
        session.ask(lambda admin: admin.pull_from(version.model, version.version, registry_url))
    if as_json:
        print_json({"registry": to.host, "name": to.name, "tag": tag, "digest": version.digest, "signed": signed})
    else:
        sent = f"{size(on_progress.done_bytes)} sent" if on_progress.done_bytes else "it was there already"
        place = f"{SCHEME}{to.host}/{to.name}:{tag}"
        click.echo(f"{version.model}@{version.version} is at {place}: {sent}, {version.digest}")


@click.command()
@click.argument("place", metavar="oci://HOST/NAME[:TAG|@DIGEST]")
@_key
@json_option
@pass_session
def pull(session: Session, place: str, key_path: Path | None, as_json: bool) -> None:
    """Publish a version from another registry here.

    Everything is proven before it is published: with --key the signature, then the manifest, and each file's digest.
    From then on the version has this mesh's signature. What the mesh has of it already, in other versions, is not
    fetched. Logins come from where `docker login` keeps them.
    """
    from nearmesh.cli import records
    from nearmesh.registries.reference import Reference

    reference = Reference.parse(place)
    session.place  # noqa: B018 - a mesh that is not there is told before minutes of fetching
    with _transfer(), _other(reference) as source:
        from nearmesh.oci import digest_bytes
        from nearmesh.registries.transfer import check_signature

        digest = digest_bytes(source.manifest(reference.wanted))
        if key_path:
            check_signature(source, digest, [_pem(key_path)])
        else:
            note("No --key was given, so that nobody looked who signed it.")
        version, fetched = _pulled(session, source, digest)
    if as_json:
        print_json(records.version(version) | {"fetched_bytes": fetched})
    else:
        said = f"{size(version.size_bytes)}, of which {size(fetched)} were fetched; {version.digest}"
        click.echo(f"{version.model}@{version.version} is published: {said}")


def _pulled(session: Session, source: RegistryClient, digest: str) -> tuple[catalog_pb2.ModelVersion, int]:
    """The version as it is published here, and how many bytes came from the registry."""
    from nearmesh.registries.fetching import Lacks, pull

    def lacks(digests: Sequence[str], chunks: bool) -> frozenset[str]:
        return session.ask(lambda admin: admin.lacks(digests, chunks=chunks))

    def take(lacks: Lacks | None) -> tuple[catalog_pb2.ModelVersion, int]:
        with tempfile.TemporaryDirectory(dir=_cache(), prefix=".pull-") as folder:
            with transfer_bar(f"pulling from {source}") as fetching:
                found = pull(source, digest, Path(folder), fetching, lacks)
            with transfer_bar(f"uploading {found.manifest.model}@{found.manifest.version}") as uploading:
                return session.ask(lambda admin: admin.publish(found, uploading)), fetching.done_bytes

    try:
        return take(lacks)
    except (DigestMismatch, Incomplete):
        # What the mesh had has gone or is damaged, and there is a hole in its place; or it is wrong there as well.
        return take(None)


@click.command()
@click.argument("targets", metavar="NAME[@VERSION]...", nargs=-1, required=True)
@click.option(
    "--into",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The layout's folder; made if it is not there, added to if it is.",
)
@json_option
@pass_session
def export(session: Session, targets: tuple[str, ...], folder: Path, as_json: bool) -> None:
    """Copy versions into a folder, with their signatures.

    The folder is an OCI image layout: what nodes take from `[store] baked` without a pull, and what an image with
    weights is made of (deploy/images). Without a VERSION the newest one; files that are there already stay.
    """
    from nearmesh.registries.reference import tag_of

    records = []
    for target in targets:
        version, where = session.ask(lambda admin, target=target: _found(admin, target))  # type: ignore[misc]
        with _transfer(), _own(session, where, version.model) as source:
            from nearmesh.registries import transfer
            from nearmesh.registries.folder import Folder

            with transfer_bar(f"exporting {version.model}@{version.version}") as on_progress:
                into = Folder(folder, version.model)
                signed = transfer.push(source, version.digest, into, tag_of(version.version), on_progress)
        records.append({"model": version.model, "version": version.version, "digest": version.digest, "signed": signed})
    if as_json:
        print_json({"folder": str(folder), "versions": records})
    else:
        for record in records:
            click.echo(f"{record['model']}@{record['version']} is in {folder}: {record['digest']}")


@click.command()
@click.argument("target", metavar="NAME[@VERSION]|oci://HOST/NAME[:TAG|@DIGEST]")
@_key
@click.option("--files/--no-files", default=True, show_default=True, help="Read every file, not the manifest alone.")
@json_option
@pass_session
def verify(session: Session, target: str, key_path: Path | None, files: bool, as_json: bool) -> None:
    """Prove that a version is what was published.

    Its manifest and files against their digests, and its signature: by this mesh's key, or the one given with --key.
    Without a VERSION the newest one.
    """
    with _transfer():
        from nearmesh.oci import Manifest, digest_bytes
        from nearmesh.registries import transfer

        wanted, keys, opened = _what(session, target, key_path)
        with opened as source:
            data = source.manifest(wanted)
            digest, manifest = digest_bytes(data), Manifest.from_bytes(data)
            transfer.check_signature(source, digest, keys)
            if files:
                with transfer_bar(f"reading {manifest.model}@{manifest.version}") as on_progress:
                    transfer.check_files(source, manifest, on_progress)
    record = {
        "model": manifest.model,
        "version": manifest.version,
        "digest": digest,
        "size_bytes": manifest.size_bytes,
        "files": [file.title for file in manifest.all_files],
        "files_read": files,
    }
    if as_json:
        print_json(record)
    else:
        read = f"all {len(manifest.all_files)} files are right" if files else "its files were not read"
        click.echo(f"{manifest.model}@{manifest.version} is signed, and {read}: {size(manifest.size_bytes)}, {digest}")


@click.command()
@pass_session
def key(session: Session) -> None:
    """Print the public key that this mesh signs versions with.

    `cosign verify --key FILE --insecure-ignore-tlog=true HOST/NAME:TAG` checks a version by it that was pushed to
    another registry.
    """
    click.echo("".join(session.ask(lambda admin: admin.registry()).model_keys_pem), nl=False)


def _what(session: Session, target: str, key_path: Path | None) -> tuple[str, list[str], Any]:
    """What to ask for, the keys that count, and the registry to open."""
    from nearmesh.registries.reference import Reference

    if target.startswith(SCHEME):
        reference = Reference.parse(target)
        keys = [_pem(key_path)] if key_path else list(session.ask(lambda admin: admin.registry()).model_keys_pem)
        return reference.wanted, keys, _other(reference)
    version, where = session.ask(lambda admin: _found(admin, target))
    keys = [_pem(key_path)] if key_path else list(where.model_keys_pem)
    return version.digest, keys, _own(session, where, version.model)


async def _found(admin: AdminClient, target: str) -> tuple[catalog_pb2.ModelVersion, catalog_pb2.RegistryResponse]:
    """The version of that name, and where it is pulled from. Raises NotFound."""
    name, _, wanted = target.partition("@")
    versions = (await admin.model(name)).versions
    for version in versions:
        if version.version == (wanted or versions[0].version):
            return version, await admin.registry()
    raise NotFound(f"no version {wanted!r} of {name!r}; published are {', '.join(v.version for v in versions)}")


def _own(session: Session, where: catalog_pb2.RegistryResponse, model: str) -> RegistryClient:
    import ssl

    from nearmesh.registries.client import RegistryClient

    place = session.place
    context = ssl.create_default_context(cadata=place.ca_pem.decode())
    return RegistryClient(where.url, model, token=place.token, verify=context)


def _other(reference: Any) -> RegistryClient:
    from nearmesh.registries import credentials
    from nearmesh.registries.client import RegistryClient

    return RegistryClient(reference.url, reference.name, login=credentials.find(reference.host))


@contextmanager
def _transfer() -> Iterator[None]:
    """Raises ConfigError with the remedy where the client of registries is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise ConfigError("speaking to registries needs httpx: pip install 'nearmesh[registries]'") from None


def _cache() -> Path:
    """Several gigabytes may pass through it; /tmp is often memory."""
    from nearmesh.packaging.sources import default_cache

    folder = default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _pem(path: Path) -> str:
    """Raises ConfigError."""
    text = path.read_text("utf-8", "replace")
    if "BEGIN PUBLIC KEY" not in text:
        raise ConfigError(f"{path}: not a public key in PEM; `nearmesh model key` prints that of a mesh")
    return text
