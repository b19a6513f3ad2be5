# Two commands do all the set-up: `make sweep` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test nightly gpu clean

sweep: .venv/installed
	$(BIN)/python -m raybench.tune --space search_spaces/pruning.py --trials 16

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m 'not workers and not ray and not nightly' --numprocesses 2 --dist loadscope
	$(BIN)/pytest -m '(workers or ray) and not nightly'

# All pairs of techniques, random experiments, foreign models, 2,000 damaged files, 200 kills: two
# hours on two cores.
nightly: .venv/installed
	$(BIN)/pytest -m 'nightly and not workers and not ray' --numprocesses 2
	$(BIN)/pytest -m 'nightly and (workers or ray)'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# On a machine with a GPU: all parts, or one of them with PART=b. Each takes at most nine minutes.
PART ?= a b c d e
gpu: .venv/installed
	for part in $(PART); do $(BIN)/python -m raybench.bench gpu --part $$part --minutes 9 --page docs/gpu.md || exit; done

clean:
	rm -rf .venv
