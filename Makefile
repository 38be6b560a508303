# Commands of the project; `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
PIPELINES := $(notdir $(patsubst %/,%,$(dir $(wildcard pipelines/*/requirements.txt))))
DOCKER_ANSWERS = docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24
	@echo "  make demo-NAME        one of the pipelines beside the main one: set up, run, verified"
	@echo "  make test-NAME        its tests (and soak-acid_waters: random faults)"
	@echo "                        NAME: $(PIPELINES)"

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
	@$(MAKE) --no-print-directory down # those of the other variant, if they run
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
	$(BIN)/python -m pytest $(SHARED_OUT)

# Tests wait, for servers that start and clients that time out: shared out to workers, each with
# servers of its own, they take a third less. WORKERS=1 where memory is short (2 GB each).
WORKERS ?= 2
SHARED_OUT = --numprocesses $(WORKERS) --dist loadgroup
TWO_AT_A_TIME = @$(MAKE) --no-print-directory -j2 --output-sync=target

test-all: setup .venv/docs.done ## the same, the long ones and the pipelines' (45 minutes to an hour)
	@$(PYTHON) -m stack.prerequisites java maven curl compose
	@$(PYTHON) -m stack.prerequisites rsyslog-kafka rsyslog-elasticsearch || true
	$(BIN)/python -m pytest -m "not soak" $(SHARED_OUT)
	@$(MAKE) --no-print-directory test-pipelines

# The pipelines beside the main one: pipelines/NAME/, each with its own needs and servers.

test-pipelines: $(PIPELINES:%=.venv/%.done) ## the tests of the pipelines, two at a time
	@$(PYTHON) -m stack.prerequisites java maven postgresql
	$(TWO_AT_A_TIME) $(PIPELINES:%=test-%)

.venv/%.done: pipelines/%/requirements.txt .venv/done
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

demo-acid_waters test-acid_waters soak-acid_waters: SERVERS = postgresql

$(PIPELINES:%=demo-%): demo-%: .venv/%.done
	@$(PYTHON) -m stack.prerequisites java maven $(SERVERS)
	@$(BIN)/python pipelines/$*/demo.py

$(PIPELINES:%=test-%): test-%: .venv/%.done
	@$(PYTHON) -m stack.prerequisites java maven $(SERVERS)
	$(BIN)/python -m pytest -m "not soak" pipelines/$*

soak: setup ## an hour (SOAK_HOURS) of random faults under load, verified again and again
	@$(PYTHON) -m stack.prerequisites java maven
	$(BIN)/python -m pytest -s -m soak

soak-acid_waters: .venv/acid_waters.done
	@$(PYTHON) -m stack.prerequisites java maven $(SERVERS)
	$(BIN)/python -m pytest -s -m soak pipelines/acid_waters

# Measurements, on a quiet machine. rsyslog is a peer: where it cannot be installed, the bench goes
# on and says so.

bench: setup ## measure the consumer beside the limit and its peers (15 minutes)
	@$(PYTHON) -m stack.prerequisites java maven curl
	@$(PYTHON) -m stack.prerequisites rsyslog-kafka rsyslog-elasticsearch || true
	@$(BIN)/python benches/throughput.py $(BENCH_OPTIONS)

bench-tuning bench-latency bench-growth bench-generator bench-outage: bench-%: setup
	@$(PYTHON) -m stack.prerequisites java maven curl
	@$(BIN)/python benches/$*.py $(BENCH_OPTIONS)

bench-tuning: ## measure what each of the consumer's choices is worth (12 minutes)
bench-latency: ## measure the time from a reading's send until a search finds it (3 minutes)
bench-growth: ## measure the rate by backlog, partitions, consumers, message size (20 minutes)
bench-generator: ## measure the generator: rates held, fastest, beside other producers (12 minutes)

bench-outage: ## measure the lag under faults and rebalances, and the catching up (5 minutes)

bench-all: bench bench-tuning bench-latency bench-growth bench-generator bench-outage ## all, one by one

.venv/docs.done: docs/requirements.txt .venv/done
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

report: .venv/docs.done ## RAPPORT.pdf of RAPPORT.md
	@$(BIN)/python docs/pdf.py

lint: setup ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: help setup up secure down wipe demo verify test test-all soak lint \
	report bench bench-latency bench-growth bench-generator bench-outage bench-all \
	test-pipelines $(PIPELINES:%=demo-%) $(PIPELINES:%=test-%) soak-acid_waters
