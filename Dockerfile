# syntax=docker/dockerfile:1
# Two images of one service: fieldmark.v1 on port 8010, and behind it a Triton that nobody else reaches. No PyTorch.
#
#   docker build -t fieldmark:cpu --target cpu .     # the Triton of a wheel: 'fieldmark serve'
#   docker build -t fieldmark:gpu --target gpu .     # NVIDIA's Triton, native ONNX Runtime: deploy/compose.yaml has both halves
#   docker run --rm --read-only --tmpfs /tmp:exec -v /path/to/bundle:/bundle:ro -p 127.0.0.1:8010:8010 \
#       fieldmark:cpu serve /bundle --host 0.0.0.0 --insecure
#
# A bundle can be baked in; it need not lie in this folder. What is deployed is then one thing with one digest:
#
#   docker build -t birds:1 --target baked --build-arg RUNTIME=cpu --build-context bundle=/path/to/bundle .
#
# pip's own configuration (a mirror, say) comes along with --secret id=pip,src=/etc/pip.conf and stays out of the image.

# Python 3.11 or 3.12 with its shared library, as Triton's stub wants it. Pin all three by digest where you deploy.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
# Triton 2.60.0 with ONNX Runtime 1.23 on Ubuntu 24.04 and Python 3.12.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.08-py3
# What a bundle is baked into: cpu or gpu.
ARG RUNTIME=cpu

# checkov:skip=CKV_DOCKER_7: the tags stand in the arguments above
FROM ${PYTHON_IMAGE} AS cpu
COPY requirements/server.lock /opt/fieldmark/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/fieldmark/venv && \
    /opt/fieldmark/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps \
    --require-hashes --only-binary :all: -r /opt/fieldmark/server.lock
COPY fieldmark.py /opt/fieldmark/
COPY bundle /opt/fieldmark/bundle
COPY serving /opt/fieldmark/serving
ENV PATH=/opt/fieldmark/venv/bin:$PATH \
    PYTHONPATH=/opt/fieldmark \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp
WORKDIR /opt/fieldmark
# Another Python in another base would show here, not in production.
RUN python3 -c "from serving.triton.environment import find_environment; find_environment()"
# By number, so that Kubernetes can see that it is not root, and above those that a machine gives to its own users.
USER 10001:10001
EXPOSE 8010 8011
# Whether every network has answered its last probe; the gateway's metrics say so, also behind TLS and keys.
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 \
    CMD ["python3", "-m", "serving.gateway.health"]
ENTRYPOINT ["python3", "-m", "fieldmark"]
CMD ["serve", "/bundle"]

# The gateway's wheels, by hash, for the Python of the base: the same 3.12 as in NVIDIA's image.
FROM ${PYTHON_IMAGE} AS wheels
COPY requirements/gateway.lock /opt/fieldmark/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /tmp/venv && \
    /tmp/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
    --only-binary :all: --target /opt/fieldmark/packages -r /opt/fieldmark/gateway.lock

# Starts Triton; the gateway is a second container from the same image, in the same network: 'python3 -m fieldmark gateway'.
FROM ${TRITON_IMAGE} AS gpu
COPY --from=wheels /opt/fieldmark /opt/fieldmark
COPY fieldmark.py /opt/fieldmark/
COPY bundle /opt/fieldmark/bundle
COPY serving /opt/fieldmark/serving
ENV PYTHONPATH=/opt/fieldmark:/opt/fieldmark/packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp
WORKDIR /opt/fieldmark
RUN python3 -c "import serving.triton.container, serving.triton.probe, serving.gateway.server as gateway; gateway.require_libraries()"
USER 10001:10001
EXPOSE 8010 8011
# A real answer of every network: Triton's own health stays green when a network answers nobody.
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 \
    CMD ["python3", "-m", "serving.triton.probe", "--url", "127.0.0.1:8001"]
ENTRYPOINT ["python3", "-m", "serving.triton.container"]
CMD ["/bundle"]

FROM ${RUNTIME} AS baked
# hadolint ignore=DL3022
COPY --from=bundle . /bundle

FROM cpu
