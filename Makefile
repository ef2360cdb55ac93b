# Two commands do all the set-up: `make lowrank` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help lowrank prune compare neighbours bench test slow quick lint format torch real clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

lowrank: $(VENV)/.installed  ## factorise the default model at rank 64, train it on and measure it
	$(BIN)/python -m experiments.lowrank --rank 64 --steps 50 $(ARGS)

prune: $(VENV)/.installed  ## prune weights, groups, blocks, heads and rows, and compare the curves
	$(BIN)/python -m experiments.weights $(ARGS)
	$(BIN)/python -m experiments.weights --pattern groups --out runs/groups $(ARGS)
	$(BIN)/python -m experiments.weights --pattern blocks --out runs/blocks $(ARGS)
	$(BIN)/python -m experiments.heads $(ARGS)
	$(BIN)/python -m experiments.rows $(ARGS)
	$(BIN)/python -m experiments.tradeoff runs/weights runs/groups runs/blocks runs/heads runs/rows

RUNS := weights groups blocks heads rows rank svd distil combine plan plan-50 plan-50/uniform
compare: prune  ## all techniques, and which wins: pruning, low rank, distillation, their combination, a plan
	$(BIN)/python -m experiments.combine --plan rank=96@30 rank=64 rank=48 rank=32 rank=16 --every 15 --out runs/rank $(ARGS)
	$(BIN)/python -m experiments.combine --plan svd=96@30 svd=64 svd=48 svd=32 svd=16 --every 15 --out runs/svd $(ARGS)
	$(BIN)/python -m experiments.distill --masked $(ARGS)
	$(BIN)/python -m experiments.combine --plan layers=3@45:distil heads=6 heads=4 rows=768 rows=512 rows=320 --every 15 --masked $(ARGS)
	$(BIN)/python -m experiments.plan --budget rtf=80% rtf=65% rtf=50% rtf=40% rtf=30% --no-uniform $(ARGS)
	$(BIN)/python -m experiments.plan --budget rtf=50% --out runs/plan-50 $(ARGS)
	$(BIN)/python -m experiments.tradeoff $(RUNS:%=runs/%) --retime

BESIDE := exits sequence sequence-front mixers elastic plan heads
neighbours: $(VENV)/.installed  ## shorter sequences, early exits, linear mixers, a supernet, beside heads and a plan
	$(BIN)/python -m experiments.exits $(ARGS)
	$(BIN)/python -m experiments.sequence --ratio 2 3 4 8 --by mean --at 3 --steps 60 $(ARGS)
	$(BIN)/python -m experiments.sequence --ratio 2 3 4 8 --by mean once --at front --steps 60 --out runs/sequence-front $(ARGS)
	$(BIN)/python -m experiments.mixers --layers 3 4 5 --steps 60 $(ARGS)
	$(BIN)/python -m experiments.elastic --no-alone --steps 100 --budget rtf=50% $(ARGS)
	$(BIN)/python -m experiments.plan --budget rtf=80% rtf=65% rtf=50% rtf=40% rtf=30% --no-uniform $(ARGS)
	$(BIN)/python -m experiments.heads $(ARGS)
	$(BIN)/python -m experiments.tradeoff $(BESIDE:%=runs/%) --retime --out runs/neighbours

bench: $(VENV)/.tested  ## time forward passes and a training step beside PyTorch and ONNX Runtime (needs `make torch`)
	$(BIN)/python -m benchmarks.forward $(ARGS)
	$(BIN)/python -m benchmarks.training

# Workers share compiled programs; a file's tests stay together, for they share what it prepares. A worker that dies
# ends the run: replaced, it leaves the others waiting for ever.
APART := --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: $(VENV)/.tested  ## run the test suite, two files and more at a time
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(APART) $(ARGS)

LAWS := compress jaxssl tests/compress tests/test_imports.py tests/test_golden.py tests/models/test_model.py
quick: lint  ## check style, format, types, the laws of compression and of the model, and the docstrings' examples
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(APART) $(LAWS) $(ARGS)

slow: $(VENV)/.tested  ## run the slow tests: whole runs, exporters of PyTorch, full-size models
	$(BIN)/python -m pytest -m slow --numprocesses 2 $(APART) $(ARGS)

lint: $(VENV)/.tested  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.tested  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# PyTorch's default build for Linux brings gigabytes of CUDA; point pip at a CPU index to avoid that.
torch: $(VENV)/.tested  ## add PyTorch, transformers and ONNX Runtime for the parity tests and for exports
	$(PIP) torch==2.13.0 -e '.[espeak,test,torch,deploy]'

real: $(VENV)/.tested  ## add Whisper tiny.en, its decoder and PocketSphinx: experiments.whisper, experiments.align
	$(PIP) -e '.[espeak,test,real,align]'

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info build

# A failed attempt is removed: half an environment would be taken for a whole one.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} is too old: 3.11 is needed; say make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(PIP) -e '.[espeak]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) -e '.[espeak,test]'
	@touch $@
