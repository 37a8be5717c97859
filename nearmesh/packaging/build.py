"""A package's folder as an OCI artifact: everything checked first, equal files to an equal digest."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nearmesh import chunks, oci
from nearmesh.errors import PackageError
from nearmesh.lineage import LINEAGE_FILE
from nearmesh.package import MANIFEST_FILE, Package, load, read_labels
from nearmesh.packaging import parameters
from nearmesh.packaging.graph import check_graph
from nearmesh.packaging.layout import published_files
from nearmesh.packaging.sets import set_file
from nearmesh.packaging.sources import OnProgress, default_cache, quiet
from nearmesh.packaging.warmup import check_warmup
from nearmesh.report import REPORT_FILE

# The chunk index among the files that other tools unpack.
CHUNKS_FILE = "nearmesh.chunks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model version, ready to be published."""

    package: Package
    manifest: oci.Manifest
    # What the registry stores, and the digest of just these bytes: the version's name.
    manifest_bytes: bytes
    digest: str
    # Every blob of the manifest by its digest: a file, or the bytes themselves.
    blobs: Mapping[str, Path | bytes]


def build(
    folder: Path,
    cache: Path | None = None,
    *,
    draft: bool = False,
    more: Mapping[str, Path] | None = None,
    without: Collection[str] = (),
    workshop: bool = True,
    on_progress: OnProgress = quiet,
) -> Artifact:
    """Fetches what the package in `folder` lacks, checks it, and makes its artifact.

    Weights that are downloaded are kept in `cache`, by default `default_cache()`. With `draft`, what the author has yet
    to fill in may be missing. `more` are files by their published names: variants that were made, and what was measured
    of all (`release` finds them). Variants named by `without` stay out. What rounds make new versions of the package
    with is in the artifact, unless `workshop` is False. Raises PackageError, DigestMismatch, Unreachable.
    """
    package = load(folder)
    if package.unfilled and not draft:
        raise PackageError(f"{folder / MANIFEST_FILE}: fill in {_and(package.unfilled)} before it is published")
    left_out = _left_out(package, without)
    files = _files(package, folder, cache or default_cache(), on_progress) | dict(more or {})
    files = {name: path for name, path in files.items() if name not in left_out}
    _check(package, files)
    # In the order of their names, so that moving a line in model.toml moves no layer.
    weights = {name for variant in (*package.made_variants, *package.variants) for name in variant.sources}
    layers = {name: _layer(name, files[name], weights) for name in sorted(files)}
    blobs: dict[str, Path | bytes] = {layer.digest: files[name] for name, layer in layers.items()}
    index = _chunks(layers, files, blobs)
    kept = _workshop(package, folder, cache or default_cache()) if workshop else {}
    more_layers = [replace(_layer(name, kept[name], ()), workshop=True) for name in sorted(kept)]
    blobs |= {layer.digest: kept[layer.title] for layer in more_layers}
    config = _config(package, [layer.digest for layer in (*layers.values(), *more_layers, index) if layer])
    manifest = oci.Manifest(
        package.name,
        package.version,
        _kept(oci.CONFIG_TYPE, config, blobs),
        tuple(layers.values()),
        index,
        tuple(more_layers),
    )
    manifest_bytes = manifest.to_bytes()
    return Artifact(
        package=package,
        manifest=manifest,
        manifest_bytes=manifest_bytes,
        digest=oci.digest_bytes(manifest_bytes),
        blobs=blobs,
    )


def _and(keys: Iterable[str]) -> str:
    return " and ".join(f"`{key}`" for key in keys)


def _files(package: Package, folder: Path, cache: Path, on_progress: OnProgress) -> dict[str, Path]:
    """Each published file by its name in the artifact."""
    given = [name for variant in package.variants for name in variant.sources]
    given += [asset.name for asset in package.assets]
    _check_names([MANIFEST_FILE, CHUNKS_FILE, REPORT_FILE, LINEAGE_FILE, *package.files, *package.kept_files, *given])
    return published_files(package, folder, cache, on_progress=on_progress)


def _workshop(package: Package, folder: Path, cache: Path) -> dict[str, Path]:
    """What rounds make new versions with, by its name: the recipe, code and sets. Raises PackageError."""
    found = {}
    for name in package.kept_files:
        found[name] = folder / name if name.endswith(".py") else set_file(name, folder, cache)
        if not found[name].is_file():
            raise PackageError(f"{found[name]}: no such file; model.toml names it")
        if name.endswith(".py"):
            _check_code(found[name])
    return found


def _check_names(names: list[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise PackageError(f"{times} of the package's files would be named {name!r}; each needs its own name")
        if not name or not oci.is_file_name(name):
            raise PackageError(f"{name!r}: the package's files lie beside model.toml, without folders")


def _left_out(package: Package, without: Collection[str]) -> set[str]:
    """Files of the variants of these names. Raises PackageError where a graph would be left with none."""
    variants = (*package.made_variants, *package.variants)
    for step in {variant.step for variant in variants}:
        if all(variant.name in without for variant in variants if variant.step == step):
            raise PackageError(
                f"without {', '.join(without)} there is no variant left{f' of step {step!r}' * bool(step)}"
            )
    return {name for variant in variants if variant.name in without for name in variant.sources}


def _check(package: Package, files: Mapping[str, Path]) -> None:
    for variant in (*package.made_variants, *package.variants):
        if variant.file in files:
            check_graph(package, variant, files[variant.file])
    if package.trained and package.training:
        if package.trained.file not in files:
            raise PackageError(
                f"rounds train {package.trained.name!r}: publish it too, or a package without [training]"
            )
        _check_parameters(files[package.trained.file], package.training.parameters)
    for step in package.steps:
        if step.file:
            _check_code(files[step.file])
    for warmup in package.warmup:
        check_warmup(package, files[warmup.file])
    if package.labels:
        _check_labels(package, files[package.labels])


def _check_parameters(graph: Path, names: Collection[str]) -> None:
    """Whether rounds could change them, if `onnx` is installed. Raises PackageError."""
    if importlib.util.find_spec("onnx") is not None:
        parameters.check(graph, names)


def _check_code(path: Path) -> None:
    """Only that it is Python: what it does shows on a node, and to run it here would be a surprise."""
    try:
        compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise PackageError(f"{path} is not Python: {error}") from None


def _check_labels(package: Package, path: Path) -> None:
    count = len(read_labels(path))
    # A pipeline's may be those of a graph within.
    if package.steps:
        return
    sizes = {spec.shape[-1] for spec in package.outputs if spec.shape}
    if count not in sizes and -1 not in sizes:
        raise PackageError(f"{path}: {count} labels, but the outputs' last axes are {sorted(sizes)} long")


def _layer(name: str, path: Path, weights: Collection[str]) -> oci.Descriptor:
    media_type = oci.WEIGHT_TYPE if name in weights else oci.file_type(name)
    return oci.Descriptor(media_type, oci.digest_file(path), path.stat().st_size, name)


def _chunks(
    layers: Mapping[str, oci.Descriptor], files: Mapping[str, Path], blobs: dict[str, Path | bytes]
) -> oci.Descriptor | None:
    """The index of the large files' chunks, put among the blobs; None where no file is large."""
    found = chunks.index((layer.digest, files[name]) for name, layer in layers.items())
    return _kept(chunks.CHUNKS_TYPE, found.to_bytes(), blobs, CHUNKS_FILE) if found.files else None


def _kept(media_type: str, data: bytes, blobs: dict[str, Path | bytes], title: str = "") -> oci.Descriptor:
    """Puts `data` among the blobs."""
    blob = oci.Descriptor(media_type, oci.digest_bytes(data), len(data), title)
    blobs[blob.digest] = data
    return blob


def _config(package: Package, digests: Sequence[str]) -> bytes:
    """The version as tools see it that know models, by the ModelPack specification; agents read model.toml."""
    descriptor = {
        "name": package.name,
        "version": package.version,
        "description": package.description,
        "licenses": [package.licence] if package.licence else [],
        "authors": [package.credit] if package.credit else [],
    }
    body = {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {"format": "onnx"},
        # Layers are not packed, so that they are their own content.
        "modelfs": {"type": "layers", "diffIds": list(digests)},
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
