# Cluster-conditioned diffusion. `make help` lists targets, variables and defaults.

# What was set for these arrives in the commands as it was typed: exported, and so read by no shell.
VARIABLES := DATASET DATA BACKBONE CLUSTERING CLUSTERS CONDITIONING DEVICES ACCELERATOR ARGS CKPT RUN STUDY \
    ASSIGNMENTS HEAD EMBEDDINGS
unexport $(VARIABLES)
$(foreach name,$(VARIABLES),$(eval export CEDM_$(name) := $$(value $(name))))

VENV := .venv
ifdef PYTHON
    PY := $(PYTHON)
    READY :=
else
    PY := $(VENV)/bin/python
    READY := $(VENV)/.installed
endif

.DEFAULT_GOAL := help
.PHONY: help setup train embed cluster bound score assign diffusion generate evaluate auto study report tensorboard test test-all test-faults lint docs bench check-gpu clean

help:  ## This list
	@echo 'Targets:'
	@grep -hE '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo 'Variables, with their defaults:'
	@echo '  DATASET=digits    digits, emoji, cifar10, cifar100, fashion, stl10, medmnist, imagenet, ffhq64, afhqv2, folder, zip, npy, hdf5 or hf; brings its published settings along'
	@echo '  DATA=             the images: folder, ZIP, .npy file or Hugging Face id; alone, it tells the kind of data set'
	@echo '  BACKBONE=         pixels, efficientnet_lite0 (supervised), dino_vitb16, dinov2_vitb14, … see docs/backbones.md'
	@echo '  EMBEDDINGS=       a file of embeddings computed elsewhere, in place of BACKBONE; without DATASET and DATA, alone'
	@echo '  CLUSTERING=temi   temi, kmeans, labels, random or clip'
	@echo '  CLUSTERS=         number of clusters'
	@echo '  CONDITIONING=     clusters or none'
	@echo '  DEVICES=auto      number of GPUs (or of CPU processes with ACCELERATOR=cpu)'
	@echo '  ACCELERATOR=auto  gpu, cpu, …'
	@echo '  CKPT=             for generate, evaluate: denoiser.safetensors or the folder of a run; default: the newest'
	@echo '  ASSIGNMENTS=      a file of cluster ids, in place of a clustering; for make score: default: the newest clustering'
	@echo '  HEAD=             for make assign: head.safetensors or the folder of a clustering; default: the newest'
	@echo '  STUDY=granularity for make study: a file in configs/study'
	@echo '  RUN=              for make report: folder of a study or of any other run; default: the newest study'
	@echo '  ARGS=             more settings, such as ARGS="training.duration_kimg=50 seed=1"'
	@echo '  ONLY=             for make bench: neighbours, temi, edm, embed or standardise; for make check-gpu: some of its parts'
	@echo '  DRY=1             for make check-gpu: try the check itself, on a CPU, with tiny sizes'
	@echo '  OUT=              for make check-gpu: the folder of all that it writes; default: docs/gpu and runs/check-gpu'
	@echo '  PYTHON=           an interpreter that has the packages already; default: .venv, made on first use'

$(VENV)/.installed: pyproject.toml
	@echo 'Setting up $(VENV) (once; several GB of packages) …'
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python 3.11 or newer is needed; python3 is' "$$(python3 --version)"; exit 1; }
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(READY)  ## Create .venv with all packages, once

train:  ## Embed, cluster and train a diffusion model: DATASET=digits by default
embed:  ## Only: images → embeddings and neighbours
cluster:  ## Only: embeddings → pseudo-labels
bound:  ## How many clusters are worth having
score:  ## Use of the clusters, agreement with labels, pictures: of the newest clustering or ASSIGNMENTS=FILE
assign:  ## The clusters of new images, by the newest clustering or HEAD=FILE: DATA=/new/images
diffusion:  ## Only: images and pseudo-labels → diffusion model
generate:  ## Images from a trained model, the newest or CKPT=runs/…
evaluate:  ## Distances of a model's images to the data set, of the newest or CKPT=runs/…
auto:  ## From a folder of images to a model: how many clusters, then full training: DATA=/my/images
study:  ## Answer a question with evidence: STUDY=granularity, efficiency, correlation, confidence, …
report:  ## One HTML page of the newest study, or of RUN=FOLDER

train embed cluster bound score assign diffusion generate evaluate auto study report: $(READY)
	@$(PY) -m pipeline.settings.make $@

tensorboard: $(READY)  ## Watch the runs in a browser, on this machine only
	@$(PY) -m tensorboard.main --logdir runs --host localhost

lint: $(READY)  ## Style, types and import layers
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()' --no-cache

test: lint  ## Lint, the fast tests and the examples in docstrings
	@$(PY) -m pytest --doctest-modules -m 'not slow and not faults' -n 2 --dist loadfile

test-all: lint  ## Lint and all tests but the faults
	@$(PY) -m pytest --doctest-modules -m 'not faults' -n 2 --dist loadfile

test-faults: $(READY)  ## Kills, signals, full disks, damaged and hostile files, at full count or TRIALS=2; prints a table
	@$(PY) -m pytest tests/faults -n 0 $(if $(TRIALS),--trials $(TRIALS))

docs: $(READY)  ## The documentation as a site, in site/; a broken link or a page without a place is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build
	@echo 'site/index.html; with its search: $(PY) -m http.server -d site'

bench: $(READY)  ## Measure speed, all parts or ONLY=temi; prints a table
	@$(PY) tests/bench $(ONLY)

check-gpu: $(READY)  ## Check and measure a GPU in 8 minutes, all parts or ONLY="golden sampling"; writes docs/gpu
	@$(PY) tests/gpu $(if $(DRY),--dry) $(if $(OUT),--out "$$OUT") $(ONLY)

clean:  ## Remove the environment; runs/ and cache/ stay
	rm -rf $(VENV) *.egg-info
