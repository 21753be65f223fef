# make test       what CI runs first: the quick tests and test.sh, in some two minutes on two cores
# make test-slow  the long, and more cases   make test-all  both, and tests/matrix: each Python, SQLite, platform
# make bench      figures against the peers  make storm     the killer
# ARGS="..." hands options on, as in: make test ARGS="-k retry"
PYTHON ?= python3
JOBS   ?= 6
VENV   := .venv
STAMP  := $(VENV)/requirements.stamp
PY     := $(VENV)/bin/python
PYTEST := $(PY) -m pytest tests
CACHED := tests/__pycache__/stamp
# The bytecode of the tests is kept, whatever the shell says: without it each of the processes that run them spends 7 s on making it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test test-slow test-all bench storm clean

test: $(STAMP) $(CACHED)
	$(PYTEST) -m "not slow and not broad" -n $(JOBS) $(ARGS)
	PYTHON=$(PY) sh test.sh

test-slow: $(STAMP) $(CACHED)
	$(PYTEST) -m "slow or broad" --timeout 600 -n $(if $(filter 1,$(JOBS)),1,4) $(ARGS)

test-all: test test-slow
	$(PY) tests/matrix/matrix.py

bench:
	$(PYTHON) tests/bench/bench.py $(ARGS)

storm: $(STAMP)
	$(PY) tests/storm.py $(ARGS)

# One process makes the bytecode for all. An error in a test file is told by the run that follows.
$(CACHED): $(STAMP) queuectl.py $(wildcard tests/*.py)
	@$(PYTEST) --collect-only -q >/dev/null || true
	@mkdir -p $(@D) && touch $@

# The stamp is written last: a venv whose making was interrupted is made again.
# `sys.executable` looks through pyenv's shims, which depend on the directory.
$(STAMP): tests/requirements.txt
	rm -rf $(VENV)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 1; }
	"$$($(PYTHON) -c 'import sys; print(sys.executable)')" -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) __pycache__ .hypothesis .pytest_cache tests/.pytest_cache tests/.hypothesis
	find tests -name __pycache__ -type d -exec rm -rf {} +
