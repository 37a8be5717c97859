from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]
    METRIC_IP: _ClassVar[Metric]
    METRIC_L2: _ClassVar[Metric]

class FieldType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIELD_TYPE_UNSPECIFIED: _ClassVar[FieldType]
    FIELD_TYPE_STRING: _ClassVar[FieldType]
    FIELD_TYPE_INT: _ClassVar[FieldType]
    FIELD_TYPE_FLOAT: _ClassVar[FieldType]
    FIELD_TYPE_BOOL: _ClassVar[FieldType]
METRIC_UNSPECIFIED: Metric
METRIC_COSINE: Metric
METRIC_IP: Metric
METRIC_L2: Metric
FIELD_TYPE_UNSPECIFIED: FieldType
FIELD_TYPE_STRING: FieldType
FIELD_TYPE_INT: FieldType
FIELD_TYPE_FLOAT: FieldType
FIELD_TYPE_BOOL: FieldType

class Field(_message.Message):
    __slots__ = ("name", "type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: FieldType
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[FieldType, str]] = ...) -> None: ...

class CollectionRef(_message.Message):
    __slots__ = ("namespace", "name")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class CreateCollectionRequest(_message.Message):
    __slots__ = ("collection", "dimension", "metric", "embedder", "fields", "description", "replicate_to", "regions", "index_type", "embedder_digest", "language")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REPLICATE_TO_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    INDEX_TYPE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    dimension: int
    metric: Metric
    embedder: str
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    description: str
    replicate_to: _containers.RepeatedScalarFieldContainer[str]
    regions: _containers.RepeatedScalarFieldContainer[str]
    index_type: str
    embedder_digest: str
    language: str
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., dimension: _Optional[int] = ..., metric: _Optional[_Union[Metric, str]] = ..., embedder: _Optional[str] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., description: _Optional[str] = ..., replicate_to: _Optional[_Iterable[str]] = ..., regions: _Optional[_Iterable[str]] = ..., index_type: _Optional[str] = ..., embedder_digest: _Optional[str] = ..., language: _Optional[str] = ...) -> None: ...

class UpdateCollectionRequest(_message.Message):
    __slots__ = ("collection", "description", "replicate_to", "set_replicate_to", "regions", "set_regions")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REPLICATE_TO_FIELD_NUMBER: _ClassVar[int]
    SET_REPLICATE_TO_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    SET_REGIONS_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    description: str
    replicate_to: _containers.RepeatedScalarFieldContainer[str]
    set_replicate_to: bool
    regions: _containers.RepeatedScalarFieldContainer[str]
    set_regions: bool
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., description: _Optional[str] = ..., replicate_to: _Optional[_Iterable[str]] = ..., set_replicate_to: _Optional[bool] = ..., regions: _Optional[_Iterable[str]] = ..., set_regions: _Optional[bool] = ...) -> None: ...

class Collection(_message.Message):
    __slots__ = ("collection", "dimension", "metric", "embedder", "embedder_digest", "embedder_stale", "fields", "description", "replicate_to", "regions", "index_type", "generation", "next_generation", "rows", "bytes", "fresh_rows", "recall", "created_at_s", "written_at_s", "served_by", "next_embedder", "next_embedder_digest", "next_generation_number", "replicas", "site", "language")
    class Replica(_message.Message):
        __slots__ = ("site", "acknowledged", "lag_rows", "lag_s", "connected", "detail")
        SITE_FIELD_NUMBER: _ClassVar[int]
        ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
        LAG_ROWS_FIELD_NUMBER: _ClassVar[int]
        LAG_S_FIELD_NUMBER: _ClassVar[int]
        CONNECTED_FIELD_NUMBER: _ClassVar[int]
        DETAIL_FIELD_NUMBER: _ClassVar[int]
        site: str
        acknowledged: int
        lag_rows: int
        lag_s: float
        connected: bool
        detail: str
        def __init__(self, site: _Optional[str] = ..., acknowledged: _Optional[int] = ..., lag_rows: _Optional[int] = ..., lag_s: _Optional[float] = ..., connected: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_STALE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REPLICATE_TO_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    INDEX_TYPE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FRESH_ROWS_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_AT_S_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    NEXT_EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    NEXT_EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NEXT_GENERATION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    dimension: int
    metric: Metric
    embedder: str
    embedder_digest: str
    embedder_stale: bool
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    description: str
    replicate_to: _containers.RepeatedScalarFieldContainer[str]
    regions: _containers.RepeatedScalarFieldContainer[str]
    index_type: str
    generation: int
    next_generation: float
    rows: int
    bytes: int
    fresh_rows: int
    recall: float
    created_at_s: float
    written_at_s: float
    served_by: str
    next_embedder: str
    next_embedder_digest: str
    next_generation_number: int
    replicas: _containers.RepeatedCompositeFieldContainer[Collection.Replica]
    site: str
    language: str
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., dimension: _Optional[int] = ..., metric: _Optional[_Union[Metric, str]] = ..., embedder: _Optional[str] = ..., embedder_digest: _Optional[str] = ..., embedder_stale: _Optional[bool] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., description: _Optional[str] = ..., replicate_to: _Optional[_Iterable[str]] = ..., regions: _Optional[_Iterable[str]] = ..., index_type: _Optional[str] = ..., generation: _Optional[int] = ..., next_generation: _Optional[float] = ..., rows: _Optional[int] = ..., bytes: _Optional[int] = ..., fresh_rows: _Optional[int] = ..., recall: _Optional[float] = ..., created_at_s: _Optional[float] = ..., written_at_s: _Optional[float] = ..., served_by: _Optional[str] = ..., next_embedder: _Optional[str] = ..., next_embedder_digest: _Optional[str] = ..., next_generation_number: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[Collection.Replica, _Mapping]]] = ..., site: _Optional[str] = ..., language: _Optional[str] = ...) -> None: ...

class ListCollectionsRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class ListCollectionsResponse(_message.Message):
    __slots__ = ("collections", "namespaces")
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[Collection]
    namespaces: _containers.RepeatedCompositeFieldContainer[NamespaceUse]
    def __init__(self, collections: _Optional[_Iterable[_Union[Collection, _Mapping]]] = ..., namespaces: _Optional[_Iterable[_Union[NamespaceUse, _Mapping]]] = ...) -> None: ...

class NamespaceUse(_message.Message):
    __slots__ = ("namespace", "rows", "max_rows", "bytes", "max_bytes", "requests_per_second", "max_requests_per_second")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    rows: int
    max_rows: int
    bytes: int
    max_bytes: int
    requests_per_second: float
    max_requests_per_second: float
    def __init__(self, namespace: _Optional[str] = ..., rows: _Optional[int] = ..., max_rows: _Optional[int] = ..., bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ..., requests_per_second: _Optional[float] = ..., max_requests_per_second: _Optional[float] = ...) -> None: ...

class DropCollectionResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    def __init__(self, rows: _Optional[int] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("string", "int", "float", "bool")
    STRING_FIELD_NUMBER: _ClassVar[int]
    INT_FIELD_NUMBER: _ClassVar[int]
    FLOAT_FIELD_NUMBER: _ClassVar[int]
    BOOL_FIELD_NUMBER: _ClassVar[int]
    string: str
    int: int
    float: float
    bool: bool
    def __init__(self, string: _Optional[str] = ..., int: _Optional[int] = ..., float: _Optional[float] = ..., bool: _Optional[bool] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("id", "vector", "text", "fields", "origin")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    class Origin(_message.Message):
        __slots__ = ("source", "hash", "part", "parts", "position")
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        HASH_FIELD_NUMBER: _ClassVar[int]
        PART_FIELD_NUMBER: _ClassVar[int]
        PARTS_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        source: str
        hash: str
        part: int
        parts: int
        position: str
        def __init__(self, source: _Optional[str] = ..., hash: _Optional[str] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., position: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    id: str
    vector: bytes
    text: str
    fields: _containers.MessageMap[str, Value]
    origin: Row.Origin
    def __init__(self, id: _Optional[str] = ..., vector: _Optional[bytes] = ..., text: _Optional[str] = ..., fields: _Optional[_Mapping[str, Value]] = ..., origin: _Optional[_Union[Row.Origin, _Mapping]] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("collection", "rows", "embedder_digest")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    embedder_digest: str
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., embedder_digest: _Optional[str] = ...) -> None: ...

class UpsertResponse(_message.Message):
    __slots__ = ("written", "unchanged")
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    written: int
    unchanged: int
    def __init__(self, written: _Optional[int] = ..., unchanged: _Optional[int] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("collection", "ids", "filter", "dry_run")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    ids: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    dry_run: bool
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., ids: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("deleted", "change")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    change: int
    def __init__(self, deleted: _Optional[int] = ..., change: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("collection", "ids", "with_vectors", "in_parts")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    IN_PARTS_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    ids: _containers.RepeatedScalarFieldContainer[str]
    with_vectors: bool
    in_parts: bool
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., ids: _Optional[_Iterable[str]] = ..., with_vectors: _Optional[bool] = ..., in_parts: _Optional[bool] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("rows", "looked_up")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LOOKED_UP_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    looked_up: int
    def __init__(self, rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., looked_up: _Optional[int] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("collection", "filter", "page_size", "page_token", "with_vectors")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    filter: str
    page_size: int
    page_token: str
    with_vectors: bool
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., with_vectors: _Optional[bool] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("rows", "next_page_token")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    next_page_token: str
    def __init__(self, rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("collection", "filter")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    filter: str
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., filter: _Optional[str] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    def __init__(self, rows: _Optional[int] = ...) -> None: ...

class Reach(_message.Message):
    __slots__ = ("scope", "name", "within_ms")
    class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCOPE_NODE: _ClassVar[Reach.Scope]
        SCOPE_SITE: _ClassVar[Reach.Scope]
        SCOPE_REGION: _ClassVar[Reach.Scope]
        SCOPE_MESH: _ClassVar[Reach.Scope]
    SCOPE_NODE: Reach.Scope
    SCOPE_SITE: Reach.Scope
    SCOPE_REGION: Reach.Scope
    SCOPE_MESH: Reach.Scope
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WITHIN_MS_FIELD_NUMBER: _ClassVar[int]
    scope: Reach.Scope
    name: str
    within_ms: int
    def __init__(self, scope: _Optional[_Union[Reach.Scope, str]] = ..., name: _Optional[str] = ..., within_ms: _Optional[int] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("node", "site", "region", "hits", "ms", "missing", "identity")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    region: str
    hits: int
    ms: float
    missing: str
    identity: str
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., hits: _Optional[int] = ..., ms: _Optional[float] = ..., missing: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("collection", "vector", "k", "filter", "with_vectors", "exact", "reach")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    vector: bytes
    k: int
    filter: str
    with_vectors: bool
    exact: bool
    reach: Reach
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., vector: _Optional[bytes] = ..., k: _Optional[int] = ..., filter: _Optional[str] = ..., with_vectors: _Optional[bool] = ..., exact: _Optional[bool] = ..., reach: _Optional[_Union[Reach, _Mapping]] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("row", "score", "node", "site", "dense_score", "dense_rank", "lexical_score", "lexical_rank", "rerank_score")
    ROW_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    DENSE_SCORE_FIELD_NUMBER: _ClassVar[int]
    DENSE_RANK_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_SCORE_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_RANK_FIELD_NUMBER: _ClassVar[int]
    RERANK_SCORE_FIELD_NUMBER: _ClassVar[int]
    row: Row
    score: float
    node: str
    site: str
    dense_score: float
    dense_rank: int
    lexical_score: float
    lexical_rank: int
    rerank_score: float
    def __init__(self, row: _Optional[_Union[Row, _Mapping]] = ..., score: _Optional[float] = ..., node: _Optional[str] = ..., site: _Optional[str] = ..., dense_score: _Optional[float] = ..., dense_rank: _Optional[int] = ..., lexical_score: _Optional[float] = ..., lexical_rank: _Optional[int] = ..., rerank_score: _Optional[float] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "contributions", "took_ms", "way", "identity", "metric")
    HITS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    TOOK_MS_FIELD_NUMBER: _ClassVar[int]
    WAY_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    took_ms: float
    way: str
    identity: str
    metric: Metric
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., took_ms: _Optional[float] = ..., way: _Optional[str] = ..., identity: _Optional[str] = ..., metric: _Optional[_Union[Metric, str]] = ...) -> None: ...

class RetrieveRequest(_message.Message):
    __slots__ = ("collection", "text", "k", "filter", "mode", "dense_weight", "reranker", "rerank_k", "reach", "vector", "embedder_digest")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_DEFAULT: _ClassVar[RetrieveRequest.Mode]
        MODE_HYBRID: _ClassVar[RetrieveRequest.Mode]
        MODE_DENSE: _ClassVar[RetrieveRequest.Mode]
        MODE_LEXICAL: _ClassVar[RetrieveRequest.Mode]
    MODE_DEFAULT: RetrieveRequest.Mode
    MODE_HYBRID: RetrieveRequest.Mode
    MODE_DENSE: RetrieveRequest.Mode
    MODE_LEXICAL: RetrieveRequest.Mode
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DENSE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RERANKER_FIELD_NUMBER: _ClassVar[int]
    RERANK_K_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    text: str
    k: int
    filter: str
    mode: RetrieveRequest.Mode
    dense_weight: float
    reranker: str
    rerank_k: int
    reach: Reach
    vector: bytes
    embedder_digest: str
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., text: _Optional[str] = ..., k: _Optional[int] = ..., filter: _Optional[str] = ..., mode: _Optional[_Union[RetrieveRequest.Mode, str]] = ..., dense_weight: _Optional[float] = ..., reranker: _Optional[str] = ..., rerank_k: _Optional[int] = ..., reach: _Optional[_Union[Reach, _Mapping]] = ..., vector: _Optional[bytes] = ..., embedder_digest: _Optional[str] = ...) -> None: ...

class RetrieveResponse(_message.Message):
    __slots__ = ("hits", "contributions", "timings", "identity", "metric")
    class Timings(_message.Message):
        __slots__ = ("embed_ms", "dense_ms", "lexical_ms", "rerank_ms", "total_ms")
        EMBED_MS_FIELD_NUMBER: _ClassVar[int]
        DENSE_MS_FIELD_NUMBER: _ClassVar[int]
        LEXICAL_MS_FIELD_NUMBER: _ClassVar[int]
        RERANK_MS_FIELD_NUMBER: _ClassVar[int]
        TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
        embed_ms: float
        dense_ms: float
        lexical_ms: float
        rerank_ms: float
        total_ms: float
        def __init__(self, embed_ms: _Optional[float] = ..., dense_ms: _Optional[float] = ..., lexical_ms: _Optional[float] = ..., rerank_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...
    HITS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    timings: RetrieveResponse.Timings
    identity: str
    metric: Metric
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., timings: _Optional[_Union[RetrieveResponse.Timings, _Mapping]] = ..., identity: _Optional[str] = ..., metric: _Optional[_Union[Metric, str]] = ...) -> None: ...

class ListSourcesRequest(_message.Message):
    __slots__ = ("collection", "prefix", "page_size", "page_token")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    prefix: str
    page_size: int
    page_token: str
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSourcesResponse(_message.Message):
    __slots__ = ("sources", "next_page_token")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    next_page_token: str
    def __init__(self, sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("name", "hash", "parts_here", "parts", "stale_parts", "written_at_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PARTS_HERE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    STALE_PARTS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_AT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    parts_here: int
    parts: int
    stale_parts: int
    written_at_s: float
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., parts_here: _Optional[int] = ..., parts: _Optional[int] = ..., stale_parts: _Optional[int] = ..., written_at_s: _Optional[float] = ...) -> None: ...

class ReembedRequest(_message.Message):
    __slots__ = ("collection", "embedder", "cancel")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    embedder: str
    cancel: bool
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., embedder: _Optional[str] = ..., cancel: _Optional[bool] = ...) -> None: ...

class ReembedProgress(_message.Message):
    __slots__ = ("rows_done", "rows_total", "generation", "switched")
    ROWS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SWITCHED_FIELD_NUMBER: _ClassVar[int]
    rows_done: int
    rows_total: int
    generation: int
    switched: bool
    def __init__(self, rows_done: _Optional[int] = ..., rows_total: _Optional[int] = ..., generation: _Optional[int] = ..., switched: _Optional[bool] = ...) -> None: ...

class MigrateRequest(_message.Message):
    __slots__ = ("uri", "token_variable")
    URI_FIELD_NUMBER: _ClassVar[int]
    TOKEN_VARIABLE_FIELD_NUMBER: _ClassVar[int]
    uri: str
    token_variable: str
    def __init__(self, uri: _Optional[str] = ..., token_variable: _Optional[str] = ...) -> None: ...

class MigrateProgress(_message.Message):
    __slots__ = ("collection", "rows_done", "rows_total", "phase")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ROWS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    rows_done: int
    rows_total: int
    phase: str
    def __init__(self, collection: _Optional[str] = ..., rows_done: _Optional[int] = ..., rows_total: _Optional[int] = ..., phase: _Optional[str] = ...) -> None: ...

class ListReceiptsRequest(_message.Message):
    __slots__ = ("collection", "id", "page_size", "before")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    id: str
    page_size: int
    before: int
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., id: _Optional[str] = ..., page_size: _Optional[int] = ..., before: _Optional[int] = ...) -> None: ...

class ListReceiptsResponse(_message.Message):
    __slots__ = ("receipts",)
    class Receipt(_message.Message):
        __slots__ = ("id", "change", "deleted_at_s", "sites")
        ID_FIELD_NUMBER: _ClassVar[int]
        CHANGE_FIELD_NUMBER: _ClassVar[int]
        DELETED_AT_S_FIELD_NUMBER: _ClassVar[int]
        SITES_FIELD_NUMBER: _ClassVar[int]
        id: str
        change: int
        deleted_at_s: float
        sites: _containers.RepeatedCompositeFieldContainer[ListReceiptsResponse.Site]
        def __init__(self, id: _Optional[str] = ..., change: _Optional[int] = ..., deleted_at_s: _Optional[float] = ..., sites: _Optional[_Iterable[_Union[ListReceiptsResponse.Site, _Mapping]]] = ...) -> None: ...
    class Site(_message.Message):
        __slots__ = ("site", "node", "acknowledged_at_s")
        SITE_FIELD_NUMBER: _ClassVar[int]
        NODE_FIELD_NUMBER: _ClassVar[int]
        ACKNOWLEDGED_AT_S_FIELD_NUMBER: _ClassVar[int]
        site: str
        node: str
        acknowledged_at_s: float
        def __init__(self, site: _Optional[str] = ..., node: _Optional[str] = ..., acknowledged_at_s: _Optional[float] = ...) -> None: ...
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[ListReceiptsResponse.Receipt]
    def __init__(self, receipts: _Optional[_Iterable[_Union[ListReceiptsResponse.Receipt, _Mapping]]] = ...) -> None: ...

class OfferedRequest(_message.Message):
    __slots__ = ("site", "refused")
    class Refusal(_message.Message):
        __slots__ = ("identity", "why")
        IDENTITY_FIELD_NUMBER: _ClassVar[int]
        WHY_FIELD_NUMBER: _ClassVar[int]
        identity: str
        why: str
        def __init__(self, identity: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...
    SITE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    site: str
    refused: _containers.RepeatedCompositeFieldContainer[OfferedRequest.Refusal]
    def __init__(self, site: _Optional[str] = ..., refused: _Optional[_Iterable[_Union[OfferedRequest.Refusal, _Mapping]]] = ...) -> None: ...

class OfferedResponse(_message.Message):
    __slots__ = ("offers",)
    class Offer(_message.Message):
        __slots__ = ("collection", "embedder_digest", "identity", "generation", "dropped", "site", "updated", "placed")
        COLLECTION_FIELD_NUMBER: _ClassVar[int]
        EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
        IDENTITY_FIELD_NUMBER: _ClassVar[int]
        GENERATION_FIELD_NUMBER: _ClassVar[int]
        DROPPED_FIELD_NUMBER: _ClassVar[int]
        SITE_FIELD_NUMBER: _ClassVar[int]
        UPDATED_FIELD_NUMBER: _ClassVar[int]
        PLACED_FIELD_NUMBER: _ClassVar[int]
        collection: CreateCollectionRequest
        embedder_digest: str
        identity: str
        generation: int
        dropped: bool
        site: str
        updated: int
        placed: int
        def __init__(self, collection: _Optional[_Union[CreateCollectionRequest, _Mapping]] = ..., embedder_digest: _Optional[str] = ..., identity: _Optional[str] = ..., generation: _Optional[int] = ..., dropped: _Optional[bool] = ..., site: _Optional[str] = ..., updated: _Optional[int] = ..., placed: _Optional[int] = ...) -> None: ...
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    offers: _containers.RepeatedCompositeFieldContainer[OfferedResponse.Offer]
    def __init__(self, offers: _Optional[_Iterable[_Union[OfferedResponse.Offer, _Mapping]]] = ...) -> None: ...

class ChangesRequest(_message.Message):
    __slots__ = ("collection", "identity", "acknowledged", "log", "most_bytes")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    MOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    identity: str
    acknowledged: int
    log: str
    most_bytes: int
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., identity: _Optional[str] = ..., acknowledged: _Optional[int] = ..., log: _Optional[str] = ..., most_bytes: _Optional[int] = ...) -> None: ...

class ChangesResponse(_message.Message):
    __slots__ = ("changes", "log", "last", "embedder_digest")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    log: str
    last: int
    embedder_digest: str
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., log: _Optional[str] = ..., last: _Optional[int] = ..., embedder_digest: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("number", "id", "written", "written_after", "deleted", "row", "written_at_s")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_AFTER_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_AT_S_FIELD_NUMBER: _ClassVar[int]
    number: int
    id: str
    written: int
    written_after: int
    deleted: int
    row: Row
    written_at_s: float
    def __init__(self, number: _Optional[int] = ..., id: _Optional[str] = ..., written: _Optional[int] = ..., written_after: _Optional[int] = ..., deleted: _Optional[int] = ..., row: _Optional[_Union[Row, _Mapping]] = ..., written_at_s: _Optional[float] = ...) -> None: ...

class AdoptRequest(_message.Message):
    __slots__ = ("node", "site", "region", "offers")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    region: str
    offers: _containers.RepeatedCompositeFieldContainer[OfferedResponse.Offer]
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., offers: _Optional[_Iterable[_Union[OfferedResponse.Offer, _Mapping]]] = ...) -> None: ...

class AdoptResponse(_message.Message):
    __slots__ = ("followed", "refused")
    class Followed(_message.Message):
        __slots__ = ("collection", "identity", "acknowledged", "log", "embedder", "embedder_digest")
        COLLECTION_FIELD_NUMBER: _ClassVar[int]
        IDENTITY_FIELD_NUMBER: _ClassVar[int]
        ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
        LOG_FIELD_NUMBER: _ClassVar[int]
        EMBEDDER_FIELD_NUMBER: _ClassVar[int]
        EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
        collection: CollectionRef
        identity: str
        acknowledged: int
        log: str
        embedder: str
        embedder_digest: str
        def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., identity: _Optional[str] = ..., acknowledged: _Optional[int] = ..., log: _Optional[str] = ..., embedder: _Optional[str] = ..., embedder_digest: _Optional[str] = ...) -> None: ...
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    followed: _containers.RepeatedCompositeFieldContainer[AdoptResponse.Followed]
    refused: _containers.RepeatedCompositeFieldContainer[OfferedRequest.Refusal]
    def __init__(self, followed: _Optional[_Iterable[_Union[AdoptResponse.Followed, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[OfferedRequest.Refusal, _Mapping]]] = ...) -> None: ...

class TakeRequest(_message.Message):
    __slots__ = ("node", "site", "collection", "identity", "changes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    collection: CollectionRef
    identity: str
    changes: ChangesResponse
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., identity: _Optional[str] = ..., changes: _Optional[_Union[ChangesResponse, _Mapping]] = ...) -> None: ...

class TakeResponse(_message.Message):
    __slots__ = ("acknowledged",)
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    acknowledged: int
    def __init__(self, acknowledged: _Optional[int] = ...) -> None: ...

class DeletedRequest(_message.Message):
    __slots__ = ("identity", "ids")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    identity: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, identity: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeletedResponse(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class BeginFillingRequest(_message.Message):
    __slots__ = ("collection", "embedder", "embedder_digest", "dimension")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    embedder: str
    embedder_digest: str
    dimension: int
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., embedder: _Optional[str] = ..., embedder_digest: _Optional[str] = ..., dimension: _Optional[int] = ...) -> None: ...

class Filling(_message.Message):
    __slots__ = ("collection", "generation", "embedder", "embedder_digest", "rows_done", "rows_total", "serves")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROWS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SERVES_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    generation: int
    embedder: str
    embedder_digest: str
    rows_done: int
    rows_total: int
    serves: bool
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., generation: _Optional[int] = ..., embedder: _Optional[str] = ..., embedder_digest: _Optional[str] = ..., rows_done: _Optional[int] = ..., rows_total: _Optional[int] = ..., serves: _Optional[bool] = ...) -> None: ...

class LackingRequest(_message.Message):
    __slots__ = ("collection", "generation", "most", "after", "hold_ms")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    HOLD_MS_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    generation: int
    most: int
    after: str
    hold_ms: int
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., generation: _Optional[int] = ..., most: _Optional[int] = ..., after: _Optional[str] = ..., hold_ms: _Optional[int] = ...) -> None: ...

class LackingResponse(_message.Message):
    __slots__ = ("lacks", "after")
    class Lack(_message.Message):
        __slots__ = ("id", "text")
        ID_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        id: str
        text: str
        def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
    LACKS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    lacks: _containers.RepeatedCompositeFieldContainer[LackingResponse.Lack]
    after: str
    def __init__(self, lacks: _Optional[_Iterable[_Union[LackingResponse.Lack, _Mapping]]] = ..., after: _Optional[str] = ...) -> None: ...

class FillRequest(_message.Message):
    __slots__ = ("collection", "generation", "made")
    class Made(_message.Message):
        __slots__ = ("id", "text_hash", "vector")
        ID_FIELD_NUMBER: _ClassVar[int]
        TEXT_HASH_FIELD_NUMBER: _ClassVar[int]
        VECTOR_FIELD_NUMBER: _ClassVar[int]
        id: str
        text_hash: bytes
        vector: bytes
        def __init__(self, id: _Optional[str] = ..., text_hash: _Optional[bytes] = ..., vector: _Optional[bytes] = ...) -> None: ...
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    collection: CollectionRef
    generation: int
    made: _containers.RepeatedCompositeFieldContainer[FillRequest.Made]
    def __init__(self, collection: _Optional[_Union[CollectionRef, _Mapping]] = ..., generation: _Optional[int] = ..., made: _Optional[_Iterable[_Union[FillRequest.Made, _Mapping]]] = ...) -> None: ...
