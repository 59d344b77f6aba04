# `make test` and `make demo` need Python >= 3.11, make, and a package index; everything else they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# PYTEST_ARGS narrows a run: make pytest PYTEST_ARGS="-k reload"
PYTEST_ARGS ?=
PYTEST := -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

# The wheel is compiled where there is a C compiler; yes: or fails; no: plain.
COMPILED ?= auto

.PHONY: test test-compiled wheel lint types layers pytest demo soak fuzz providers mutants bench bench-quick bench-scale bench-compiled bench-debian13 bench-instructions install uninstall reference golden format clean

# Types are checked beside the first tests.
test: .venv/installed-test
	$(MAKE) --no-print-directory --jobs=2 lint types layers pytest

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tlsproxy needs Python >= 3.11")'
	$(PYTHON) -m venv .venv

.venv/installed-demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]' && touch $@

.venv/installed-test: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[test]' && touch $@ .venv/installed-demo

lint: .venv/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

layers: .venv/installed-test
	$(BIN)/lint-imports

# Bytecode is kept, whatever the environment says: each test process, and each gateway, would compile everything anew.
pytest: export PYTHONDONTWRITEBYTECODE :=
pytest: .venv/installed-test
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

demo: .venv/installed-demo
	$(BIN)/tlsproxy demo $(DEMO_ARGS)

# A wheel in dist/ for this version of Python.
wheel: $(BIN)/python
	rm -rf build/lib* build/bdist*
	@echo "building a wheel, compiled if COMPILED=$(COMPILED) allows: some minutes"
	TLSPROXY_COMPILED=$(COMPILED) $(BIN)/pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

# The same tests with the compiled form, installed from its wheel beside what the tests need. See CONTRIBUTING.md.
COMPILED_PYTHON := build/compiled/bin/python
test-compiled: export PYTHONDONTWRITEBYTECODE :=
test-compiled: export PYTHONSAFEPATH := 1
test-compiled: export TLSPROXY_FORM := compiled
test-compiled: .venv/installed-test
	rm -rf dist build/compiled
	MYPYC_OPT_LEVEL=1 $(MAKE) --no-print-directory wheel COMPILED=yes
	$(BIN)/python -m venv --without-pip build/compiled
	$(BIN)/pip --quiet --disable-pip-version-check --python $(COMPILED_PYTHON) install --no-deps dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"), "$(CURDIR)", sep="\n")' \
		> "$$($(COMPILED_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
	$(COMPILED_PYTHON) $(PYTEST) -m "not plain" $(PYTEST_ARGS)

# The long forms of what `make test` runs briefly.
soak: .venv/installed-test
	TLSPROXY_SOAK=1 $(BIN)/python -m pytest -m soak --timeout=3600 $(PYTEST_ARGS)

fuzz: .venv/installed-test
	TLSPROXY_FUZZ=1 $(BIN)/python -m pytest -m fuzz --timeout=3600 $(PYTEST_ARGS)

# Real identity providers, built from the Go module proxy: a minute the first time. Not part of `make test`.
providers: .venv/installed-test
	$(BIN)/python -m pytest tests/providers $(PYTEST_ARGS)

# Changes of a decision that no test notices; all modules without MUTANTS, which takes hours. See CONTRIBUTING.md.
MUTANTS ?=
mutants: .venv/installed-mutants
	TLSPROXY_MUTANTS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

.venv/installed-mutants: .venv/installed-test
	$(PIP) mutmut && touch $@

# tlsproxy beside its peers; needs gcc and libssl-dev, and measures those peers that it finds or can install.
bench: bench-compiled
	$(BIN)/python -m bench run $(BENCH_ARGS)

bench-quick: bench-compiled
	$(BIN)/python -m bench quick $(BENCH_ARGS)

bench-scale: bench-compiled
	$(BIN)/python -m bench scale $(BENCH_ARGS)

# What it measures, as it ships: minutes, once for each state of the sources.
bench-compiled: .venv/installed-demo
	$(BIN)/python -m bench compile

# The bench, and the test of the hybrid key exchange, on Debian 13 in a folder; as root, with debootstrap.
bench-debian13:
	sh bench/debian13.sh bench-data make pytest bench PYTEST_ARGS=tests/e2e/test_hybrid_key_exchange.py BENCH_ARGS="$(BENCH_ARGS)"

# Instructions of a workload's request, by function; needs valgrind. The same on a busy machine.
bench-instructions: .venv/installed-demo
	$(BIN)/python -m bench instructions $(BENCH_ARGS)

# As root, under systemd: PREFIX=/opt/tlsproxy, LINKS=/usr/local, DESTDIR and PYTHON as usual. See systemd/README.md.
install uninstall:
	sh systemd/install.sh $@

# The references: of the configuration, from the model's descriptions; of metrics and operations, from their tables.
reference: .venv/installed-demo
	$(BIN)/tlsproxy config reference > config/tlsproxy.yaml
	$(BIN)/tlsproxy config reference --format markdown > docs/configuration.md
	$(BIN)/python -m tlsproxy.connector.reference > config/client.yaml
	$(BIN)/python -m tlsproxy.metrics.reference > docs/metrics.md
	$(BIN)/python -m tlsproxy.qdrant.reference > docs/qdrant-operations.md

# What our commands say of broken set-ups, as they say it now: read it before it is committed.
golden: .venv/installed-test
	TLSPROXY_GOLDEN=1 $(BIN)/python -m pytest -q tests/e2e/test_broken_setups.py

format: .venv/installed-test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf .venv demo-data bench-data build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache mutants
