# Each target sets up all it needs; only Python, pip and make must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint clean

# Trains on generated pictures, asks about pictures it has never seen, then answers one question.
demo: $(VENV)/.demo
	KERAS_BACKEND=jax $(BIN)/python train/train_nanovlm.py --recipe demo --restart
	KERAS_BACKEND=jax $(BIN)/dl-techniques generate runs/demo runs/demo/pictures/00.png "How many objects are there?"

# Lint, then the suite once per backend, each in its own process; what needs no backend runs once.
test: lint
	for backend in jax tensorflow; do \
	  echo "== $$backend" && \
	  KERAS_BACKEND=$$backend $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not no_backend" || exit 1; \
	done
	@echo "== torch"
	KERAS_BACKEND=torch $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[jax,plot]"
	touch $@

# PyTorch goes first: what comes later then takes the version that is there.
$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e ".[jax,tensorflow,torch,data,plot,serve,eval,dev]"
	touch $@

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache
