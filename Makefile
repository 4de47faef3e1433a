# `make demo` and `make test` need Python 3.10+, make and a network; everything else is set up in .venv.

PYTHON ?= python3
# On a GPU machine the report uses the torch that is there already, so no environment is made for it.
GPU_PYTHON ?= python3
OUT ?= benchmarks/results
# Test processes: as many as there are processors, up to eight; `make test JOBS=0` runs all in one. A file's tests stay
# together, because some share a long preparation; tests/conftest.py has the longest files begin first.
JOBS ?= auto

VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types pytest docs bench gpu-report clean

demo: $(VENV)/.demo  ## photographs restored, and fingerprints of degraded ones: tables, and pictures in demo/
	$(VENV)/bin/bdg-fast demo

test: lint types pytest  ## everything CI checks

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .

# mypy does not know setuptools' package-dir, so it is shown the tree as it is imported: .typecheck/bdg_fast
# links to what is in bdg_fast/, plus kernels.
types: $(VENV)/.dev
	rm -rf .typecheck && mkdir -p .typecheck/bdg_fast
	ln -s $(addprefix ../../,$(wildcard bdg_fast/*) kernels) .typecheck/bdg_fast/
	cd .typecheck && ../$(VENV)/bin/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p bdg_fast

pytest: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -n $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.dev  ## the documentation as a site in site/; a warning fails it
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

bench: $(VENV)/.dev
	$(VENV)/bin/python -m pytest benchmarks/ --benchmark-only

# kernels/ is imported as bdg_fast.kernels by an installation alone: made where there is none, with nothing fetched.
gpu-report:
	@$(GPU_PYTHON) -c 'import bdg_fast.kernels' 2>/dev/null || \
		$(GPU_PYTHON) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(GPU_PYTHON) -m benchmarks.gpu_report --out "$(OUT)" $(if $(LIMIT),--seconds $(LIMIT)) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) site .typecheck .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bdg_fast needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

# Stamps: an installation is repeated only when what it was made from has changed.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev,demo,docs]'
	@touch $@
