# make demo       install into .venv, then show bnfold at work: first without torch, then the main job
# make test       the tests of a few minutes
# make test-all   those and the slow ones, and the documentation
# make docs       build the documentation into build/site; any warning is an error
# make lint       formatting, lint, types
# make check      lint, then test
# make clean      remove .venv, build/ and every cache
#
# PYTHON=/path/to/python chooses the interpreter of .venv. TORCH_FLAGS are passed to `pip install torch`:
#   make demo TORCH_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"     a small torch, without CUDA

PYTHON =
TORCH_FLAGS =
PYTEST_FLAGS = -n auto --maxprocesses 4 --dist loadgroup

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
MODEL = models/digits_resnet.pt

USABLE = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
CANDIDATES = $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python)
NO_PYTHON = bnfold needs a Python from 3.11 to 3.14 with its venv module (on Debian and Ubuntu: apt install python3-venv), and none of these is one: $(CANDIDATES); name another with make PYTHON=/path/to/python.

.PHONY: demo test test-all docs lint check clean

demo: $(VENV)/core.stamp
	$(BIN)/bnfold demo
	@$(MAKE) --no-print-directory $(VENV)/torch.stamp
	@mkdir -p build
	$(BIN)/bnfold export $(MODEL) -o build/digits_resnet.onnx --bench --report build/digits_resnet.json

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-all: $(VENV)/dev.stamp docs
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m "slow or not slow"

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir build/site

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than the files that decide what is installed, so a second call installs nothing.

$(VENV)/bin/python:
	@for python in $(CANDIDATES); do \
	    if "$$python" -c "$(USABLE)" >/dev/null 2>&1; then exec "$$python" -m venv --clear $(VENV); fi; \
	done; echo "$(NO_PYTHON)" >&2; exit 1

$(VENV)/core.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[cpu]"
	@touch $@

# torch alone and first, with its exact version: any later line that asks for it is then met, whatever build this is.
$(VENV)/torch.stamp: $(VENV)/core.stamp
	$(PIP) $(TORCH_FLAGS) `grep '^torch==' constraints.txt`
	$(PIP) --editable ".[all]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp
	$(PIP) --editable ".[all,dev]"
	@touch $@

$(VENV)/docs.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[docs]"
	@touch $@
