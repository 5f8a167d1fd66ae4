# make run    set up .venv and run the newcomer's run        make run ARGS="seed=1 pool=two"
# make test   set up .venv and pass the tests
# make check  lint, types, import contracts, package build

PYTHON ?= python3
VENV := .venv
# Where this is set, every one of the many processes compiles all of rlserve anew.
unexport PYTHONDONTWRITEBYTECODE
INSTALLED := $(VENV)/.installed

# Tests of whole runs mostly wait for processes that they have started: one process more than processors keeps these
# busy. Six at most, for each holds some gigabytes.
NUM_TEST_PROCESSES = $$($(VENV)/bin/python -c 'import os; print(min(len(os.sched_getaffinity(0)) + 1, 6))')

.PHONY: run test check lint types imports package install

run: $(INSTALLED)
	$(VENV)/bin/rlserve launch conf/rlhf.yaml $(ARGS)

# A file's tests share their fixtures, so they stay together; files begin in the order of their names, whole runs
# before units.
test: $(INSTALLED)
	$(VENV)/bin/pytest -n $(NUM_TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

# All at once; each prints when it is done, and one that fails does not keep the others from being heard.
check: $(INSTALLED)
	@$(MAKE) --no-print-directory --jobs --keep-going --output-sync=target lint types imports package

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(INSTALLED)
	$(VENV)/bin/mypy

imports: $(INSTALLED)
	$(VENV)/bin/lint-imports

package: $(INSTALLED)
	$(VENV)/bin/python tests/check_package.py

install: $(INSTALLED)

# DeepSpeed's build asks the torch that is installed, so it comes after it, and into the same environment.
# uv installs in a quarter of pip's time. It takes packages from where pip is set up to.
PIP_SETTING = $$($(VENV)/bin/pip config list | sed -n "s/^[^=]*\.$(1)='\(.*\)'$$/\1/p" | head -n 1)
# Modules are compiled on all processors; not those that hardly anything imports, of which some are of a later Python.
RARELY_IMPORTED := /(tests?|testing|plotly|fontTools|networkx|_inductor|onnx|ray/(data|llm|rllib|serve|train|tune)|transformers/models)/
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt uv
	UV_DEFAULT_INDEX=$(call PIP_SETTING,index-url) UV_FIND_LINKS=$(call PIP_SETTING,find-links) \
		$(VENV)/bin/uv pip install --quiet --python $(VENV) --constraint constraints.txt --editable '.[dev]'
	UV_DEFAULT_INDEX=$(call PIP_SETTING,index-url) UV_FIND_LINKS=$(call PIP_SETTING,find-links) DS_BUILD_OPS=0 \
		$(VENV)/bin/uv pip install --quiet --python $(VENV) --constraint constraints.txt --no-build-isolation deepspeed
	$(VENV)/bin/python -m compileall -qq -j 0 -x '$(RARELY_IMPORTED)' $(VENV)/lib || true
	touch $@
