# What CI runs, one target each. PYTHON is the interpreter of the environment.
PYTHON ?= python

.PHONY: check lint types test

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest
	$(PYTHON) -m pytest -m slow
