# Everything a person or CI does here. Environments, each made from a lock of names, versions and hashes:
#   .venv         training, export, scoring, tests: PyTorch, about 8 GB
#   .venv-triton  the server: NVIDIA Triton and no PyTorch, about 0.6 GB
#   .venv-policy  checkov alone, for one test; made when the tests are run
# (requirements/gateway.lock, the server without a Triton, is for the image over NVIDIA's that the Dockerfile builds.)
# `make setup` is instant when nothing changed. Other commands set up what they need first.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
# The first Python here that is 3.11 or 3.12; `make setup PYTHON=/path/to/python3.12` chooses another.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	"$$python" -c '$(SUPPORTED)' 2>/dev/null && echo "$$python" && break; done)

LOCK := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--custom-compile-command 'make lock' --constraints requirements/constraints.in --overrides requirements/overrides.in \
	$(if $(UPGRADE),--upgrade) pyproject.toml
LINE := printf '==> %s\n'

.PHONY: help setup demo test image-test faults check bench study reliability lock clean distclean

help: ## Show this list
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: .venv/.ready .venv-triton/.ready ## Make both environments (2 to 3 minutes, 8 GB; instant when they exist)

demo: setup ## The whole job: draw, train, export, serve, attack, score. DATA=FOLDER PRESET=NAME WEIGHTS=FILE ALPHA=RATE take your own
	@.venv/bin/python -m demo $${DATA:+--data "$$DATA"} $${PRESET:+--preset "$$PRESET"} \
		$${WEIGHTS:+--weights "$$WEIGHTS"} $${ALPHA:+--alpha "$$ALPHA"}

test: setup .venv-policy/.whole ## Run all tests. TESTS="-m hostile" or TESTS=tests/bundle runs a part
	.venv/bin/python -m pytest -n 2 --dist loadfile $(TESTS)

image-test: setup ## Build the images and have them classify: 4 to 10 minutes, as root, with buildah and debootstrap (apt)
	.venv/bin/python -m pytest -m image tests/deploy

faults: setup ## Run the tests that kill nodes and fill disks, too long for every day (about 5 minutes)
	.venv/bin/python -m pytest -m faults $(TESTS)

check: .venv/.ready ## Lint, formatting, strict types, locks and the Dockerfile
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python requirements/check.py
	.venv/bin/hadolint Dockerfile

bench: setup ## Measure again what has no options of its own; python -m benchmarks --help lists everything
	.venv/bin/python -m benchmarks

study: setup ## Tables 1-3 of the paper, detectors, SR@5; goes on where it stopped. DATA=FOLDER BACKBONE=vgg16-96 WEIGHTS=FILE take your own
	@.venv/bin/python -m benchmarks study $${DATA:+--data "$$DATA"} $${BACKBONE:+--backbone "$$BACKBONE"} \
		$${WEIGHTS:+--weights "$$WEIGHTS"} $(STUDY)

reliability: setup ## Attack a real service in every way of docs/reliability.md; goes on where it stopped. ROWS=NAME,NAME takes some
	@.venv/bin/python -m benchmarks reliability $${ROWS:+--rows "$$ROWS"}

lock: .venv/.ready ## Choose versions again for pyproject.toml, write the locks. UPGRADE=1 takes the newest of everything
	$(LOCK) --extra gateway --extra envoy --extra signing --output-file requirements/gateway.lock >/dev/null
	$(LOCK) --extra dev --group editable --output-file requirements/dev.lock >/dev/null
	$(LOCK) --extra server --extra gateway --extra envoy --extra signing --group editable --output-file requirements/server.lock >/dev/null
	$(filter-out pyproject.toml,$(LOCK)) --group pyproject.toml:policy --output-file requirements/policy.lock >/dev/null
	.venv/bin/python requirements/check.py

clean: ## Remove what the demo, tests and builds wrote
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environments too
	rm -rf .venv .venv-triton .venv-policy

# An environment carries `.whole` (the seconds it took) from the moment when everything in its lock is installed. Without
# that stamp the folder is half-made and starts anew; with it, a changed lock is installed over what is there. `.ready`
# adds this project.
define environment
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null; then \
		echo "error: Fieldmark needs Python 3.11 or 3.12, and $(or $(PYTHON),none of python3, python3.12, python3.11) is not." \
			"Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@$(LINE) "Making $(@D) from $<: $(1)"
	@[ -e $@ ] && rm $@ || "$(PYTHON)" -m venv --clear $(@D)
	@date +%s > $(@D)/.begun
	@begun=$$(cat $(@D)/.begun); \
	(while sleep 20 >/dev/null 2>&1; do printf '    %s: %d MB, %d s so far\n' $(@D) $$(du -sm $(@D) | cut -f1) $$(($$(date +%s) - begun)); done) & \
	beat=$$!; trap 'kill $$beat 2>/dev/null' EXIT; \
	$(@D)/bin/python -m pip install -qq --no-input --disable-pip-version-check --progress-bar off \
		--require-hashes --only-binary :all: --no-deps -r $<
	@echo $$(($$(date +%s) - $$(cat $(@D)/.begun))) > $@
endef

.venv/.whole: requirements/dev.lock
	$(call environment,about 8 GB with PyTorch; a few minutes; the folder grows when all is fetched)

.venv-triton/.whole: requirements/server.lock
	$(call environment,about 0.6 GB with Triton; half a minute)

.venv-policy/.whole: requirements/policy.lock
	$(call environment,about 0.2 GB; half a minute)

# `--no-deps`: the lock has said it all. `--no-build-isolation`: builds with the locked hatchling, fetches nothing.
%/.ready: %/.whole pyproject.toml
	@$*/bin/python -m pip install -qq --no-input --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@$(LINE) "$* is ready"
