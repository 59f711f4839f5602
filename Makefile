# Every command of the project; `make` alone lists them. Needs Python 3.11, 3.12 or 3.13.

PYTHON ?= python3
LOGDIR ?= outputs
ARGS ?= experiment=mnist_scd_classes

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install train test check mutants soak audit gpu lint format tensorboard page

help: ## list the commands
	@echo 'usage: make COMMAND [ARGS="..."] [PYTHON=python3.12]'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv and install into it; does nothing when nothing changed

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	  || { echo 'error: $(PYTHON) is missing or not Python 3.11-3.13; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[dev]' -c constraints.txt
	@touch $@

train: $(INSTALLED) ## distil a guided teacher on MNIST; another job: make train ARGS="objective=sct"
	$(BIN)/python run.py $(ARGS)

test: lint ## all that `check` does, and the slow tests too
	$(BIN)/python -m pytest -n auto

check: lint ## format, lint, types, import direction and the fast tests
	$(BIN)/python -m pytest -n auto -m "not slow"

mutants: $(INSTALLED) ## put deliberate faults in, one by one: do the fast tests notice them?
	$(BIN)/python tests/mutants $(NAMES)

soak: $(INSTALLED) ## faults without end: kills, full disks, bad input, random runs (half an hour)
	$(BIN)/python -m pytest --soak -s

audit: $(INSTALLED) ## known holes in what is installed, and risky calls in the code
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]' -c constraints.txt
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml run.py scm benchmark
	@$(BIN)/pip-audit --skip-editable --progress-spinner off >.venv/audit.log 2>&1; code=$$?; \
	  if grep -qE '^Traceback|blocking this service|^pip .*could not be audited' .venv/audit.log; then \
	    echo 'error: known holes were not looked up, pypi.org does not answer: .venv/audit.log' >&2; \
	    exit 2; \
	  fi; cat .venv/audit.log; exit $$code

gpu: $(INSTALLED) ## on a GPU: every number of docs/performance.md, then the large recipes from nothing
	@mkdir -p outputs/gpu
	$(BIN)/python -m benchmark --device cuda --compile default cuda_graphs \
	  --out outputs/gpu/step.json > outputs/gpu/step.md
	set -e; for suite in seed memory sampling data scaling attention; do $(BIN)/python -m benchmark \
	  --suite $$suite --device cuda --out outputs/gpu/$$suite.json > outputs/gpu/$$suite.md; done
	$(BIN)/python run.py experiment=mnist_teacher_gpu trainer.device=cuda hydra.run.dir=outputs/gpu/teacher
	$(BIN)/python run.py experiment=mnist_scd_gpu trainer.device=cuda data.teacher=outputs/gpu/teacher \
	  hydra.run.dir=outputs/gpu/scd
	$(BIN)/python run.py experiment=mnist_dmd_gpu trainer.device=cuda data.teacher=outputs/gpu/teacher \
	  objective.init=outputs/gpu/scd hydra.run.dir=outputs/gpu/dmd

lint: $(INSTALLED) ## format, lint and types, nothing run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED) ## put the code into its format, mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tensorboard: $(INSTALLED) ## show all runs at http://127.0.0.1:6006; LOGDIR=outputs/sweeps/NAME: one sweep
	$(BIN)/tensorboard --logdir $(LOGDIR) --host 127.0.0.1 --samples_per_plugin images=100

page: $(INSTALLED) ## write what is built of docs/page anew; needs npm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[onnx]' -c constraints.txt
	$(BIN)/python docs/page/build.py --overwrite
