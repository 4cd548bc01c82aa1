# What a developer runs. Every target sets up what it needs: Python 3.11 or newer and a C compiler are enough.
# Another Python: make PYTHON=python3.13 test

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
# A change in one of these asks for a new build.
BUILD_INPUTS := setup.py pyproject.toml $(wildcard deepzig/_kernels/*.pyx deepzig/_kernels/*.pxd \
	deepzig/_kernels/*.h deepzig/_kernels/_isa.py)
PACKAGE_FILES := $(shell find deepzig -type f ! -path '*/__pycache__/*' ! -name '*.so' ! -name _build.json)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo build test test-emulated test-slow test-browser test-api test-soak test-transformers test-cluster test-install test-readme zipapp test-zipapp bench docs check lint sizes clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runs ## install into .venv and let the bundled model tell a story
	@printf "Once upon a time"
	@$(BIN)/deepzig generate -m stories "Once upon a time" < /dev/null

build: $(VENV)/.developed ## install into .venv with everything that developing needs; again after a change to the kernels

test: $(VENV)/.developed ## run the tests that end within minutes, offline
	$(BIN)/pytest -n 2

test-emulated: $(VENV)/.developed ## run the kernels' tests for AVX512 and AMX on any CPU with AVX2, by emulation
	$(BIN)/python -m tools.emulated_isas

test-slow: $(VENV)/.developed ## run the tests that take longer
	$(BIN)/pytest -m slow

test-browser: $(VENV)/.developed ## drive the web page in headless Chromium; skips without chromium and chromium-driver
	$(BIN)/pytest -m browser tests/browser

test-transformers: $(VENV)/.developed ## compare quantised checkpoints with what transformers makes of them; installs torch
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev,golden]"
	$(BIN)/pytest -m slow tests/checkpoint/test_transformers.py

test-api: $(VENV)/.developed ## let schemathesis look for requests that the server's description does not foresee
	$(BIN)/pytest -m slow tests/server/test_openapi.py

test-soak: $(VENV)/.developed ## ten thousand requests to one server: memory and open files stay flat
	$(BIN)/pytest -m slow tests/server/test_load.py

test-cluster: $(VENV)/.developed ## run a model over a Ray cluster within this machine; installs Ray
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev,ray]"
	$(BIN)/pytest -m cluster tests/distributed

test-install: $(VENV)/.developed ## install into empty environments: from a wheel, and without a compiler
	$(BIN)/python -m tools.install_matrix

test-readme: $(VENV)/.developed ## type all of README.md, letter by letter, in an empty environment
	$(BIN)/python -m tools.readme_in_empty_venv

zipapp: dist/deepzig.pyz ## make dist/deepzig.pyz, one file with all that it needs but Python; takes some minutes

test-zipapp: dist/deepzig.pyz ## start dist/deepzig.pyz in empty folders: twice at once, offline, with a full disk
	$(BIN)/pytest -m zipapp tests/test_single_file.py

bench: $(VENV)/.developed ## measure kernels and models beside what bounds them; BENCH="--layers 9 --sections model" to choose
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev,bench]"
	$(BIN)/python -m bench --plot build/roofline.png $(BENCH)

docs: $(VENV)/.developed ## write the references that follow from the code
	$(BIN)/python tools/cli_reference.py
	$(BIN)/python tools/python_reference.py

check: $(VENV)/.developed lint ## lint, types, order of imports, documents in step with the tree
	$(BIN)/mypy deepzig
	$(BIN)/pytest -q tests/test_import_levels.py tests/test_docs.py

lint: $(VENV)/.developed
	$(BIN)/ruff check .

sizes: ## lines per package and file, longest first
	@$(PYTHON) tools/sizes.py

clean: ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
	rm -f deepzig/_kernels/*.so deepzig/_kernels/_build.json
	find deepzig tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

dist/deepzig.pyz: $(VENV)/.developed tools/single_file.py tools/clean_wheel.py $(PACKAGE_FILES)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev,zipapp]"
	$(BIN)/python -m tools.single_file

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The build tools stay in .venv, where their dates do not change: so only what changed is compiled again.
$(VENV)/.build-tools: $(BIN)/pip
	$(BIN)/pip install --quiet --upgrade setuptools cython numpy
	touch $@

$(VENV)/.runs: $(VENV)/.build-tools $(BUILD_INPUTS)
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	touch $@

$(VENV)/.developed: $(VENV)/.build-tools $(BUILD_INPUTS)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@ $(VENV)/.runs
