# Commands of the project; `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
PIPELINES := $(notdir $(patsubst %/,%,$(dir $(wildcard pipelines/*/requirements.txt))))
DOCKER_ANSWERS = docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1
# Stops what Compose has started from the root's file, with any extension, and from each pipeline's
# own, whose project is named as its folder. `down` without a file takes all that carries a project's
# name, and needs no .env; in /, it finds no file. $(1): its options; $(2): what else to look for.
PROJECT = --filter "label=com.docker.compose.project=$$name"
DOCKER_DOWN = config=$$(docker compose config --no-interpolate) || exit 1; \
	for name in $$(echo "$$config" | sed -n 's/^name: //p') $(PIPELINES); do \
		[ -z "$$(docker ps -aq $(PROJECT); $(2))" ] || (cd / && env -u COMPOSE_FILE \
			docker compose -p "$$name" down --remove-orphans $(1)) || exit 1; done
PREREQUISITES = @$(PYTHON) -m stack.prerequisites
# Tests wait for servers that start and for clients that time out. Two workers, each with servers of
# its own, take a third less time than one. WORKERS=1 where memory is short (2 GB each).
WORKERS ?= 2
SHARED_OUT = --numprocesses $(WORKERS) --dist loadgroup

help:
	@sed -n 's/^##@ \(.*\)/\n\1/p; s/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24
	@echo "  make demo-NAME        start one of them, run it, verify it"
	@echo "  make test-NAME        its tests (and soak-acid_waters: random faults)"
	@echo "                        NAME: $(PIPELINES)"

##@ Run

setup: .venv/done ## virtual environment with what everything here needs

.venv/done: requirements.txt requirements-dev.txt
	$(PREREQUISITES) venv
	@$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# After a crash, ZooKeeper knows the dead broker for some seconds: the first try may give up.
up: setup ## start the servers: by Docker if an engine answers, natively otherwise
	@if $(DOCKER_ANSWERS); then docker compose up -d --wait || docker compose up -d --wait; \
	else $(PYTHON) -m stack.prerequisites java maven && $(BIN)/python -m stack up; fi

secure: setup ## start them with passwords and TLS (extensions/secure)
	@$(BIN)/python -m extensions.secure files
	@$(MAKE) --no-print-directory down # those of the other variant, if they run
	@$(MAKE) --no-print-directory up
	@$(BIN)/python -m extensions.secure users

demo: up ## everything at once: servers, 24 h of readings, half a minute live, verification
	@$(BIN)/python -m tools.demo

demo-spark: .venv/spark.done ## the same indexing on a Spark cluster, verified (extensions/spark)
	$(PREREQUISITES) java maven
	@$(BIN)/python -m extensions.spark.demo

.venv/spark.done: extensions/spark/requirements.txt .venv/done
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

down: setup ## stop the servers; the data stays
	@if $(DOCKER_ANSWERS); then $(call DOCKER_DOWN,,true); \
	else $(BIN)/python -m stack down; fi

wipe: setup ## stop the servers and delete their data
	@if $(DOCKER_ANSWERS); then $(call DOCKER_DOWN,-v,docker volume ls -q $(PROJECT)); \
	else $(BIN)/python -m stack down -v; fi

##@ Look

verify: setup ## compare the topic with the index and the dead letters
	@$(BIN)/python -m tools.verify

dashboards: setup ## load the dashboards into Kibana
	@$(BIN)/python -m kibana.load

preview: setup ## draw the dashboards without Kibana: apercu/index.html
	@$(BIN)/python -m tools.preview

report: .venv/docs.done ## RAPPORT.pdf of RAPPORT.md
	@$(BIN)/python docs/pdf.py

.venv/docs.done: docs/requirements.txt .venv/done
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

##@ Test

lint: setup ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: setup ## the tests, on real servers of their own (under 10 minutes)
	$(PREREQUISITES) java maven curl compose
	$(BIN)/python -m pytest $(SHARED_OUT)

test-all: setup .venv/docs.done .venv/spark.done ## the same, the long ones, Docker's, the pipelines' (under 60 minutes)
	$(PREREQUISITES) java maven curl compose
	$(PREREQUISITES) chromium rsyslog-kafka rsyslog-elasticsearch || true
	$(BIN)/python -m pytest -m "not docker and not soak" $(SHARED_OUT)
	@$(MAKE) --no-print-directory test-pipelines

test-docker: $(PIPELINES:%=.venv/%.done) ## all Docker commands on a real engine of its own (root, 40 minutes)
	$(PREREQUISITES) java maven compose postgresql
	$(BIN)/python -m pytest -m "slow or docker" tests/docker

check-images: setup ## the genuine images: whether they exist, and start (a registry, 5 minutes)
	@$(BIN)/python -m tools.check_images

soak: setup ## an hour (SOAK_HOURS) of random faults under load, verified again and again
	$(PREREQUISITES) java maven
	$(BIN)/python -m pytest -s -m soak

##@ Measure, on a quiet machine

# rsyslog is a peer: where it cannot be installed, the bench goes on and says so.
bench: setup ## the consumer beside the limit and its peers (15 minutes)
	$(PREREQUISITES) java maven curl
	$(PREREQUISITES) rsyslog-kafka rsyslog-elasticsearch || true
	@$(BIN)/python -m benches.throughput $(BENCH_OPTIONS)

bench-tuning bench-latency bench-growth bench-generator bench-outage bench-spark: bench-%: setup
	$(PREREQUISITES) java maven curl
	@$(BIN)/python -m benches.$* $(BENCH_OPTIONS)

bench-tuning: ## what each of the consumer's choices is worth (12 minutes)
bench-latency: ## the time from a reading's send until a search finds it (3 minutes)
bench-growth: ## the rate by backlog, partitions, consumers, message size (20 minutes)
bench-generator: ## the generator: rates held, fastest, batching, other producers (12 minutes)
bench-outage: ## the lag under faults and rebalances, and the catching up (5 minutes)
bench-spark: .venv/spark.done ## the same on Spark: 1 and 2 executors, 1 to 6 partitions (20 minutes)
bench-all: bench bench-tuning bench-latency bench-growth bench-generator bench-outage bench-spark ## all of them

##@ Pipelines

test-pipelines: $(PIPELINES:%=.venv/%.done) ## the tests of the other pipelines, two at a time
	$(PREREQUISITES) java maven postgresql
	@$(MAKE) --no-print-directory -j2 --output-sync=target $(PIPELINES:%=test-%)

.venv/%.done: pipelines/%/requirements.txt .venv/done
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

demo-acid_waters test-acid_waters soak-acid_waters: SERVERS = postgresql

$(PIPELINES:%=demo-%): demo-%: .venv/%.done
	$(PREREQUISITES) java maven $(SERVERS)
	@$(BIN)/python pipelines/$*/demo.py

$(PIPELINES:%=test-%): test-%: .venv/%.done
	$(PREREQUISITES) java maven $(SERVERS)
	$(BIN)/python -m pytest -m "not soak" pipelines/$*

soak-acid_waters: .venv/acid_waters.done
	$(PREREQUISITES) java maven $(SERVERS)
	$(BIN)/python -m pytest -s -m soak pipelines/acid_waters

.PHONY: help setup up secure demo demo-spark down wipe verify dashboards preview report lint test test-all test-docker check-images soak \
	bench bench-tuning bench-latency bench-growth bench-generator bench-outage bench-spark bench-all \
	test-pipelines $(PIPELINES:%=demo-%) $(PIPELINES:%=test-%) soak-acid_waters
