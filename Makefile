# make demo    trains a sentiment classifier with fastrnn beside torch.nn; builds with CUDA where a GPU is visible
# make test    runs all tests; builds with CUDA wherever nvcc is, for 8.0 and 9.0a and the visible GPUs
# make test-slow  the tests that build the package anew or train the demo, too
# make lint    formatting, ruff and mypy
# make format  formats the code
# make docs    the API reference, from the docstrings, in build/docs
#
# Each makes .venv if it is missing, installs what is needed, and builds again when sources have changed. FASTRNN_CUDA,
# TORCH_CUDA_ARCH_LIST, MAX_JOBS and CUDA_HOME reach the build (setup.py).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CPP_FILES := $(shell find benchmarks csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
GPU_ARCHS := $(BIN)/python -c "import torch; \
  print(*{'%d.%d' % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}, sep=';')"
PYTEST_ARGS ?= -n auto --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Verbose, so that the compilers' words are seen; without dependencies, which $(VENV)/ready has installed.
BUILD := $(BIN)/python -m pip install --disable-pip-version-check --verbose --no-build-isolation --no-deps --editable .

# The demo takes the test's build where there is one: it holds no less.
DEMO_BUILD := $(or $(wildcard $(VENV)/built-for-test),$(VENV)/built-for-demo)

.PHONY: demo test test-slow lint format docs build-test clean

demo: $(DEMO_BUILD)
	$(BIN)/python -m examples.sentiment

test: build-test
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: build-test
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

build-test: $(VENV)/built-for-test

lint: $(VENV)/ready
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/clang-format -i $(CPP_FILES)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/ready
	$(BIN)/python docs/reference.py build/docs

clean:
	rm -rf $(VENV) build fastrnn/*.so *.egg-info

# torch, the build tools and the extras of pyproject.toml: everything but fastrnn itself.
$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
	  extras = [v for k, v in p['project']['optional-dependencies'].items() if k != 'bench']; \
	  print(*p['build-system']['requires'], *p['project']['dependencies'], *sum(extras, []), sep='\n')" > $(VENV)/requirements.txt
	$(INSTALL) --requirement $(VENV)/requirements.txt
	touch $@

$(VENV)/built-for-test: $(VENV)/ready $(SOURCES)
	gpus="$$($(GPU_ARCHS) | sed 's/\b[89]\.0;*//g')"; \
	  TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-8.0;9.0a$${gpus:+;$$gpus}}" $(BUILD)
	touch $@

$(VENV)/built-for-demo: $(VENV)/ready $(SOURCES)
	gpus="$$($(GPU_ARCHS))"; FASTRNN_CUDA="$${FASTRNN_CUDA:-$${gpus:+auto}}"; FASTRNN_CUDA="$${FASTRNN_CUDA:-0}" $(BUILD)
	touch $@
