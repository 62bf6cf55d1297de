# syntax=docker/dockerfile:1
# The production image: NVIDIA Triton with its native ONNX Runtime backend, and our serving room. No PyTorch.
#
#   docker build -t fieldmark .
#   docker run --rm --read-only --tmpfs /tmp -v /path/to/bundle:/bundle:ro -p 8001:8001 fieldmark
#
# A bundle can be baked in; it need not lie in this folder:
#
#   docker build -t birds:1 --target baked --build-context bundle=/path/to/bundle .

# Triton 2.60.0 with ONNX Runtime 1.23 on Ubuntu 24.04 and Python 3.12. Pin it by digest where you deploy.
ARG TRITON_TAG=25.08-py3

# The wheels, by hash. They are built for Python 3.12 on Linux, so nothing is compiled and this stage may be small.
FROM python:3.12-slim-bookworm AS wheels
COPY requirements/base.lock /tmp/base.lock
RUN python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
    --target /opt/fieldmark/packages -r /tmp/base.lock

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG} AS serve
COPY --from=wheels /opt/fieldmark/packages /opt/fieldmark/packages
COPY fieldmark.py /opt/fieldmark/
COPY bundle /opt/fieldmark/bundle
COPY serving /opt/fieldmark/serving
ENV PYTHONPATH=/opt/fieldmark:/opt/fieldmark/packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp
WORKDIR /opt/fieldmark
# Another Python in another tag would show here, not in production.
RUN python3 -c "import serving.container, serving.probe, tritonclient.grpc"
# The image's own user, by number, so that Kubernetes can see that it is not root.
USER 1000:1000
EXPOSE 8000 8001 8002
# A real answer of every network: Triton's own health stays green when a worker has died.
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 \
    CMD ["python3", "-m", "serving.probe", "--url", "127.0.0.1:8001"]
ENTRYPOINT ["python3", "-m", "serving.container"]
CMD ["/bundle"]

FROM serve AS baked
# hadolint ignore=DL3022
COPY --from=bundle . /bundle

FROM serve
