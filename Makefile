# Two commands do all the set-up: `make sweep` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test nightly clean

sweep: .venv/installed
	$(BIN)/python -m raybench.tune --space search_spaces/pruning.py --trials 16

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m 'not workers and not ray and not nightly' --numprocesses 2 --dist loadscope
	$(BIN)/pytest -m '(workers or ray) and not nightly'

# All pairs of techniques, random experiments, foreign models, 7,000 damaged files, 200 kills: two
# hours on two cores.
nightly: .venv/installed
	$(BIN)/pytest -m 'nightly and not workers and not ray' --numprocesses 2
	$(BIN)/pytest -m 'nightly and (workers or ray)'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv
