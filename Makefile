PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo quick test test-oldest test-newest lint types docs ledger tutorials benchmarks lock clean

demo: .venv/demo.stamp
	$(BIN)/bayesmerge demo

# Most of the suite's time is compilation, and XLA's older emitters compile faster: docs/design.md.
quick test: export XLA_FLAGS ?= --xla_cpu_use_fusion_emitters=false
PYTEST := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# What to run before a commit: two minutes on two cores.
quick: lint types
	$(PYTEST) tests/test_laws.py tests/test_errors.py bayesmerge docs/index.md

test: lint types docs
	$(PYTEST) --durations 20

# The suite on the oldest releases that pyproject admits, or on the newest: needs uv, and for the
# newest JAX a PYTHON of its own choice, e.g. `make test-newest PYTHON=python3.13 TESTS=tests/test_numpyro.py`.
test-oldest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-oldest test-newest:
	uv venv --quiet --clear --python $(PYTHON) .venv-$@
	uv pip install --quiet --python .venv-$@ --resolution $(RESOLUTION) --group dev \
		--editable ".[demo,numpyro]"
	.venv-$@/bin/pytest -n auto --dist loadfile $(TESTS)

lint: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev.stamp
	$(BIN)/mypy

docs: .venv/dev.stamp
	$(BIN)/sphinx-build --quiet --fail-on-warning --nitpicky --fresh-env docs docs/_build/html

ledger: .venv/dev.stamp
	cd tests && ../$(BIN)/python -m ledger.page

tutorials: .venv/dev.stamp
	cd tutorials && ../$(BIN)/jupytext --to ipynb --execute *.py

lock:
	uv pip compile --quiet --universal --python-version 3.11 --extra demo --generate-hashes \
		--no-header pyproject.toml -o requirements/demo.lock
	uv pip compile --quiet --universal --python-version 3.11 --extra demo --extra numpyro --group dev \
		--generate-hashes --no-header pyproject.toml -o requirements/dev.lock \
		--constraints requirements/demo.lock

clean:
	rm -rf .venv .venv-test-* docs/_build

.venv/%.stamp: requirements/%.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
