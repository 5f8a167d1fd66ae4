# make run    set up .venv and run the newcomer's run        make run ARGS="seed=1 pool=two"
# make test   set up .venv and pass the tests
# make check  lint, types, import contracts, package build

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: run test check install

run: $(INSTALLED)
	$(VENV)/bin/rlserve launch conf/rlhf.yaml $(ARGS)

# A process a core, four at most: whole runs have processes of their own. A file's tests share their fixtures, so
# they stay together; files begin in the order of their names, whole runs before units.
test: $(INSTALLED)
	$(VENV)/bin/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python tests/check_package.py

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
