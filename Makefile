# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

# Two processes share the tests, a file each at a time: what waits for others runs beside what computes.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-slow lint clean

demo: .venv/installed
	@$(BIN)/foretrain train experiment=demo
	@echo; echo 'A sample (foretrain generate runs/demo --prompt "class"):'; echo
	@$(BIN)/foretrain generate runs/demo --prompt "class" --tokens 120

test: .venv/installed
	$(PYTEST)

# What starts no process and trains nothing, less the simulated studies of the laws: for every edit.
test-fast: .venv/installed
	$(PYTEST) -m 'not slow and not processes' --ignore-glob='*/scaling/*interval*' --ignore-glob='*/scaling/*report*'

# What takes minutes and seldom breaks alone, and ten times the examples of every property.
test-slow: .venv/installed
	$(PYTEST) -m slow
	$(PYTEST) -m 'not slow and not processes' --hypothesis-profile=thorough

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Outdated as soon as what is to be installed has changed.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Foretrain needs Python 3.11 or newer; type: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into .venv ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs data_cache
