# make demo    install into .venv and run the main job on a real MRI
# make test    install into .venv and run the tests
# make lint    style and types
# make peers   the outside programs that some tests ask (Debian; needs root)
# make gpu-check   parity, engines, memory that runs out, and timings on a CUDA device; fails where there is none
# make test-slow, make coverage, make reliability    the slow set; coverage; full counts of injected faults
# make help    this list

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RELIABILITY := docs/reliability
# A worker for each core. Files in their own order: those of acceptance and of the gateway, whose tests are few and long,
# come first, so that the workers end together.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
# Tests start many processes: each of them would compile the project anew where no bytecode is kept.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow gpu-check reliability lint peers coverage clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	@touch $@

demo: $(READY)
	$(BIN)/medseg demo

test: $(READY)
	$(BIN)/python -m pytest -q $(WORKERS) -m 'not slow and not reliability' --durations=30

test-slow: $(READY)
	$(BIN)/python -m pytest -q $(WORKERS) -m slow --durations=30

# GPU_PYTHON=python3: with that Python as it is, where nothing can be installed.
gpu-check: $(if $(GPU_PYTHON),,$(READY))
	$(or $(GPU_PYTHON),$(BIN)/python) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "gpu-check: no CUDA device is here (torch %s), so nothing was checked" % torch.__version__)'
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest -q -rA -m gpu tests/medseg/inference
	$(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py
	$(or $(GPU_PYTHON),$(BIN)/python) benchmarks/windows.py --device cuda --rounds 3 --precisions fp32,fp16,bf16 --engines torch,torch-channels-last,compile,tensorrt

reliability: $(READY)
	mkdir -p $(RELIABILITY)
	rm -f $(RELIABILITY)/*.jsonl
	MEDSEG_RELIABILITY=$(RELIABILITY) $(BIN)/python -m pytest -q -m reliability --durations=30
	$(BIN)/python -m tests.gateway.faults.report

coverage: $(READY)
	$(BIN)/python -m pytest -q $(WORKERS) -m 'not slow and not reliability' --durations=30 --cov --cov-report=term-missing:skip-covered

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: $(READY)
	tests/peers/install $(BIN)/python

clean:
	rm -rf $(VENV) demo build dist
