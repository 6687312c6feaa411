# Everything sets itself up: `make demo` and `make test` need Python 3.11 or 3.12 with venv, and a
# network the first time.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$p && break; done)
# Compiled modules are kept: the suites start dozens of processes, each of which imports them.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow test-night test-faults test-fuzz check bench bench-demo bench-roadscene bench-agreement bench-sweep bench-kills bench-elastic bench-spot bench-gpu docs docs-site pretrain clean

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install one, or make PYTHON=/path/to/it"; exit 1; }
	@echo "installing into .venv (about 3 minutes and 6 GB the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,dev]"
	@touch $@

setup: $(READY)

demo: setup  ## draw identities, train CCLNet on a local Ray cluster, evaluate, write the report
	@$(BIN)/crossreid demo --out runs/demo

test: setup  ## the fast suite, under 2 minutes, in two processes
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## real models, several processes, whole small runs: under 30 minutes
	@$(BIN)/python -m pytest -m "slow and not night"

test-night: setup  ## kills, nodes that go, a service under load, the demo and every example
	@$(BIN)/python -m pytest -m night

test-faults: setup  ## bad inputs, attacks, fuzzed readers, and the table of docs/reliability.md
	@$(BIN)/python -m pytest -m "slow or not slow" tests/faults

test-fuzz: setup  ## readers of recipes, manifests and checkpoints, 10,000 examples each; for the night
	@CROSSREID_FUZZ=10000 $(BIN)/python -m pytest tests/faults/test_fuzz.py

check: setup  ## style, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

bench: setup  ## speed and memory: what docs/benchmarks.md claims without a trained run
	@$(BIN)/python -m benchmarks.clustering
	@$(BIN)/python -m benchmarks.metrics
	@$(BIN)/python -m benchmarks.epoch
	@$(BIN)/python -m benchmarks.input_pipeline
	@$(BIN)/python -m benchmarks.search

bench-demo: setup  ## the tables of learning results: rows x seeds x difficulty, hours, resumable
	@$(BIN)/python -m benchmarks.demo_table --difficulty default easy hard
	@$(BIN)/python -m benchmarks.csdn_ablation
	@$(BIN)/python -m benchmarks.cpcl_ablation

bench-roadscene: setup  ## what joins the modalities on real pixels: make bench-roadscene SRC=a checkout of hanna-xu/RoadScene
	@test -n "$(SRC)" || { echo "make bench-roadscene SRC=/path/to/RoadScene (github.com/hanna-xu/RoadScene)"; exit 1; }
	@$(BIN)/python -m benchmarks.couplings --out runs/roadscene --worlds roadscene --seeds 0 1 2 --roadscene "$(SRC)"

bench-agreement: setup  ## one, two and four workers: one step, and three epochs bit for bit
	@$(BIN)/python -m pytest -m slow -s tests/pipelines/training/test_agreement.py

bench-kills: setup  ## kill -9 at seeded moments, then the same command again
	@$(BIN)/python -m benchmarks.kills --out runs/kills.json

bench-elastic: setup  ## a node goes and another comes while a run trains
	@$(BIN)/python -m benchmarks.elastic

bench-spot: setup  ## a worker that is killed again and again, a command that is asked to end
	@$(BIN)/python -m benchmarks.spot

bench-gpu: setup  ## what a GPU does with all this, in eight minutes; without network and Ray
	@$(BIN)/python -m benchmarks.gpu --out runs/bench-gpu --minutes 8

bench-sweep: setup  ## a sweep over the demo's loss weights
	@$(BIN)/crossreid data synth runs/sweep-identities --identities 150
	@$(BIN)/crossreid tune search_demo.yaml --out runs/sweep data.root=runs/sweep-identities

docs-site: setup  ## the documentation as a site, in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: setup  ## the pages of commands and settings, from the code
	@$(BIN)/python docs/make_commands.py
	@$(BIN)/python docs/make_settings.py

pretrain: setup  ## train the small CLIP that ships with the package again
	@$(BIN)/python -m reid_core.pretraining.train

clean:
	rm -rf .venv runs build dist *.egg-info
