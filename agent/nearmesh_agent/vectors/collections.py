"""What a node knows of each of its collections beside their rows: one small file each, on disk before it counts."""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from nearmesh.document import Document
from nearmesh.errors import NotFound, NotReady, PackageError, StorageFull
from nearmesh.tls import fsync_folder, write_private
from nearmesh_agent.vectors.model import FieldType, Metric, Table

log = logging.getLogger(__name__)

_REMEDY = "bring the file back from a copy, or move it elsewhere to give the collection up, and restart the node"
# Of a table's name; Milvus takes letters, digits and underscores.
_DIGITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The vectors of one embedder's version."""

    number: int = 1
    embedder: str = ""
    # Of the version that made them, "sha256:...".
    digest: str = ""
    dimension: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSpec(Document):
    """One collection."""

    FILE: ClassVar[str] = "collection"

    namespace: str
    name: str
    # Of the collection as it was created; one of the same name that was created elsewhere or later is another one.
    identity: str
    metric: Literal["cosine", "ip", "l2"] = "cosine"
    fields: dict[str, str] = field(default_factory=dict)
    description: str = ""
    replicate_to: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    index_type: str = ""
    language: str = "english"
    created_at_s: float = 0.0
    # Where it was created; when its sites, regions or description were changed last, by hybrid logical clock.
    site: str = ""
    updated: int = 0
    # Of the last change of its sites or regions; 0: as `updated`.
    placed: int = 0
    # The one that serves.
    serving: Generation = field(default_factory=Generation)
    # The one that is being filled, and takes over when it is whole.
    filling: Generation | None = None
    # Those that served before or were given up, whose tables may not be gone yet.
    former: tuple[Generation, ...] = ()
    # The highest that a generation has had: the journal may know a table of one that was given up.
    last_number: int = 1
    # Of one that other sites have too and that is made here anew: what was here before may not be gone yet, and the
    # journal may have writes to it. Letters and digits.
    incarnation: str = ""
    # It is gone for everybody; its files may not be yet.
    dropped: bool = False

    @property
    def kinds(self) -> dict[str, FieldType]:
        return {name: FieldType(kind) for name, kind in self.fields.items()}

    @property
    def table(self) -> Table:
        """Of the generation that serves."""
        return self.table_of(self.serving)

    @property
    def tables(self) -> list[Table]:
        return [self.table_of(generation) for generation in (self.serving, self.filling) if generation]

    @property
    def all_tables(self) -> list[Table]:
        """With those of former generations."""
        return [*self.tables, *map(self.table_of, self.former)]

    def table_of(self, generation: Generation) -> Table:
        key = "\0".join((self.namespace, self.name, self.identity)).encode()
        again = f"_{self.incarnation}" if self.incarnation else ""
        return Table(
            name=f"v_{hashlib.sha256(key).hexdigest()[:_DIGITS]}{again}_{generation.number}",
            dimension=generation.dimension,
            metric=Metric(self.metric),
            fields=self.kinds,
            index_type=self.index_type,
            language=self.language,
        )


def new_spec(**values: object) -> CollectionSpec:
    """Of a collection that is made here and now."""
    return replace(CollectionSpec(namespace="", name="", identity=uuid.uuid4().hex, created_at_s=time.time()), **values)  # type: ignore[arg-type]


def cleared(spec: CollectionSpec, gone: Collection[Generation]) -> CollectionSpec:
    """Nothing is left of these former generations."""
    numbers = {each.number for each in gone}
    return replace(spec, former=tuple(each for each in spec.former if each.number not in numbers))


class Specs:
    """All collections of a node, by namespace and name. Raises StorageFull where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.parent)
        self._found: dict[tuple[str, str], CollectionSpec] = {}
        # Those that were dropped, whose files have yet to go.
        self.dropped: list[CollectionSpec] = []
        # Those that cannot be read: what the journal has of them is kept, should they be brought back.
        self.damaged: list[Path] = []
        for path in sorted(folder.glob("*.json")):
            spec = _read(path)
            if spec is None:
                self.damaged.append(path)
            elif spec.dropped:
                self.dropped.append(spec)
            else:
                self._found[spec.namespace, spec.name] = spec

    def __iter__(self) -> Iterator[CollectionSpec]:
        return iter(list(self._found.values()))

    def get(self, namespace: str, name: str) -> CollectionSpec:
        """Raises NotFound."""
        found = self._found.get((namespace, name))
        if found is None:
            raise NotFound(f"no collection {name[:64]!r} in namespace {namespace!r} on this node")
        return found

    def check_free(self, spec: CollectionSpec) -> None:
        """Raises NotReady for one whose file is there and cannot be read: its rows are not to be begun anew."""
        name = self._path(replace(spec, incarnation="")).stem
        # Of whichever incarnation.
        if path := next((path for path in self.damaged if f"{path.stem}_".startswith(f"{name}_")), None):
            raise NotReady(f"collection {spec.name!r} is here, and its file {path} cannot be read; {_REMEDY}")

    def put(self, spec: CollectionSpec) -> None:
        """On disk when it returns; takes the place of the one of that identity."""
        self._write(spec)
        self._found[spec.namespace, spec.name] = spec

    def drop(self, spec: CollectionSpec) -> None:
        """It is gone, over a restart too; `forget` follows when its files are."""
        gone = replace(spec, dropped=True)
        self._write(gone)
        del self._found[spec.namespace, spec.name]
        self.dropped.append(gone)

    def forget(self, gone: CollectionSpec) -> None:
        """Nothing of it is left."""
        self._path(gone).unlink(missing_ok=True)
        fsync_folder(self._folder)
        self.dropped.remove(gone)

    def _write(self, spec: CollectionSpec) -> None:
        try:
            write_private(self._path(spec), spec.to_bytes())
        except OSError as error:
            raise StorageFull(f"collection {spec.name!r} cannot be written down: {error}") from None

    def _path(self, spec: CollectionSpec) -> Path:
        # Not by its name, which may differ by case alone from another's.
        return self._folder / f"{spec.table_of(Generation(number=0)).name.removesuffix('_0')}.json"


def _read(path: Path) -> CollectionSpec | None:
    """None for one that is damaged: the others are served all the same."""
    try:
        return CollectionSpec.from_bytes(path.read_bytes())
    except (OSError, PackageError) as error:
        log.error(
            "%s cannot be read, so its collection is not served and the journal grows: %s; %s", path, error, _REMEDY
        )
        return None
