# make demo   trains examples/mnist.py on two workers; make test passes the tests. Everything lives in $(VENV).
# PYTHON=python3.12, VENV=..., WORKERS=... and pip's own configuration are honoured.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
STRATEGY ?= ring
PYTEST_ARGS ?=

BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find tfdist/native -name '*.cc' -o -name '*.h')
NATIVE := $(VENV)/.native

FUZZ_SECONDS ?= 600

.PHONY: demo test test-quick test-multiprocess sanitize fuzz soak lint wheel-check clean help

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(NATIVE)
	TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/tfdist run -n $(WORKERS) examples/mnist.py --strategy $(STRATEGY)

test: test-quick test-multiprocess

test-quick: $(NATIVE) $(VENV)/.test
	$(BIN)/python -m pytest -m "not multiprocess and not slow" $(PYTEST_ARGS)

test-multiprocess: $(NATIVE) $(VENV)/.test
	$(BIN)/python -m pytest -m "multiprocess or slow" --timeout 600 $(PYTEST_ARGS)

# Address and undefined-behaviour sanitizers first, then the thread sanitizer: they cannot share a process.
sanitize: $(NATIVE) $(VENV)/.test
	$(BIN)/python tests/native/sanitize.py address,undefined
	$(BIN)/python tests/native/sanitize.py thread

# 200 kills of groups at random times, of which make test samples a few; then fit, with a fault every ten seconds.
soak: $(NATIVE) $(VENV)/.test
	TFDIST_SOAK=full $(BIN)/python -m pytest tests/elastic/test_soak_of_groups.py -s $(PYTEST_ARGS)
	for strategy in ring sync async; do $(BIN)/python -m tests.elastic.soak_of_fit --strategy $$strategy || exit 1; done

# Each target for ten minutes; guided by coverage where clang++ is installed, and atheris (which `-` allows to be missing).
fuzz: $(NATIVE) $(VENV)/.test
	-$(BIN)/python -m pip install --quiet atheris
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel-check:
	tests/wheel_two_tensorflows.sh $(PYTHON)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache tfdist/native/*.so tfdist/native/*.dylib

# The stamps below make the second call quick; each is touched when its step has succeeded. Installing builds the native core too.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'setuptools>=70.1'
	@touch $@

$(VENV)/.installed: $(VENV)/.created setup.py setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	@touch $@ $(NATIVE)

$(NATIVE): $(VENV)/.installed $(NATIVE_SOURCES)
	$(BIN)/python setup.py --quiet build_native --inplace
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[cpu,test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.created setup.cfg
	$(BIN)/python -m pip install --quiet 'ruff>=0.9'
	@touch $@
