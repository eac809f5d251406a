# make check: formatting, lint, types, layers, tests. PYTHON chooses the environment.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
FOLDERS := kernels models profiles exporters bench

.PHONY: check static format lint types layers test links conformance operators docs fuzz kills foreign

check: static test

static: format lint types layers

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types: links
	$(PYTHON) -m mypy

layers: links
	PYTHONPATH=.links $(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

# -P keeps the root off sys.path, where `models` would be found a second time.
test:
	$(PYTHON) -P -m pytest -n 2 --cov --cov-report=term --cov-fail-under=90

# Every operator, then every generated model, on every target, resumed where it was left: build/conformance.jsonl and
# build/generated.jsonl. Two and a half hours on one core; exit 3 where a row is a failure.
conformance: links
	PYTHONPATH=.links $(PYTHON) -P -m edgesmith.exporters.verification.sweep --write
	$(MAKE) operators
	PYTHONPATH=.links $(PYTHON) -P -m edgesmith.exporters.generated.campaign

operators: links
	PYTHONPATH=.links $(PYTHON) -P -c \
	  "from edgesmith.exporters.verification import verdicts as v; print(v.markdown(v.table()), end='')" > docs/operators.md

# The pages of docs/ as a site, build/site: pip install -c constraints.txt -e ".[docs]". A link that leads nowhere fails.
docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

# Every reader against 10,000 damaged files: minutes on one core; exit 1 where one was a bug. SEED=1 damages them otherwise.
SAMPLES ?= 10000
SEED ?= 0
fuzz: links
	PYTHONPATH=.links:tests OMP_NUM_THREADS=1 $(PYTHON) -P -m support.fuzzing $(SAMPLES) $(SEED)

# What setup.py does for an installed package, for tools that read source trees: one import root.
links:
	rm -rf .links && mkdir -p .links/edgesmith
	$(foreach folder,$(FOLDERS),ln -sfn ../../$(folder) .links/edgesmith/$(folder);)
	ln -sfn $(addprefix ../../,$(filter-out %/__pycache__,$(wildcard src/edgesmith/*))) .links/edgesmith/

# Models of timm and transformers, exported and verified, into docs/foreign-models.md: an hour on one core. They are no
# dependencies: see bench/experiments/foreign.py.
foreign: links
	PYTHONPATH=.links $(PYTHON) -P -m edgesmith.bench.experiments.foreign

# Two hundred kills of commands at random moments; half an hour on one core.
kills:
	$(PYTHON) -P -m pytest tests/test_kills.py tests/test_interrupts.py --kills 200 -n 0
