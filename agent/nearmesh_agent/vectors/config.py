"""`[vectors]` of node.toml: whether this node keeps vectors, in which Milvus, and how much of them for whom."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from nearmesh.config import Problem, refuse
from nearmesh.errors import InvalidInput, QuotaExceeded
from nearmesh.ids import check_label

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one namespace may have; 0 is no limit."""

    max_vectors: int = 0
    # Of vectors, texts and fields, as they lie in memory.
    max_bytes: int = 0
    # A node has 1,000 in all.
    max_collections: int = 0
    # Of one node, over all callers; a second's worth may come at once.
    requests_per_second: float = 0.0

    def __post_init__(self) -> None:
        refuse(_negative(self))

    def check(self, namespace: str, has: tuple[int, int], more: tuple[int, int]) -> None:
        """Whether so many more rows and bytes fit. Raises QuotaExceeded."""
        (has_rows, has_bytes), (rows, size) = has, more
        if self.max_vectors and has_rows + rows > self.max_vectors:
            raise QuotaExceeded(
                f"namespace {namespace!r} has {has_rows} vectors, of {self.max_vectors} at most: no room for {rows}"
            )
        if self.max_bytes and has_bytes + size > self.max_bytes:
            raise QuotaExceeded(
                f"namespace {namespace!r} takes {has_bytes} bytes, of {self.max_bytes} at most: no room for {size}"
            )

    def check_collections(self, namespace: str, has: int) -> None:
        """Whether one more fits. Raises QuotaExceeded."""
        if self.max_collections and has >= self.max_collections:
            raise QuotaExceeded(
                f"namespace {namespace!r} has {has} collections, of {self.max_collections} at most: no room for another"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsConfig:
    """Whether and how this node keeps vectors."""

    # Needs the extra: pip install 'nearmesh-agent[vectors]'.
    enabled: bool = False
    # "http://host:port" of a Milvus server. Empty: Milvus Lite, embedded, below the node's `data`; `nearmesh vectors
    # migrate` moves from one to the other.
    uri: str = ""
    # Environment variable with the server's token or "user:password".
    token_variable: str = ""
    # Who answers searches. "memory": an index of our own, a few milliseconds whatever the filter; about 1.2 times the
    # vectors' bytes in memory. "engine": Milvus, for sites whose vectors do not fit.
    index: Literal["memory", "engine"] = "memory"
    # Of each namespace that has no table of its own below.
    max_vectors: int = 0
    max_bytes: int = 0
    max_collections: int = 0
    requests_per_second: float = 0.0
    # By name, what differs: [vectors.namespaces.NAME]. A table takes the place of all four.
    namespaces: dict[str, Quota] = field(default_factory=dict)
    # Namespaces that are served here; none: all.
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        uri = not self.uri or self.uri.startswith(("http://", "https://"))
        variable = not self.token_variable or _VARIABLE.fullmatch(self.token_variable)
        checks = [
            ("uri", uri, f"{self.uri!r} does not begin with http:// or https://; leave it out for Milvus Lite"),
            ("uri", "@" not in self.uri, "holds no user and password: `token_variable` names what does"),
            ("token_variable", variable, f"{self.token_variable!r} is no name of an environment variable"),
        ]
        found = [Problem((key,), f"{key} {said}") for key, right, said in checks if not right]
        refuse([*found, *_negative(self), *_wrong_names(self)])

    def quota(self, namespace: str) -> Quota:
        """What a namespace may have."""
        return self.namespaces.get(namespace) or Quota(
            max_vectors=self.max_vectors,
            max_bytes=self.max_bytes,
            max_collections=self.max_collections,
            requests_per_second=self.requests_per_second,
        )

    def serves(self, namespace: str) -> bool:
        return not self.allow or namespace in self.allow


def _negative(limits: Quota | VectorsConfig) -> list[Problem]:
    names = ("max_vectors", "max_bytes", "max_collections", "requests_per_second")
    found = [(name, getattr(limits, name)) for name in names]
    return [Problem((name,), f"{name} must be 0 (no limit) or more, got {value}") for name, value in found if value < 0]


def _wrong_names(config: VectorsConfig) -> list[Problem]:
    found = []
    for key, names in (("namespaces", tuple(config.namespaces)), ("allow", config.allow)):
        for name in names:
            try:
                check_label("namespace", name)
            except InvalidInput as error:
                found.append(Problem((key,), f"{key}: {error.message}"))
    return found
