# One page of commands; `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP_TORCH ?= torch==2.13.0
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help env demo pilot test test-slow test-all test-gpu gpu-day machines torture torture-pipeline soak fuzz check format docs clean bench-data bench-evaluate bench-grpo bench-memory bench-model bench-overlap bench-peers bench-plan bench-remote bench-scale

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or set PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: Python's venv is missing; on Debian: apt-get install python3.11-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_TORCH) setuptools
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation openai-whisper==20250625
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

env: $(VENV)/ready  ## Create the environment (.venv) from the pinned versions

demo: $(VENV)/ready  ## TinyShorts, six stages, the table of what each stage moved (about twenty minutes on one core)
	$(BIN)/python -m arcvideo.pipeline recipe=tiny_shorts

pilot: $(VENV)/ready  ## The paper's pilot on TinyShorts: SFT, DPO, GRPO then SFT from one parent (a few minutes behind the demo)
	$(BIN)/python -m arcvideo.pipeline recipe=pilot_tiny

WORKERS ?= 2

test: $(VENV)/ready  ## The test suite, without the slow tests, in WORKERS=2 processes
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(WORKERS) --durations=15

CAPABILITIES ?= default avx2 avx512
THREADS ?= 1 2 4
COPIES ?= 1
TESTS ?=

machines: $(VENV)/ready  ## The tests under each CPU capability and thread count (CAPABILITIES=avx2 THREADS="1 2" TESTS=tests/model)
	$(BIN)/python -m tests.machines --capabilities="$(CAPABILITIES)" --threads="$(THREADS)" --copies=$(COPIES) $(TESTS)

test-gpu: $(VENV)/ready  ## Tests that need a CUDA device, then one step of a depth slice at real widths
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks.slice

SIZE ?= full
gpu-day: $(VENV)/ready  ## Everything that only a GPU can tell, within 30 minutes, and a page of it (SIZE=toy rehearses on a CPU)
	$(BIN)/python -m benchmarks.gpu_day --size $(SIZE)

test-slow: $(VENV)/ready  ## The slow tests alone, but for those that landing leaves out
	$(BIN)/python -m pytest -m "slow and not gpu and not nightly" -n $(WORKERS) --durations=25 $(PYTEST_WORDS) $(TESTS)

test-all: $(VENV)/ready  ## The test suite with the slow tests
	$(BIN)/python -m pytest -m "not gpu"

bench-data: $(VENV)/ready  ## Decoding and batching against a straightforward pipeline
	$(BIN)/python -m benchmarks.data

torture: $(VENV)/ready  ## Kill a run 200 times at random instants; nothing may be lost
	$(BIN)/python -m tests.runner.torture --kills 200

KILLS ?= 50
RANKS ?= 1

torture-pipeline: $(VENV)/ready  ## Kill whole pipelines at random instants; books and bits must be those of an undisturbed run (KILLS=50 RANKS=2)
	$(BIN)/python -m tests.runner.torture_pipeline --kills $(KILLS) --ranks $(RANKS)

STEPS ?= 20000

soak: $(VENV)/ready  ## A long run of tiny steps: memory, descriptors, threads and processes must stay as they are (STEPS=20000)
	$(BIN)/python -m benchmarks.soak --steps $(STEPS)

SECONDS ?= 600
READERS ?=

fuzz: $(VENV)/ready  ## Fuzz everything that reads bytes of others, guided by coverage (SECONDS=60 READERS="tars lines")
	@$(BIN)/python -c 'import atheris' || { echo "error: atheris is missing; $(BIN)/python -m pip install atheris"; exit 1; }
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(READERS)

docs: $(VENV)/ready  ## The documentation site, into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

check: $(VENV)/ready  ## Format, lint and types
	$(BIN)/ruff format --check arcvideo tests
	$(BIN)/ruff check arcvideo tests
	$(BIN)/mypy

format: $(VENV)/ready  ## Rewrite the code in the house format
	$(BIN)/ruff format arcvideo tests
	$(BIN)/ruff check --fix arcvideo tests

bench-model: $(VENV)/ready  ## Positions of a long video, memory of the label-only head
	$(BIN)/python -m benchmarks.model
bench-evaluate: $(VENV)/ready  ## A measurement against one question at a time through model.generate
	$(BIN)/python -m benchmarks.evaluate
bench-memory: $(VENV)/ready  ## Memory of rows of the 7B: formula against trace
	$(BIN)/python -m benchmarks.memory
bench-runner: $(VENV)/ready  ## Loop overhead, packing against padding, stall of a checkpoint
	$(BIN)/python -m benchmarks.runner
bench-grpo: $(VENV)/ready  ## GRPO with a shared prompt against full copies, and a whole step against TRL's trainer
	$(BIN)/python -m benchmarks.grpo

bench-overlap: $(VENV)/ready  ## Precision and recall of fingerprints on clips that were changed
	$(BIN)/python -m benchmarks.overlap

PEERS ?= $(BIN)/python
bench-peers: $(VENV)/ready  ## First sample and resume beside Mosaic Streaming and Energon (PEERS=python that has them too)
	$(BIN)/python -m benchmarks.peers --python $(PEERS)
bench-plan: $(VENV)/ready  ## Planning a million samples: fill, balance, time, memory
	$(BIN)/python -m benchmarks.plan
bench-remote: $(VENV)/ready  ## Clips of remote shards by ranges, against copies and streams, with a slow server
	$(BIN)/python -m benchmarks.remote
bench-scale: $(VENV)/ready  ## First batch of a hundred million samples, at any place; needs 25 GiB of disk
	$(BIN)/python -m benchmarks.scale

clean:  ## Remove runs, data and caches; the environment stays
	rm -rf runs data build *.egg-info .ruff_cache .mypy_cache .pytest_cache
