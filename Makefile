# Every target sets up what it needs in .venv; nothing has to be installed by hand.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Two threads fight on two cores when pytest also runs two workers.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: setup demo test test-slow test-faults lint results reproduce clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(RUN)/caq demo -o demo

test: lint
	$(TEST_ENV) $(RUN)/pytest -n 2 -m 'not slow and not gpu' --cov --cov-report=term --cov-fail-under=90

test-slow: setup
	$(TEST_ENV) $(RUN)/pytest -m slow

test-faults: setup
	$(TEST_ENV) $(RUN)/python -m tests.faults.table

lint: setup
	$(RUN)/ruff check src tests benchmarks
	$(RUN)/ruff format --check src tests benchmarks
	$(RUN)/mypy
	$(RUN)/lint-imports

results: setup
	$(RUN)/caq reproduce table1 --seeds 5 -o results

reproduce: setup
	for table in table1 table2 table3 table4 tableS1 calibration; do \
	  $(RUN)/caq reproduce $$table --preset paper -o reproduce || exit 1; \
	done

clean:
	rm -rf $(VENV) demo results reproduce build .mypy_cache .pytest_cache .ruff_cache
