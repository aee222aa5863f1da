# One command for each habit. Everything runs from .venv and the cache that setup prepares.
export CALLYARD_CACHE ?= $(CURDIR)/.cache
BIN := .venv/bin

.PHONY: help setup demo test lint format docs bench chaos manifests image-lock clean

help:
	@echo "make setup    prepare .venv, Kafka, Asterisk and SIPp (the others do it first, too)"
	@echo "make demo     one caller all the way, on real parts"
	@echo "make test     all tests (ARGS='-k name' chooses)"
	@echo "make lint     ruff, mypy, import-linter"
	@echo "make format   format the code"
	@echo "make docs     write what docs/ has from the code anew"
	@echo "make bench    measure latencies; writes JSON"
	@echo "make chaos    kill, freeze and cut everything while callers come and go; a quarter of an hour"
	@echo "make manifests  check all of deploy/ by a real API server and in real containers (ARGS='--only manifests' chooses)"
	@echo "make image-lock  pin what the image installs anew, from pyproject.toml"
	@echo "make clean    remove .venv, the cache and what tools left behind"

setup:
	@scripts/setup

demo: setup
	@$(BIN)/callyard demo $(ARGS)

test: setup
	$(BIN)/pytest --numprocesses 3 --dist loadfile $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/callyard schema --settings > docs/settings.md
	sed -i '/^<!-- made by make docs/q' docs/gateway.md
	$(BIN)/callyard schema --settings --table gateway --table ami --table sip --table asterisk >> docs/gateway.md
	$(BIN)/callyard schema > docs/schema.json
	$(BIN)/callyard schema --metrics > docs/metrics.md
	$(BIN)/python -m streams.state_diagram > docs/states.md
	$(BIN)/python scripts/strimzi-files
	sed -i '/^  # made by make docs/q' deploy/kubernetes/components/monitoring/rules.yaml
	sed -n '/^groups:/,$$ s/./  &/p' deploy/monitoring/alerts.yaml >> deploy/kubernetes/components/monitoring/rules.yaml

bench: setup
	@$(BIN)/python -m bench $(ARGS)

chaos: setup
	@$(BIN)/python -m tests.chaos $(ARGS)

manifests: setup
	@$(BIN)/python -m deploy.check $(ARGS)

image-lock: setup
	$(BIN)/python scripts/image-lock

clean:
	rm -rf .venv .cache .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache *.egg-info build dist
