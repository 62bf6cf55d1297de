import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassifyRequest(_message.Message):
    __slots__ = ("image", "network", "top_k", "alpha", "explain")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    network: str
    top_k: int
    alpha: float
    explain: bool
    def __init__(self, image: _Optional[bytes] = ..., network: _Optional[str] = ..., top_k: _Optional[int] = ..., alpha: _Optional[float] = ..., explain: bool = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("predictions", "adversarial", "explanation", "network", "bundle_id", "request_id", "times")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ADVERSARIAL_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    adversarial: Adversarial
    explanation: Explanation
    network: str
    bundle_id: str
    request_id: str
    times: Times
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., adversarial: _Optional[_Union[Adversarial, _Mapping]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., network: _Optional[str] = ..., bundle_id: _Optional[str] = ..., request_id: _Optional[str] = ..., times: _Optional[_Union[Times, _Mapping]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("label", "probability")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    label: str
    probability: float
    def __init__(self, label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Adversarial(_message.Message):
    __slots__ = ("score", "p_value", "flagged", "alpha", "layers")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    score: float
    p_value: float
    flagged: bool
    alpha: float
    layers: _containers.RepeatedCompositeFieldContainer[LayerEvidence]
    def __init__(self, score: _Optional[float] = ..., p_value: _Optional[float] = ..., flagged: bool = ..., alpha: _Optional[float] = ..., layers: _Optional[_Iterable[_Union[LayerEvidence, _Mapping]]] = ...) -> None: ...

class LayerEvidence(_message.Message):
    __slots__ = ("layer", "squared_distance")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SQUARED_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    layer: str
    squared_distance: float
    def __init__(self, layer: _Optional[str] = ..., squared_distance: _Optional[float] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("attention_png", "prototypes")
    ATTENTION_PNG_FIELD_NUMBER: _ClassVar[int]
    PROTOTYPES_FIELD_NUMBER: _ClassVar[int]
    attention_png: bytes
    prototypes: _containers.RepeatedCompositeFieldContainer[Prototype]
    def __init__(self, attention_png: _Optional[bytes] = ..., prototypes: _Optional[_Iterable[_Union[Prototype, _Mapping]]] = ...) -> None: ...

class Prototype(_message.Message):
    __slots__ = ("label", "similarity", "png", "box")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    label: str
    similarity: float
    png: bytes
    box: Box
    def __init__(self, label: _Optional[str] = ..., similarity: _Optional[float] = ..., png: _Optional[bytes] = ..., box: _Optional[_Union[Box, _Mapping]] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("left", "top", "right", "bottom")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    right: int
    bottom: int
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., right: _Optional[int] = ..., bottom: _Optional[int] = ...) -> None: ...

class Times(_message.Message):
    __slots__ = ("queue", "decode", "inference", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    inference: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., inference: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ClassifyStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: ClassifyRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[ClassifyRequest, _Mapping]] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: ClassifyResponse
    error: StreamError
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "reason", "message", "retry_after")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    retry_after: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("name", "bundle_id", "labels", "networks", "limits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    bundle_id: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    networks: _containers.RepeatedCompositeFieldContainer[Network]
    limits: Limits
    def __init__(self, name: _Optional[str] = ..., bundle_id: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., networks: _Optional[_Iterable[_Union[Network, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Network(_message.Message):
    __slots__ = ("name", "alpha", "smallest_alpha", "layers", "serving")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_ALPHA_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    name: str
    alpha: float
    smallest_alpha: float
    layers: _containers.RepeatedScalarFieldContainer[str]
    serving: bool
    def __init__(self, name: _Optional[str] = ..., alpha: _Optional[float] = ..., smallest_alpha: _Optional[float] = ..., layers: _Optional[_Iterable[str]] = ..., serving: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("image_bytes", "pixels", "shortest_side", "formats", "stream_window")
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    SHORTEST_SIDE_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    image_bytes: int
    pixels: int
    shortest_side: int
    formats: _containers.RepeatedScalarFieldContainer[str]
    stream_window: int
    def __init__(self, image_bytes: _Optional[int] = ..., pixels: _Optional[int] = ..., shortest_side: _Optional[int] = ..., formats: _Optional[_Iterable[str]] = ..., stream_window: _Optional[int] = ...) -> None: ...
