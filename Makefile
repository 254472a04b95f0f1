PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test bench lint notebook clean

demo: .venv/installed          ## the main job on real data; ends with a marginal-utility figure
	$(BIN)/hskd demo

test: .venv/installed          ## the test suite
	$(BIN)/python -m pytest

bench: .venv/installed         ## times of training, extraction and stores on this machine; on a quiet one
	$(BIN)/hskd bench

lint: .venv/installed          ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebook: .venv/installed      ## Jupyter, in the folder of notebooks
	$(BIN)/jupyter lab notebooks

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[offline,cluster,notebook,dev]'
	touch $@

clean:                         ## forget installation and artifacts (results stay)
	rm -rf .venv work
