# `make tables`, `test` and `demo` set everything up first, in .venv, from Python 3.11 or 3.12 alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: tables demo readme test gpu-check lint clean

tables: $(VENV)/.installed  ## every table, from the weights in ckpts/
	$(BIN)/python supp_tbl.py --gpu 0

demo: $(VENV)/.installed-demo  ## the local web page, at the address that it prints
	$(BIN)/python demo.py

readme: $(VENV)/.installed  ## every number and picture of the README's results, from ckpts/
	$(BIN)/python -m pip install --quiet bm3d  # free for research only, hence no requirement
	$(BIN)/python -m figs.make_readme

test: $(VENV)/.installed-dev lint  ## lint and the whole test suite, on the CPU (and CUDA if there)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

gpu-check: $(VENV)/.installed-dev  ## CUDA tests and speed on GPU 0, in ten minutes
	$(BIN)/python -m benchmarks.gpu_check

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.installed-demo: requirements-demo.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-demo.txt
	touch $@

clean:
	rm -rf $(VENV) cache supp runs
