# Everything a person does with a checkout. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help run cluster test coverage test-faults check format lock dashboards bench-accuracy bench-footprint bench-latency bench-pipeline bench-reads bench-recorder bench-scheduler bench-testserver clean backup restore secrets up down

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.runtime ## set up, start everything and run a first speed test
	@exec $(BIN)/refresher up

cluster: $(VENV)/.runtime ## try out a system with two of each service and three NATS servers on this machine; Ctrl-C ends it
	@exec $(BIN)/python -m services.embedded.cluster

PYTEST := $(BIN)/python -m pytest --numprocesses=4 --dist=worksteal

test: $(VENV)/.dev ## set up and run every test
	$(PYTEST) $(TESTS)

coverage: $(VENV)/.dev ## run every test and report what they cover; it takes half as long again
	@rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report= $(TESTS)
	@$(BIN)/coverage report --skip-covered --sort=cover

test-faults: $(VENV)/.dev ## kill, freeze, cut and fill up every part of a system and count its rows (some need root); FAULTS= chooses
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadgroup -m 'scenario or short' $(or $(FAULTS),tests/faults --faults-page=docs/faults.md)

check: $(VENV)/.dev ## formatting, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.dev ## upgrade every dependency and write the lock files anew
	$(PIP) install --quiet uv
	$(LOCK) --upgrade --extra embedded --group dev pyproject.toml --output-file requirements/dev.txt
	$(LOCK) --extra embedded --group build pyproject.toml --constraints requirements/dev.txt --output-file requirements/runtime.txt
	$(LOCK) pyproject.toml --constraints requirements/dev.txt --output-file requirements/server.txt
	$(LOCK) --group build --constraints requirements/dev.txt --output-file requirements/build.txt
	$(LOCK) --upgrade bench/requirements.in --output-file bench/requirements.txt

dashboards: $(VENV)/.dev ## write Grafana's dashboards anew from grafana/*.py
	$(BIN)/python -m grafana.build

backup: $(VENV)/.runtime ## save results and schedules in FILE=refresher-<now>.tar.gz
	@$(BIN)/refresher backup "$(or $(FILE),refresher-$(shell date -u +%Y%m%dT%H%M%SZ).tar.gz)"

restore: $(VENV)/.runtime ## bring back FILE=... on an empty system
	@$(BIN)/refresher restore "$(or $(FILE),$(error say which: make restore FILE=refresher-20260101T000000Z.tar.gz))"

secrets: ## make the passwords and certificates of the composed system, where there are none
	@docker compose --file deploy/compose.yml run --rm prepare

up: ## run the composed system on this machine (Docker)
	@docker compose --file deploy/compose.yml up --detach
	@echo "API http://127.0.0.1:8470, Grafana http://127.0.0.1:3000/grafana/; stop it with: make down"

down: ## stop the composed system; its data stays
	@docker compose --file deploy/compose.yml down

bench-footprint: $(VENV)/.dev ## memory and CPU of the idle embedded system, part by part, and how soon it starts
	$(BIN)/python -m bench.footprint --page docs/benchmarks.md

bench-latency: $(VENV)/.dev ## tick published to row readable in the API
	$(BIN)/python -m bench.latency

bench-pipeline: $(VENV)/.dev .venv-bench/.done ## tick to committed row beside Celery and Dramatiq, 12 minutes; TRY=1 for one short round
	$(BIN)/python -m bench.pipeline $(if $(TRY),--rows 300 --rounds 1 --seconds 2,--page docs/benchmarks.md)

bench-reads: $(VENV)/.dev .venv-bench/.done ## reads over ten million results, beside Django; takes 6 GB meanwhile; ROWS= for fewer
	$(BIN)/python -m bench.reads --page docs/benchmarks.md $(if $(ROWS),--rows $(ROWS))

bench-recorder: $(VENV)/.dev ## the recorder draining a backlog, beside COPY and nats-py, five minutes; TRY=1 for one short round
	$(BIN)/python -m bench.recorder $(if $(TRY),--rows 5000 --rounds 1 --backlog 10000,--page docs/benchmarks.md)

bench-scheduler: $(VENV)/.dev .venv-bench/.done ## how late the ticks of many schedules are, beside celery beat, 10 minutes; SIZES=10000 for one number
	$(BIN)/python -m bench.scheduler --page docs/benchmarks.md $(if $(SIZES),--sizes $(SIZES))

bench-testserver: $(VENV)/.dev ## what the test server carries on loopback
	$(BIN)/python -m bench.testserver

bench-accuracy: $(VENV)/.dev ## how true each engine is on lines of known rate (needs root); LINES=, ENGINES= and ROUNDS= choose
	$(BIN)/python -m bench.accuracy --page docs/accuracy.md $(if $(LINES),--lines "$(LINES)") $(if $(ENGINES),--engines "$(ENGINES)") $(if $(ROUNDS),--rounds $(ROUNDS))

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Refresher needs Python 3.11 or later; $(PYTHON) is older. Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements/runtime.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

.venv-bench/.done: bench/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@
