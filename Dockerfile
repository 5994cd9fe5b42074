# Serves models of a registry over HTTP. From the repository's root:
#   docker build -t detr-zoo .                              on a CPU
#   docker build -t detr-zoo:gpu --build-arg TORCH=cu130 .  on a GPU; run it with --gpus all
#   export ZOO_API_KEYS=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')
#   docker run -p 8000:8000 -v "$PWD/mlruns/registry:/models:ro" -e ZOO_API_KEYS -e ZOO_MODELS=NAME@champion detr-zoo
# It has not been built where the tests run, which have no docker daemon; they check what it copies, installs and runs.
FROM python:3.11.14-slim-bookworm

# of https://download.pytorch.org/whl: cpu, or cu130 and others, which bring CUDA with them
ARG TORCH=cpu
# of pyproject.toml: serve,export also serves ONNX and OpenVINO files
ARG EXTRAS=serve

WORKDIR /opt/detr-zoo
COPY pyproject.toml README.md LICENSE ./
COPY zoo zoo
COPY datamodules datamodules
COPY recipes recipes
# what is installed is this folder, which has no version to pin
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --extra-index-url "https://download.pytorch.org/whl/${TORCH}" ".[${EXTRAS}]" \
    && useradd --uid 10001 --create-home zoo \
    && install --directory --owner=zoo /models /cache

USER 10001
WORKDIR /home/zoo
# models: the registry, mounted; cache: of weights that are fetched
ENV ZOO_REGISTRY=/models ZOO_CACHE=/cache PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# exec: zoo is the first process, and docker stop's SIGTERM lets it answer what it has accepted
CMD ["sh", "-c", "exec zoo serve ${ZOO_MODELS:?names the models, as in -e ZOO_MODELS=NAME@champion} --host 0.0.0.0 --port 8000"]
