"""Who answers: ONNX Runtime in this process, or a Triton."""

from bundle.folder import Bundle
from serving.client.prediction import Inference


def open_inference(bundle: Bundle, url: str | None, threads: int | None = None) -> Inference:
    """ONNX Runtime in this process, on so many cores, or the Triton at `url` when it serves exactly this bundle."""
    if url is None:
        from serving.client.local import LocalInference

        return LocalInference(bundle, threads=threads)
    from serving.client.remote import TritonInference

    return TritonInference.connect(url, expect_bundle=bundle.bundle_id)


def check_served(bundle: Bundle, url: str | None) -> None:
    """Raise EndpointError when `url` serves another bundle by now: a gRPC channel reconnects to whatever is there."""
    if url is not None:
        from serving.client.remote import TritonInference

        TritonInference.connect(url, expect_bundle=bundle.bundle_id).close()
