# SPDX-License-Identifier: Apache-2.0
# Everything from a bare checkout: Python 3.10 or later and a C++17 compiler are enough. The virtual
# environment, the installed package and the stamps that make re-runs quick all live in VENV.

VENV ?= .venv
# A first Python of 3.10 or later; name one with PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
# AUTO, ON or OFF; see cmake/cuda.cmake.
HEADRACE_CUDA ?= AUTO
DEMO_ARGS ?= --demo
BENCH_ARGS ?= --quick
PYTEST_ARGS ?=
# Processes that share the test files; each has one thread unless a test asks for more, and threads
# that wait leave the core to the others.
WORKERS ?= 2

ROOT := $(abspath .)
BIN := $(abspath $(VENV))/bin
# Checks run from a directory that holds none of the sources, so they see what was installed.
AWAY := $(abspath $(VENV))/away
CXX_SOURCES = $(shell find csrc kernels -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# The content of what gets installed, and of what gets installed with it, as file names of stamps.
hash = $(shell find $(1) -type f -not -name '*.pyc' -print0 2>/dev/null | LC_ALL=C sort -z \
  | xargs -0 sha256sum | sha256sum | cut -c 1-16)
RUN := $(VENV)/stamp-run-$(call hash,pyproject.toml constraints-dev.txt)
DEV := $(VENV)/stamp-dev-$(call hash,pyproject.toml constraints-dev.txt)
BUILT := $(VENV)/stamp-built-$(HEADRACE_CUDA)-$(call hash,pyproject.toml CMakeLists.txt README.md \
  LICENSE cmake csrc kernels python)
SHARED = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) \
  --dist loadfile --no-loadscope-reorder
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test lint style ready format bench wheel dist asan emulated clean install

help:
	@echo "make demo    stream real text through the shipped model (DEMO_ARGS='$(DEMO_ARGS)')"
	@echo "make test    lint, then every test, against the installed package (PYTEST_ARGS=)"
	@echo "make lint    ruff, clang-format, mypy         make format   rewrite the sources in style"
	@echo "make bench   headrace bench $(BENCH_ARGS)           make wheel    build into dist/"
	@echo "make dist    sdist and wheel, checked, the wheel in an empty environment"
	@echo "make asan    the op tests under AddressSanitizer and UBSan"
	@echo "make emulated  the op tests of AVX512-VNNI's and -BF16's levels on a processor without them"
	@echo "make clean   remove $(VENV), build/ and dist/"

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: expected Python 3.10 or later on PATH, found none;" \
	  "name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Dependency groups need pip 25.1. The build requirements go into the environment itself: without
# isolation a rebuild compiles only what changed.
$(RUN): | $(VENV)/bin/python
	$(PIP) install --upgrade "pip>=25.1" -c constraints-dev.txt
	$(PIP) install -c constraints-dev.txt --group run --group build
	@rm -f $(VENV)/stamp-run-* && touch $@

$(DEV): | $(RUN)
	$(PIP) install -c constraints-dev.txt --group test --group lint
	@rm -f $(VENV)/stamp-dev-* && touch $@

$(BUILT): | $(RUN) $(AWAY)
	$(PIP) install --no-build-isolation --no-deps --force-reinstall \
	  -C build-dir=$(VENV)/build -C cmake.define.HEADRACE_CUDA=$(HEADRACE_CUDA) .
	@rm -f $(VENV)/stamp-built-* && touch $@

$(AWAY):
	@mkdir -p $@

install: $(BUILT)

demo: $(BUILT)
	$(BIN)/headrace stream $(DEMO_ARGS)

bench: $(BUILT)
	$(BIN)/headrace bench $(BENCH_ARGS)

# What tests need is fetched while the extension compiles.
ready: $(RUN)
	@$(MAKE) --no-print-directory -j2 $(DEV) $(BUILT)

style: ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

lint: style
	cd $(AWAY) && $(BIN)/mypy --config-file $(ROOT)/pyproject.toml -p headrace

# mypy is one of the tests, and so runs beside the others. The interpreter is chosen when Triton's
# decorator runs, so that suite is a process of its own.
test: style
	cd $(AWAY) && $(SHARED) -c $(ROOT)/pyproject.toml --rootdir $(ROOT) \
	  --ignore $(ROOT)/tests/triton_interpreter $(PYTEST_ARGS) $(ROOT)/tests
	cd $(AWAY) && TRITON_INTERPRET=1 $(SHARED) -c $(ROOT)/pyproject.toml --rootdir $(ROOT) \
	  $(PYTEST_ARGS) $(ROOT)/tests/triton_interpreter

# The op tests on a build with AddressSanitizer and UBSan, beside the installed one. The C++ library
# comes first too, or the sanitizer finds no __cxa_throw to stand before.
asan: $(DEV) | $(AWAY)
	$(PIP) install --no-build-isolation --no-deps --upgrade --target $(VENV)/asan \
	  -C build-dir=$(VENV)/build-asan -C cmake.define.HEADRACE_CUDA=OFF \
	  -C cmake.define.HEADRACE_SANITIZE=ON .
	cd $(AWAY) && PYTHONPATH=$(abspath $(VENV))/asan ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	  $(SHARED) -c $(ROOT)/pyproject.toml --rootdir $(ROOT) -p no:cacheprovider \
	  $(PYTEST_ARGS) $(ROOT)/tests/ops

# The op tests of the levels that few processors have, their instructions worked out by others.
emulated: $(DEV) | $(AWAY)
	$(PIP) install --no-build-isolation --no-deps --upgrade --target $(VENV)/emulated \
	  -C build-dir=$(VENV)/build-emulated -C cmake.define.HEADRACE_CUDA=OFF \
	  -C cmake.define.HEADRACE_EMULATE=ON .
	cd $(AWAY) && PYTHONPATH=$(abspath $(VENV))/emulated $(SHARED) -c $(ROOT)/pyproject.toml \
	  --rootdir $(ROOT) -p no:cacheprovider -k 'avx512_bf16 or avx512_vnni' $(PYTEST_ARGS) $(ROOT)/tests/ops

format: $(DEV)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

wheel: $(RUN)
	$(PIP) wheel --no-deps -w dist .

# The wheel is built from the archive, not from the tree; what holds for it holds for the archive.
# It is tagged for this machine and has the CPU kernels unless make dist HEADRACE_CUDA=ON asks for
# more; wheels for others come from cibuildwheel.
DIST := $(abspath $(VENV))/dist
dist: HEADRACE_CUDA := OFF
dist: | $(VENV)/bin/python
	rm -rf dist $(DIST)
	$(VENV)/bin/python -m venv $(DIST)/tools
	$(DIST)/tools/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(DIST)/tools/bin/python -m pip install --quiet --group dist
	HEADRACE_CUDA=$(HEADRACE_CUDA) $(DIST)/tools/bin/python -m build --outdir dist .
	$(DIST)/tools/bin/twine check --strict dist/*
	$(DIST)/tools/bin/auditwheel show dist/*.whl
	$(VENV)/bin/python -m venv $(DIST)/empty
	$(DIST)/empty/bin/python -m pip install --quiet -c constraints-dev.txt dist/*.whl
	cd $(DIST) && empty/bin/headrace doctor && empty/bin/headrace check positions

clean:
	rm -rf $(VENV) build dist
