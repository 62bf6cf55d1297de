"""fieldmark.v1 as JSON: which path is which method, and the descriptors that Envoy translates by.

The paths are a matter of what stands before the service, so they are put into the descriptors here and the proto stays
free of them: whoever takes it needs no further file.
"""

from google.api import annotations_pb2, http_pb2
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from serving.gateway.generated import fieldmark_pb2 as v1

PATHS = {"Classify": ("POST", "/v1/classify"), "Describe": ("GET", "/v1/describe")}  # a stream has no JSON of its own


def descriptors() -> bytes:
    """A serialized google.protobuf.FileDescriptorSet: the service with its paths, and every message of an error."""
    # google.rpc's own come along, so that the details of an error are told in JSON as well.
    modules = (any_pb2, duration_pb2, status_pb2, error_details_pb2, v1)
    files = descriptor_pb2.FileDescriptorSet()
    for module in modules:
        module.DESCRIPTOR.CopyToProto(files.file.add())
    service = files.file[-1].service[0]
    for method in service.method:
        if method.name in PATHS:
            verb, path = PATHS[method.name]
            rule = http_pb2.HttpRule(**{verb.lower(): path}, body="*" if verb == "POST" else "")
            method.options.Extensions[annotations_pb2.http].CopyFrom(rule)
    return bytes(files.SerializeToString(deterministic=True))
