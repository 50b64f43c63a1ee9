PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help .venv test lint clean

help:  ## List the targets
	@grep -hE '^[.a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

.venv: .venv/.installed  ## Make the environment and install OneNet in it

.venv/.installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[test]'
	touch $@

test: .venv/.installed  ## Run the tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

lint: .venv/.installed  ## Check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:  ## Remove the environment and what building and testing leave behind
	rm -rf .venv build dist .pytest_cache .ruff_cache projects/OneNet/onenet.egg-info
	find configs demo projects tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
