# Every target makes and fills its own virtual environment; all it needs is make, a shell and Python >= 3.11.
#
#   make test ARGS="-k breaker"     options for pytest (demo, bench: for the program)
#   make test ARGS="-n0 --pdb"      in one process, with a debugger
#   make test PYTHON=/opt/python3   another interpreter; after `make clean` if .venv exists already

.DEFAULT_GOAL := help
# One pip at a time in one environment.
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
ARGS ?=
# A version manager may list interpreters that do not run, and a system may split `venv` from Python, so each
# one is tried.
SUITABLE := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3 python; do \
    if $$python $(SUITABLE); then command -v $$python; break; fi; done)

# What the caller's shell may hold and would reach into the environment.
unexport PYTHONHOME PYTHONPATH PIP_PREFIX PIP_TARGET PIP_USER VIRTUAL_ENV
# Tests start hundreds of interpreters, and each would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PACKAGE := $(VENV)/.resilient-package
GROUP := $(VENV)/.resilient-group-
# Holds the folder the environment was made for. One without it, from another folder or with a Python that no
# longer runs is not ours to trust: it is made anew.
MADE_FOR := $(VENV)/.resilient-made-for
ifneq ($(shell $(PY) -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)$(shell cat $(MADE_FOR) 2>/dev/null),True$(CURDIR))
.PHONY: $(MADE_FOR)
endif

# What mypy checks beside src: whatever of it is there.
TYPED := $(wildcard examples bench tests/support tests/typing)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(GROUP)demo ## Play ten incidents to a small shop, without and with resilient: a slow API, leaks, a lost store, a cut, a flood ...
	$(PY) -m examples.shop $(ARGS)

.PHONY: test
# Two processes share the tests; tests/conftest.py says which of them come last, and alone.
test: $(GROUP)test $(GROUP)demo ## Run every test, the code in the docs included
	$(PY) -m pytest -n 2 $(ARGS)

.PHONY: soak
soak: $(GROUP)test $(GROUP)demo ## Run shared limits' faults, pools, stress and incidents at full length: longer, and more of all
	RESILIENT_SOAK=1 $(PY) -m pytest tests/fleet tests/health tests/pool tests/stress tests/policies/test_adaptive_simulation.py $(wildcard tests/incidents/test_*_demo.py) $(ARGS)

.PHONY: check
check: $(GROUP)check $(GROUP)test $(GROUP)demo ## Lint, check the format and the types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy src $(TYPED)
	$(PY) -m basedpyright

.PHONY: coverage
coverage: $(GROUP)test $(GROUP)demo ## Run the tests and report the lines and branches they miss
	$(PY) -m coverage run -m pytest $(ARGS)
	$(PY) -m coverage report

.PHONY: bench
bench: $(GROUP)bench ## Measure the overhead against the peers, side by side
	$(PY) -m bench.overhead $(ARGS)

.PHONY: simulate
simulate: $(PACKAGE) ## Play ten minutes of traffic to each adaptive limit, and write the tables and pictures of the docs
	$(PY) -m bench.simulation $(ARGS)

.PHONY: docs
docs: $(GROUP)docs ## Build the documentation into site/, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

.PHONY: clean
clean: ## Remove the environment and everything built or cached
	rm -rf $(VENV) site dist build htmlcov .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE_FOR):
	@python='$(PYTHON)'; test -n "$$python" && "$$python" $(SUITABLE) || { \
	    echo "Needed: Python >= 3.11 with its modules venv and ensurepip; found: $${python:-none}." >&2; \
	    echo 'Install one (Debian: python3-venv), or name it: make PYTHON=/path/to/python3 ...' >&2; exit 1; }; \
	echo "Making $(VENV) with $$python"; rm -rf $(VENV) && "$$python" -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	@printf '%s' '$(CURDIR)' > $@

$(PACKAGE): $(MADE_FOR) pyproject.toml
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(GROUP)%: $(PACKAGE)
	$(PY) -m pip install --quiet --group $*
	@touch $@
