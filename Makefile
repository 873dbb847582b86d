# `make` lists the targets. Each sets up .venv first, if that has not been done: a few minutes, once.
#
# On Linux, pip's usual torch is the CUDA build, several GB. Without a GPU, download the CPU wheel of the torch version
# in requirements.lock (PyTorch's installation page says where) and show pip its folder:
#   PIP_FIND_LINKS=~/Downloads make test

# The first of these that is there and supported; or one of your own: make PYTHON=/path/to/it
PYTHON ?=
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3 python
ARGS ?=
# Those that take many hours say so before they begin, and are named one by one.
HOURS := $(patsubst %,tests/bench_%.py,terms minutes baseline clicks headline)
BENCHES ?= $(filter-out $(HOURS),$(sort $(wildcard tests/bench_*.py)))

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALLED := .venv/.installed
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

CORE := $(patsubst %,tests/test_%.py,estimate fusion kernels levels losses metrics network points predict preprocess \
  slices train)
LESSONS := $(sort $(wildcard notebooks/*.ipynb)) $(sort $(wildcard notebooks/course/source/*/*.ipynb))

.PHONY: help run test quick fresh lab notebooks course assignment site bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

run: $(INSTALLED)  ## the whole procedure on synthetic scans, into out/synthetic; options in ARGS="--seed 2 ..."
	$(BIN)/pointseg table1 --out out/synthetic $(ARGS)

test: $(INSTALLED)  ## ruff, the tests, and every notebook from top to bottom
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -q --durations=5 tests
	$(BIN)/python -m pytest -q --nbval-lax --nbval-current-env --durations=15 $(LESSONS)

quick: $(INSTALLED)  ## the tests of the core in two minutes: what to run while changing a loss
	$(BIN)/python -m pytest -q --durations=5 $(CORE)

fresh: $(INSTALLED)  ## README's lines without make, run as they stand in a fresh copy: minutes, and the network
	FRESH=1 $(BIN)/python -m pytest -q tests/test_install.py

lab: $(INSTALLED)  ## JupyterLab, opened in notebooks/
	$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

notebooks: $(INSTALLED)  ## run every notebook and save it with its outputs
	$(BIN)/python notebooks/execute.py

course: $(INSTALLED)  ## the students' copies of the assignments, into notebooks/course/release
	@names=$$($(BIN)/python notebooks/course/assignments.py) && bin="$$PWD/$(BIN)" && cd notebooks/course && \
	for name in $$names; do PATH="$$bin:$$PATH" "$$bin/nbgrader" generate_assignment --force $$name || exit 1; \
	done

assignment: $(INSTALLED)  ## a new assignment of the course, to be filled in: make assignment NAME=entropy
	@$(BIN)/python notebooks/course/assignments.py $(or $(NAME),$(error make assignment NAME=entropy: found no NAME))

site: $(INSTALLED)  ## notebooks as saved, READMEs and the modules' source as web pages, from out/site/index.html on
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.lock -r notebooks/site/requirements.lock
	rm -rf out/site out/site.part
	$(BIN)/python -m sphinx -q -W -c notebooks/site -d out/site.part/doctrees . out/site.part/html
	mv out/site.part/html out/site
	rm -r out/site.part
	SITE=out/site $(BIN)/python -m pytest -q tests/test_site.py

bench: $(INSTALLED)  ## the benchmarks of an hour; others with BENCHES="tests/bench_minutes.py ..."
	@for script in $(BENCHES); do \
	  test -e "$$script" || { echo "no benchmarks (tests/bench_*.py) to run"; break; }; \
	  echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

clean:  ## remove out/ and all caches; .venv stays
	rm -rf out build *.egg-info .pytest_cache .ruff_cache
	find . \( -name .venv -o -name .git \) -prune -o \
	  -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The stamp is written last, so an installation that was broken off is taken up again. It holds this folder's path:
# in a moved or copied folder .venv would go on using the code of the old one.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif
$(INSTALLED): requirements.lock pyproject.toml
	@rm -f $@
	@{ $(BIN)/python -c '$(SUPPORTED)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1 || { \
	  for python in $(or $(if $(PYTHON),"$(PYTHON)"),$(PYTHONS)); do \
	    if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	      echo "creating .venv with $$python"; exec "$$python" -m venv --clear .venv; \
	    fi; \
	  done; \
	  echo "pointseg needs Python 3.11 to 3.14, found none as $(or $(PYTHON),$(PYTHONS));" \
	    "if you have it: make PYTHON=/path/to/it" >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@pwd -P > $@
