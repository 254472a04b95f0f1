PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test torture bench docs lint format types notebook clean

demo: .venv/installed          ## a small study on real data, up to its marginal-utility figure
	$(BIN)/hskd demo

test: .venv/installed          ## the test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Compared with the suite, this interrupts commands 5 times as often, damages files 20 times as often, and tries 50 times
# as many random inputs: 10,000 of each kind.
torture: .venv/installed       ## attack files, input and running commands for hours (docs/reliability.md)
	HSKD_TORTURE=5 $(BIN)/python -m pytest tests/torture --timeout 36000
	HSKD_TORTURE=20 $(BIN)/python -m pytest -m torture --ignore tests/torture --timeout 36000
	HSKD_TORTURE=50 $(BIN)/python -m pytest -m fuzz --timeout 36000

bench: .venv/installed         ## time training, extraction and stores on this machine; close other programs first
	$(BIN)/hskd bench

docs: .venv/installed          ## build the documentation as a site and check its links: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: .venv/installed types    ## ruff, mypy and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && $(CURDIR)/$(BIN)/lint-imports --no-cache --no-logo $(CURDIR)/pyproject.toml

format: .venv/installed        ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy and import-linter find modules by their folders, so links make one package of the three folders.
types: .venv/installed         ## mypy
	rm -rf build/types
	mkdir -p build/types/hskd
	ln -s $(CURDIR)/hskd/* build/types/hskd/
	ln -s $(CURDIR)/analysis $(CURDIR)/benchmarks build/types/hskd/
	MYPYPATH=build/types $(BIN)/mypy -p hskd

notebook: .venv/installed      ## Jupyter, in the folder of notebooks
	$(BIN)/jupyter lab notebooks --ServerApp.ip=127.0.0.1

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[analysis,bench,offline,cluster,notebook,dev]'
	touch $@

clean:                         ## delete the installation and all artifacts (results stay)
	rm -rf .venv work build
