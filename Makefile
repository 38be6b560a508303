# Commands of the project; `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
PIPELINES := $(notdir $(patsubst %/,%,$(dir $(wildcard pipelines/*/requirements.txt))))
DOCKER_ANSWERS = docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: .venv/done ## virtual environment with what everything here needs

.venv/done: requirements.txt requirements-dev.txt
	@$(PYTHON) -m stack.prerequisites venv
	@$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

up: setup ## start the servers: by Docker if an engine answers, natively otherwise
	@if $(DOCKER_ANSWERS); then docker compose up -d --wait; \
	else $(PYTHON) -m stack.prerequisites java maven && $(BIN)/python -m stack up; fi

secure: setup ## start them with passwords and TLS (README, "Sur un réseau partagé")
	@$(BIN)/python tools/secure.py files
	@$(MAKE) --no-print-directory up
	@$(BIN)/python tools/secure.py users

down: setup ## stop the servers; the data stays
	@if $(DOCKER_ANSWERS); then docker compose down; else $(BIN)/python -m stack down; fi

wipe: setup ## stop the servers and delete their data
	@if $(DOCKER_ANSWERS); then docker compose down -v; else $(BIN)/python -m stack down -v; fi

demo: up ## everything at once: servers, 24 h of readings, half a minute live, verification
	@$(BIN)/python tools/demo.py

verify: setup ## compare the topic with the index and the dead letters
	@$(BIN)/python tools/verify.py

test: setup ## the tests, on real servers of their own (under 10 minutes)
	@$(PYTHON) -m stack.prerequisites java maven curl compose
	$(BIN)/python -m pytest

test-all: setup ## the same and the long ones (under 45 minutes)
	@$(PYTHON) -m stack.prerequisites java maven curl compose
	$(BIN)/python -m pytest -m "not soak"
	@set -e; for name in $(PIPELINES); do $(MAKE) test-$$name; done

# The pipelines beside the main one: pipelines/NAME/, each with its own needs and servers.

.venv/%.done: pipelines/%/requirements.txt .venv/done
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(PIPELINES:%=demo-%): demo-%: .venv/%.done
	@$(PYTHON) -m stack.prerequisites java maven
	@$(BIN)/python pipelines/$*/demo.py

$(PIPELINES:%=test-%): test-%: .venv/%.done
	@$(PYTHON) -m stack.prerequisites java maven
	$(BIN)/python -m pytest -m "not soak" pipelines/$*

soak: setup ## an hour (SOAK_HOURS) of random faults under load, verified again and again
	@$(PYTHON) -m stack.prerequisites java maven
	$(BIN)/python -m pytest -s -m soak

bench: setup ## measure the consumer beside the limit and other ways (15 minutes, a quiet machine)
	@$(PYTHON) -m stack.prerequisites java maven curl
	@$(BIN)/python benches/bench.py

lint: setup ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: help setup up secure down wipe demo verify test test-all soak bench lint \
	$(PIPELINES:%=demo-%) $(PIPELINES:%=test-%)
