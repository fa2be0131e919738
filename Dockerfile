# syntax=docker/dockerfile:1
# Two images of one environment, the one that `make env` makes. Build with
#   docker build --target cpu  -t arcvideo:cpu .
#   docker build --target cuda -t arcvideo:cuda .
# hadolint takes the word TOKENIZERS for a secret (DL3064), and Debian keeps no old versions to pin (DL3008).
# Everything is installed while the image is built: a container needs no network.
ARG PYTHON=3.11.14-slim-bookworm
# DeepSpeed compiles its CPU optimizer of the offload engines with nvcc when it is first used; torch brings its own CUDA.
ARG CUDA=13.0.1-devel-ubuntu22.04

FROM python:${PYTHON} AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3064
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
WORKDIR /arcvideo
COPY Makefile pyproject.toml requirements.lock README.md ./
COPY arcvideo arcvideo
COPY conf conf
COPY recipes recipes
COPY launch launch
# Another build of torch is given as pip takes it: --build-arg TORCH="...".
ARG TORCH="torch==2.13.0"
RUN make env PYTHON=python3.11 PIP_TORCH="${TORCH}" \
    && useradd --create-home --uid 1000 arcvideo \
    && mkdir data runs \
    && chown arcvideo:arcvideo data runs
ENV PATH=/arcvideo/.venv/bin:$PATH
USER 1000
VOLUME ["/arcvideo/data", "/arcvideo/runs"]
ENTRYPOINT ["arcvideo"]
CMD ["--help"]

FROM nvidia/cuda:${CUDA} AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git python3.11 python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3064
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
WORKDIR /arcvideo
COPY Makefile pyproject.toml requirements.lock README.md ./
COPY arcvideo arcvideo
COPY conf conf
COPY recipes recipes
COPY launch launch
ARG TORCH="torch==2.13.0"
RUN make env PYTHON=python3.11 PIP_TORCH="${TORCH}" \
    && useradd --create-home --uid 1000 arcvideo \
    && mkdir data runs \
    && chown arcvideo:arcvideo data runs
ENV PATH=/arcvideo/.venv/bin:$PATH PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
USER 1000
VOLUME ["/arcvideo/data", "/arcvideo/runs"]
ENTRYPOINT ["arcvideo"]
CMD ["--help"]
