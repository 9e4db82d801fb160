# Cluster-conditioned diffusion. `make help` lists targets, variables and defaults.

DATASET      ?= digits
DATA         ?=
BACKBONE     ?=
CLUSTERING   ?=
CLUSTERS     ?=
CONDITIONING ?=
DEVICES      ?=
ACCELERATOR  ?=
ARGS         ?=
ONLY         ?=
TRIALS       ?=
STUDY        ?= granularity

VENV := .venv
ifdef PYTHON
    PY := $(PYTHON)
    READY :=
else
    PY := $(VENV)/bin/python
    READY := $(VENV)/.installed
endif

# Only variables that are set become overrides: the data set's own settings stand behind the others.
OVERRIDES = dataset=$(DATASET) \
    $(if $(DATA),'dataset.path="$(DATA)"') \
    $(if $(BACKBONE),backbone=$(BACKBONE)) \
    $(if $(CLUSTERING),clustering=$(CLUSTERING)) \
    $(if $(CLUSTERS),clustering.num_clusters=$(CLUSTERS)) \
    $(if $(CONDITIONING),conditioning=$(CONDITIONING)) \
    $(if $(DEVICES),trainer.devices=$(DEVICES)) \
    $(if $(ACCELERATOR),trainer.accelerator=$(ACCELERATOR)) \
    $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup train embed cluster diffusion generate evaluate auto study report tensorboard test test-all test-faults lint bench clean

help:  ## This list
	@echo 'Targets:'
	@grep -hE '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo 'Variables, with their defaults:'
	@echo '  DATASET=digits    digits, cifar10, cifar100, ffhq64, afhqv2, folder, zip, npy or hf; brings its published settings along'
	@echo '  DATA=             the images: folder, ZIP, .npy file or Hugging Face id (for cifar: where the files lie)'
	@echo '  BACKBONE=         pixels, dino_vitb16, dinov2_vitb14, … see docs/backbones.md'
	@echo '  CLUSTERING=temi   temi, kmeans, labels, random or clip'
	@echo '  CLUSTERS=         number of clusters'
	@echo '  CONDITIONING=     clusters or none'
	@echo '  DEVICES=auto      number of GPUs (or of CPU processes with ACCELERATOR=cpu)'
	@echo '  ACCELERATOR=auto  gpu, cpu, …'
	@echo '  CKPT=             for generate, evaluate: denoiser.safetensors or the folder of a run; default: the newest'
	@echo '  STUDY=granularity for make study: a file in configs/study'
	@echo '  RUN=              for make report: folder of a study or of any other run; default: the newest study'
	@echo '  ARGS=             more settings, such as ARGS="training.duration_kimg=50 seed=1"'
	@echo '  ONLY=             for make bench: neighbours, temi, edm or embed'
	@echo '  PYTHON=           an interpreter that has the packages already; default: .venv, made on first use'

$(VENV)/.installed: pyproject.toml
	@echo 'Setting up $(VENV) (once; several GB of packages) …'
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python 3.11 or newer is needed; python3 is' "$$(python3 --version)"; exit 1; }
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(READY)  ## Create .venv with all packages, once

# A run folder is one command's: run_dir= and overwrite= in ARGS are meant for the training.
EARLIER = $(filter-out run_dir=% overwrite=%,$(OVERRIDES))

train: $(READY)  ## Embed, cluster and train a diffusion model: DATASET=digits by default
	@$(PY) -m pipeline.commands.embed $(EARLIER)
	@$(PY) -m pipeline.commands.cluster $(EARLIER)
	@$(PY) -m pipeline.commands.train $(OVERRIDES)

embed: $(READY)  ## Only: images → embeddings and neighbours
	@$(PY) -m pipeline.commands.embed $(OVERRIDES)

cluster: $(READY)  ## Only: embeddings → pseudo-labels
	@$(PY) -m pipeline.commands.cluster $(OVERRIDES)

diffusion: $(READY)  ## Only: images and pseudo-labels → diffusion model
	@$(PY) -m pipeline.commands.train $(OVERRIDES)

# The newest model of the data set, where none is named.
generate evaluate: CKPT ?= $(shell ls -t runs/$(DATASET)/train-*/*/denoiser.safetensors 2>/dev/null | head -n 1)
generate: $(READY)  ## Images from a trained model, the newest or CKPT=runs/…
	@test -n "$(CKPT)" || { echo 'error: no model of $(DATASET) in runs/. Type make train, or make generate CKPT=FOLDER'; exit 2; }
	@$(PY) -m pipeline.commands.generate 'ckpt="$(CKPT)"' $(if $(ACCELERATOR),trainer.accelerator=$(ACCELERATOR)) $(ARGS)

evaluate: $(READY)  ## Distances of a model's images to the data set, of the newest or CKPT=runs/…
	@test -n "$(CKPT)" || { echo 'error: no model of $(DATASET) in runs/. Type make train, or make evaluate CKPT=FOLDER'; exit 2; }
	@$(PY) -m pipeline.commands.evaluate 'generated="$(CKPT)"' $(OVERRIDES)

auto: DATASET = $(if $(DATA),$(if $(filter %.zip,$(DATA)),zip,folder),digits)
auto: $(READY)  ## From a folder of images to a model: how many clusters, then full training: DATA=/my/images
	@$(PY) -m pipeline.commands.study study=auto $(OVERRIDES)

study: $(READY)  ## Answer a question with evidence: STUDY=granularity, efficiency, correlation, confidence, …
	@$(PY) -m pipeline.commands.study study=$(STUDY) $(OVERRIDES)

# The newest study, of the data set where one is typed: that of a folder of images bears the folder's name.
STUDIED = $(if $(filter file,$(origin DATASET)),*,$(DATASET))
report: RUN ?= $(shell ls -td runs/$(STUDIED)/study-*/*/summary.json 2>/dev/null | grep -v study-jobs | head -n 1 | xargs -r dirname)
report: $(READY)  ## One HTML page of the newest study, or of RUN=FOLDER
	@test -n "$(RUN)" || { echo 'error: no study in runs/$(STUDIED)/. Type make study, or make report RUN=FOLDER'; exit 2; }
	@$(PY) -m pipeline.commands.report 'run="$(RUN)"' $(ARGS)

tensorboard: $(READY)  ## Watch the runs in a browser, on this machine only
	@$(PY) -m tensorboard.main --logdir runs --host localhost

lint: $(READY)  ## Style, types and import layers
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()' --no-cache

test: lint  ## Lint and the fast tests
	@$(PY) -m pytest -m 'not slow and not faults' -n 2 --dist loadfile

test-all: lint  ## Lint and all tests but the faults
	@$(PY) -m pytest -m 'not faults' -n 2 --dist loadfile

test-faults: $(READY)  ## Kills, signals, full disks, damaged and hostile files, at full count or TRIALS=2; prints a table
	@$(PY) -m pytest tests/faults -n 0 $(if $(TRIALS),--trials $(TRIALS))

bench: $(READY)  ## Measure speed, all parts or ONLY=temi; prints a table
	@$(PY) tests/bench $(ONLY)

clean:  ## Remove the environment; runs/ and cache/ stay
	rm -rf $(VENV) *.egg-info
