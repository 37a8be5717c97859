from nearmesh.v1 import node_pb2 as _node_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublishRequest(_message.Message):
    __slots__ = ("manifest_json", "blob")
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    manifest_json: bytes
    blob: BlobPart
    def __init__(self, manifest_json: _Optional[bytes] = ..., blob: _Optional[_Union[BlobPart, _Mapping]] = ...) -> None: ...

class BlobPart(_message.Message):
    __slots__ = ("digest", "data", "chunk")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    digest: str
    data: bytes
    chunk: str
    def __init__(self, digest: _Optional[str] = ..., data: _Optional[bytes] = ..., chunk: _Optional[str] = ...) -> None: ...

class LacksRequest(_message.Message):
    __slots__ = ("blobs", "chunks")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    blobs: _containers.RepeatedScalarFieldContainer[str]
    chunks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blobs: _Optional[_Iterable[str]] = ..., chunks: _Optional[_Iterable[str]] = ...) -> None: ...

class LacksResponse(_message.Message):
    __slots__ = ("blobs", "chunks")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    blobs: _containers.RepeatedScalarFieldContainer[str]
    chunks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blobs: _Optional[_Iterable[str]] = ..., chunks: _Optional[_Iterable[str]] = ...) -> None: ...

class RegistryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegistryResponse(_message.Message):
    __slots__ = ("url", "model_keys_pem")
    URL_FIELD_NUMBER: _ClassVar[int]
    MODEL_KEYS_PEM_FIELD_NUMBER: _ClassVar[int]
    url: str
    model_keys_pem: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, url: _Optional[str] = ..., model_keys_pem: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("model", "version", "digest", "size_bytes", "created_at_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    size_bytes: int
    created_at_s: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., created_at_s: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "versions", "deployments", "replicas", "objective", "deadline_ms", "regions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    objective: str
    deadline_ms: float
    regions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., objective: _Optional[str] = ..., deadline_ms: _Optional[float] = ..., regions: _Optional[_Iterable[str]] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("node", "version", "status", "live")
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    node: str
    version: str
    status: _node_pb2.ReplicaStatus
    live: bool
    def __init__(self, node: _Optional[str] = ..., version: _Optional[str] = ..., status: _Optional[_Union[_node_pb2.ReplicaStatus, _Mapping]] = ..., live: _Optional[bool] = ...) -> None: ...

class DeployRequest(_message.Message):
    __slots__ = ("model", "version", "sites")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("model", "version", "digest", "sites", "created_at_s", "actor")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    created_at_s: float
    actor: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., created_at_s: _Optional[float] = ..., actor: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...
