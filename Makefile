# Verbs: install demo test up deploy destroy bench prove lock. Works with GNU make 3.81 and BSD tools.
SHELL := /bin/sh
# uv ignores pip's settings, and people behind a package index of their own have set those.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export UV_PYTHON_DOWNLOADS ?= never
# Where it is set, every command would compile its libraries anew: seconds each time.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# The one to be made: as a prerequisite, a path elsewhere could have a space in it.
OWN_UV := $(filter .uv/bin/uv,$(UV))
BIN := .venv/bin
INSTALLED := .venv/installed
PARTS := app training mlflow infra dev

.PHONY: install demo test up deploy destroy bench prove lock clean
.DEFAULT_GOAL := install

install: $(INSTALLED) .venv-infra/installed

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

$(INSTALLED): requirements/dev.txt pyproject.toml | $(OWN_UV)
	@case "$$(uname -s)-$$(uname -m)" in \
	  Linux-x86_64|Linux-aarch64|Darwin-arm64) ;; \
	  *) echo "$$(uname -sm) is not supported: use Linux (x86_64, aarch64), macOS 14+ on Apple silicon, or WSL2"; exit 2 ;; esac
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Python is %d.%d: use 3.11 to 3.14 (make install PYTHON=python3.12)" % sys.version_info[:2])'
	"$(UV)" venv --quiet --allow-existing --python "$(PYTHON)" .venv
	"$(UV)" pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt
	"$(UV)" pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Pulumi's program has an environment of its own, with pip in it: the CLI asks that for the plugins to fetch.
.venv-infra/installed: requirements/infra.txt pyproject.toml $(INSTALLED) | $(OWN_UV)
	"$(UV)" venv --quiet --allow-existing --seed --python "$(PYTHON)" .venv-infra
	"$(UV)" pip install --quiet --python .venv-infra/bin/python --require-hashes --requirements requirements/infra.txt
	"$(UV)" pip install --quiet --python .venv-infra/bin/python --no-deps --editable .
	@touch $@

demo: install
	$(BIN)/python -m environments.local.demo

up: install
	$(BIN)/mlops run

# make deploy ENV=kind. State and passphrase stay below .mlops/, unless you are logged in to a backend or have set your own.
ENV ?= kind
PULUMI = set -e; command -v pulumi >/dev/null || { echo "pulumi is missing: https://www.pulumi.com/docs/install"; exit 2; }; \
  mkdir -p .mlops/pulumi; export PULUMI_SKIP_UPDATE_CHECK=true; \
  [ -n "$$PULUMI_BACKEND_URL$$PULUMI_ACCESS_TOKEN" ] || pulumi whoami --non-interactive >/dev/null 2>&1 || export PULUMI_BACKEND_URL=file://./.mlops/pulumi; \
  if [ -z "$$PULUMI_CONFIG_PASSPHRASE$$PULUMI_CONFIG_PASSPHRASE_FILE" ]; then \
    [ -s .mlops/pulumi/passphrase ] || (umask 077; openssl rand -hex 24 > .mlops/pulumi/passphrase); \
    export PULUMI_CONFIG_PASSPHRASE_FILE="$$PWD/.mlops/pulumi/passphrase"; fi; \
  pulumi stack select --create --stack $(ENV) >/dev/null

deploy: install
	@if [ $(ENV) = kind ]; then $(BIN)/mlops --env kind images --missing; fi
	@$(PULUMI); pulumi up --yes --stack $(ENV)

destroy: install
	@$(PULUMI); pulumi destroy --yes --stack $(ENV)

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/pytest -n 2

bench: install
	$(BIN)/python -m tests.benchmarks.serving

# make prove NAME: the full form of a bar, recorded in docs/proofs/NAME.json
prove: install
	$(BIN)/python -m tests.proofs $(filter-out prove,$(MAKECMDGOALS))

ifeq (prove,$(firstword $(MAKECMDGOALS)))
$(wordlist 2,99,$(MAKECMDGOALS)):
	@:
endif

# uv pip compile refuses groups of an unmanaged project, so it gets a copy that is managed.
lock: | $(OWN_UV)
	rm -rf .lock && mkdir .lock && sed '/^managed/d' pyproject.toml > .lock/pyproject.toml
	"$(UV)" pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url $(LOCK) \
	  $(foreach part,$(PARTS),--group .lock/pyproject.toml:$(part)) .lock/pyproject.toml -o requirements/constraints.txt
	for part in $(PARTS); do "$(UV)" pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --generate-hashes \
	  --constraint requirements/constraints.txt --group .lock/pyproject.toml:$$part .lock/pyproject.toml -o requirements/$$part.txt || exit 1; done
	rm -rf .lock

clean:
	rm -rf .venv .venv-infra .uv .mlops .lock
