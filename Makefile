# make demo | test | lint | format | clean. Needs Python 3.11+ with venv, a C++17 compiler and pip's
# access to PyPI; CMake, Ninja and MPI come as wheels. Everything is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
# The reference that tests compare with. Elsewhere than where pip finds a CPU build, this avoids
# gigabytes of CUDA wheels:
#   make test TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

BUILD_FILES := pyproject.toml CMakeLists.txt CMakePresets.json
SOURCES := $(shell find cmake flexq_kernels ft converter orchestrate -type f \
  -not -path '*/__pycache__/*') $(BUILD_FILES)
CXX_FILES := $(shell find flexq_kernels ft tests/cpp \
  -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')
PY_DIRS := converter orchestrate ft/binding/package tests

NVCC := $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)

.PHONY: demo test lint format clean install-dev test-cpp test-cuda test-python

demo: $(VENV)/.installed
	bash scripts/demo.sh

test: lint test-cpp test-cuda test-python

lint: install-dev
	ruff check $(PY_DIRS)
	ruff format --check $(PY_DIRS)
	clang-format --dry-run -Werror $(CXX_FILES)
	mypy --strict -p flexq_ft

test-cpp: install-dev
	cmake --preset cpu
	cmake --build --preset cpu
	ctest --preset cpu

# The GPU side must compile for 80 and 90a wherever there is a compiler for it; it runs where there
# is a GPU.
test-cuda: install-dev
ifeq ($(NVCC),)
	@echo "no nvcc here: the GPU side is not compiled"
else
	cmake --preset cuda -DCMAKE_CUDA_COMPILER=$(NVCC)
	cmake --build --preset cuda
	ctest --test-dir build_cuda --output-on-failure -R '^test_gpu_'
endif

# Last, so that pytest's summary is the last line.
test-python: install-dev test-cpp test-cuda lint
	python -m pytest

format: install-dev
	ruff check --fix $(PY_DIRS)
	ruff format $(PY_DIRS)
	clang-format -i $(CXX_FILES)

clean:
	rm -rf $(VENV) build build_release build_debug build_asan build_cuda build_cuda_all
	rm -rf dist demo sweeps
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)

# The package, as a user installs it. pip keeps build/, so a second build compiles what changed.
$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	python -m pip install --quiet '.[mpi]'
	touch $@

# The tools and oracles of the tests; the package itself stays as it was installed above.
install-dev: $(VENV)/.installed $(VENV)/.installed-dev
$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	python -m pip install --quiet $(TORCH)
	python -m pip install --quiet 'flexq-ft[dev,mpi,torch]'
	touch $@
