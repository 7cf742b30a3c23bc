# Works with GNU make 3.81 and BSD tools.
SHELL := /bin/sh
# uv ignores pip's settings.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export UV_PYTHON_DOWNLOADS ?= never
# Otherwise every command would compile its libraries again.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
# That of requirements/: another one would fetch the builder of this project, whose hash nobody knows.
PINNED := $(shell sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements/uv.txt)
UV := $(shell test "$$(uv --version 2>/dev/null | cut -d ' ' -f 2)" = $(PINNED) && command -v uv || echo .uv/bin/uv)
# As a prerequisite: a path elsewhere could contain a space.
OWN_UV := $(filter .uv/bin/uv,$(UV))
BIN := .venv/bin
# Scripts of a virtual environment hold its path: a copy of this folder makes its own.
HERE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
INSTALLED := .venv/$(HERE)
INSTALLED_INFRA := .venv-infra/$(HERE)
INSTALLED_AWS := .venv-aws/$(HERE)
PARTS := app training mlflow infra aws dev
COMPILE = pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url
ENV ?= kind

# An environment on AWS has a file for infra/aws.
ON_AWS := $(wildcard environments/aws/Pulumi.$(ENV).yaml)

.PHONY: help install aws demo year up test lint format bench prove account deploy destroy lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-9s %s\n", $$1, $$2 }'

install: $(INSTALLED) $(INSTALLED_INFRA) ## create .venv and .venv-infra

.uv/bin/uv: requirements/uv.txt
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/uv.txt

$(INSTALLED): requirements/dev.txt requirements/build.txt pyproject.toml | $(OWN_UV)
	@case "$$(uname -s)-$$(uname -m)" in \
	  Linux-x86_64|Linux-aarch64|Darwin-arm64) ;; \
	  *) echo "$$(uname -sm) is not supported: use Linux (x86_64, aarch64), macOS 14+ on Apple silicon, or WSL2"; exit 2 ;; esac
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Python is %d.%d: use 3.11 to 3.14 (make install PYTHON=python3.12)" % sys.version_info[:2])'
	"$(UV)" venv --quiet --clear --python "$(PYTHON)" .venv
	"$(UV)" pip sync --quiet --python $(BIN)/python --require-hashes --build-constraints requirements/build.txt requirements/dev.txt
	"$(UV)" pip install --quiet --python $(BIN)/python --no-deps --no-index --editable .
	@touch $@

# Pulumi's programs have their own environments, with pip in them: the CLI asks it which plugins to fetch.
.venv-infra/$(HERE) .venv-aws/$(HERE): .venv-%/$(HERE): requirements/%.txt requirements/build.txt pyproject.toml $(INSTALLED) | $(OWN_UV)
	"$(UV)" venv --quiet --clear --python "$(PYTHON)" .venv-$*
	"$(UV)" pip install --quiet --python .venv-$*/bin/python --require-hashes --no-build --requirements requirements/$*.txt --requirements requirements/build.txt
	"$(UV)" pip install --quiet --python .venv-$*/bin/python --no-deps --no-index --editable .
	@touch $@

aws: install $(INSTALLED_AWS) ## and .venv-aws

demo: install ## the whole life of a model on real data, each step proved; writes a report
	$(BIN)/python -m environments.local.demo

year: install ## the example's year in some 15 minutes: drift, trainings, and what they do for callers
	$(BIN)/python -m environments.local.year

up: install ## run the platform on this machine until Ctrl-C
	$(BIN)/mlops run

test: lint ## lint, types, all tests: what CI runs
	$(BIN)/pytest -n 2

lint: install ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

format: install ## apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## compare the app with a bare FastAPI
	$(BIN)/python -m tests.benchmarks.serving

prove: install ## make prove NAME: a claim in its full form, recorded in docs/proofs
	$(BIN)/python -m tests.proofs $(filter-out prove,$(MAKECMDGOALS))

ifeq (prove,$(firstword $(MAKECMDGOALS)))
$(wordlist 2,99,$(MAKECMDGOALS)):
	@:
endif

account: aws ## once per AWS account: state, images, keys, roles (docs/first-deploy.md)
	@environments/account/up $(STACK)

deploy: $(if $(ON_AWS),aws,install) ## make deploy ENV=kind: pulumi up; on AWS of infra/aws first
	@$(BIN)/mlops --env $(ENV) doctor
	@if [ $(ENV) = kind ]; then $(BIN)/mlops --env kind images --missing; fi
	$(if $(ON_AWS),@environments/pulumi aws/$(ENV) up --yes && $(BIN)/mlops --env $(ENV) connect)
	@environments/pulumi $(ENV) up --yes

# First what controllers made in AWS, by deleting what they made it for: then nothing holds the network.
destroy: $(if $(ON_AWS),aws,install) ## make destroy ENV=kind: pulumi destroy
	@environments/pulumi $(ENV) destroy --yes
	$(if $(ON_AWS),@$(BIN)/mlops --env $(ENV) emptied && environments/pulumi aws/$(ENV) destroy --yes)

# uv pip compile refuses the groups of an unmanaged project: it gets a managed copy.
lock: | $(OWN_UV) ## renew requirements/; make lock LOCK=--upgrade: with newer versions
	rm -rf .lock && mkdir .lock && sed '/^managed/d' pyproject.toml > .lock/pyproject.toml
	"$(UV)" $(COMPILE) $(LOCK) $(foreach part,$(PARTS),--group .lock/pyproject.toml:$(part)) .lock/pyproject.toml -o requirements/constraints.txt
	for part in $(PARTS); do "$(UV)" $(COMPILE) --generate-hashes \
	  --constraint requirements/constraints.txt --group .lock/pyproject.toml:$$part .lock/pyproject.toml -o requirements/$$part.txt || exit 1; done
	for tool in uv build checks; do "$(UV)" $(COMPILE) $(LOCK) --generate-hashes \
	  --group .lock/pyproject.toml:$$tool -o requirements/$$tool.txt || exit 1; done
	rm -rf .lock

clean: ## remove the virtual environments and all local data (.mlops)
	rm -rf .venv .venv-infra .venv-aws .uv .mlops .lock
