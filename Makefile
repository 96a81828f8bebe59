# Two commands: `make sweep` and `make test`; each makes its own environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: sweep test check scheduled

$(BIN)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip
	$(BIN)/python -m pip install -q -e .
	touch $@

sweep: $(BIN)/.run
	$(BIN)/bigdl sweep --config=experiments/quickstart.py \
	  --workdir=runs/quickstart

$(BIN)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip
	# A CPU build of torch is a test dependency; this version has one where the
	# index offers it.
	$(BIN)/python -m pip install -q 'torch==2.13.0' || \
	  $(BIN)/python -m pip install -q torch
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

test: $(BIN)/.test check
	$(BIN)/python -m pytest -q -n 2

# The tests that are too long for every change. Slurm's need root and Debian's
# slurm-wlm and munge; those of XPK, SkyPilot and H100s say what they need.
scheduled: $(BIN)/.test
	$(BIN)/python -m pytest -q -m scheduled

check: $(BIN)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy --no-error-summary
