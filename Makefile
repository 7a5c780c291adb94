# Two commands do all the set-up: `make demo` and `make test`. Both make the environment first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo test lint docs soundness benchmark clean

# torch comes first, by itself, so that pip keeps the build that suits the machine.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "torch>=2.11,<2.14"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/vlmc build specs/flamingo.yaml
	$(BIN)/vlmc run specs/flamingo.yaml --mini --image docs/images/shapes.png --prompt "What is in the picture?"

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/vlmc build --check specs/*.yaml

# Refreshes everything that is generated and committed.
docs: $(VENV)/installed
	$(BIN)/python -m vlmc.spec.reference docs
	$(BIN)/vlmc build specs/*.yaml

# 20,000 random designs in place of the 1,000 of `make test`; about ten minutes.
soundness: $(VENV)/installed
	VLMC_SOUNDNESS_EXAMPLES=20000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/test_soundness.py

benchmark: $(VENV)/installed
	$(BIN)/python benchmarks/start.py

clean:
	rm -rf $(VENV)
