# maskbridge. `make` lists the targets.
NAME     ?= bottle
SOURCE   ?=
LAYOUT   ?= mvtec
FOLD     ?= all
DEVICE   ?= auto
SEED     ?= 0
PYTHON   ?= python3
# Where the runs are: another folder for another seed or backbone, make baselines NAME=bottle SEED=1 RUNS=runs/seed1
RUNS     ?= runs
# Options of one approach, as on its command line: make finetune-yolo NAME=bottle YOLO_OPTIONS="--epochs 100"
YOLO_OPTIONS     ?=
SAM_OPTIONS      ?=
SVDD_OPTIONS     ?=
AE_OPTIONS       ?=
# Of all baselines on a pretrained backbone, such as --backbone mobilenet_v2; and of those on its features.
BACKBONE_OPTIONS ?=
FEATURE_OPTIONS  ?=
PATCHCORE_OPTIONS ?=
BOX_OPTIONS      ?=
PROMPT_OPTIONS   ?= --max-prompts 20
REPORT_OPTIONS   ?=
# Text features for YOLO-World: auto (CLIP's text encoder), a file made by `maskbridge text-features`, or hashed, the
# stand-in that knows no language and marks the run.
TEXT_FEATURES    ?= auto
# Of the tests: make test WHICH="slow and not real"; by default those that are none of slow, real, peers.
WHICH            ?=

# Small enough for two cores, and from random weights: nothing is downloaded.
DEMO_YOLO := --weights none --text-features hashed --imgsz 160 --epochs 20
DEMO_SAM  := --epochs 40 --batch 4 --patience 40

DEMO_RUNS := $(foreach a,yolo-world sam deep-svdd autoencoder knn,runs/demo-$(a)-all)

VENV  := .venv
BIN   := $(VENV)/bin
MB    := $(BIN)/maskbridge
READY := $(VENV)/.ready
# Tests run on every core, four at most, a file on one of them: what the tests of a file share is made once.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
# Other evaluators, for tests and benchmarks: an environment of their own on top of ours, which they would change.
PEERS := .venv-peers
DATA   = datasets/$(NAME)
# Train and predict: all folds and their merged run, or one fold and its test part. Finished runs are kept.
TRAIN = $(call TRAIN_AS,$(1),$(1),$(2))
# The same under another name: approach, name, options.
define TRAIN_AS
$(if $(filter all,$(FOLD)),\
$(MB) crossval $(1) $(DATA) $(RUNS)/$(NAME)-$(2)-all --device $(DEVICE) --seed $(SEED) --resume $(3),\
$(MB) train $(1) $(DATA) $(RUNS)/$(NAME)-$(2)-$(FOLD) --fold $(FOLD) --device $(DEVICE) --seed $(SEED) --resume $(3) && \
$(MB) predict $(RUNS)/$(NAME)-$(2)-$(FOLD) $(DATA) --device $(DEVICE))
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types convert finetune-yolo finetune-sam prompted baselines reproduce evaluate report peers bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## make the virtual environment and install everything

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "maskbridge needs Python 3.11 or newer; found $$($(PYTHON) --version). Name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv is missing; install it: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || \
		{ echo "OpenCV's system libraries are missing; install them: sudo apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@

peers: $(PEERS)/.ready ## install other evaluators (anomalib, torchmetrics, …) beside ours, for tests and benchmarks

$(PEERS)/.ready: $(READY) benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		$$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/maskbridge.pth
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	@touch $@

demo: $(READY) ## everything once on a made-up sample, small enough for two cores
	$(MB) sample datasets/sample/plate --overwrite
	$(MB) convert mvtec datasets/sample/plate datasets/demo --folds 2 --overwrite
	$(MB) check datasets/demo
	$(MB) crossval yolo-world datasets/demo runs/demo-yolo-world-all --overwrite $(DEMO_YOLO)
	$(MB) crossval sam datasets/demo runs/demo-sam-all --overwrite --preset tiny $(DEMO_SAM)
	$(MB) crossval deep-svdd datasets/demo runs/demo-deep-svdd-all --overwrite
	$(MB) crossval autoencoder datasets/demo runs/demo-autoencoder-all --overwrite --epochs 10
	$(MB) crossval knn datasets/demo runs/demo-knn-all --overwrite --backbone mobilenet_v2 --backbone-weights none
	$(MB) evaluate $(DEMO_RUNS) --out runs/demo-leaderboard
	$(MB) report $(DEMO_RUNS) --out runs/demo-report.html

test: $(READY) ## run the tests; WHICH=slow those that take longer
	$(PYTEST) $(if $(WHICH),-m "$(WHICH)")

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## check types
	$(BIN)/mypy

check: lint types test ## lint, types, tests

convert: $(READY) ## SOURCE=path NAME=name: make datasets/NAME with yolo/, yolo-seg/ and coco/ exports inside
	@test -n "$(SOURCE)" || { echo "name the source: make convert SOURCE=path/to/bottle NAME=bottle"; exit 2; }
	$(MB) convert $(LAYOUT) "$(SOURCE)" $(DATA) --overwrite $(CONVERT_OPTIONS)
	$(MB) check $(DATA)
	$(MB) export yolo $(DATA) $(DATA)/yolo $(if $(filter all,$(FOLD)),,--fold $(FOLD))
	$(MB) export yolo-seg $(DATA) $(DATA)/yolo-seg $(if $(filter all,$(FOLD)),,--fold $(FOLD))
	$(MB) export coco $(DATA) $(DATA)/coco $(if $(filter all,$(FOLD)),,--fold $(FOLD))
	$(MB) card $(DATA)

finetune-yolo: $(READY) ## NAME=name: fine-tune YOLO-World and predict
	$(call TRAIN,yolo-world,--text-features $(TEXT_FEATURES) $(YOLO_OPTIONS))

finetune-sam: $(READY) ## NAME=name: fine-tune SAM and predict
	$(call TRAIN,sam,$(SAM_OPTIONS))

prompted: $(READY) ## NAME=name: SAM trained on boxes, given the true ones and YOLO-World's, beside filled boxes and GrabCut
	$(call TRAIN_AS,sam,sam-box,--preset box $(BOX_OPTIONS))
	$(MB) predict $(RUNS)/$(NAME)-sam-box-$(FOLD) $(DATA) --prompts $(RUNS)/$(NAME)-yolo-world-$(FOLD) $(PROMPT_OPTIONS) \
		--average-views 1 --out $(RUNS)/$(NAME)-sam-box-yolo-world-$(FOLD) --overwrite --device $(DEVICE)
	$(call TRAIN_AS,box-fill,box-fill,)
	$(call TRAIN_AS,grabcut,grabcut,)
	$(call TRAIN_AS,box-fill,box-fill-yolo-world,--prompts $(RUNS)/$(NAME)-yolo-world-$(FOLD) $(PROMPT_OPTIONS))
	$(call TRAIN_AS,grabcut,grabcut-yolo-world,--prompts $(RUNS)/$(NAME)-yolo-world-$(FOLD) $(PROMPT_OPTIONS))

# Presets beside the default one (cnn, conv, balanced), and ways of making anomalies.
SVDD_PRESETS := resnet18 resnet18-aug resnet18-mahalanobis
AE_PRESETS   := conv-aug conv-ssim resnet18 resnet18-lr5e-4
ANOMALIES    := gan cutpaste perlin
FEATURE_BASELINES := knn gaussian pca ocsvm padim
# Those presets have a pretrained backbone.
PRESET_OPTIONS = --preset $(1) $(if $(filter resnet18%,$(1)),$(BACKBONE_OPTIONS))
define NEWLINE


endef

baselines: $(READY) ## NAME=name: train the baselines, all presets, and predict
	$(call TRAIN,deep-svdd,$(SVDD_OPTIONS))
	$(foreach m,$(ANOMALIES),$(call TRAIN_AS,deep-svdd,deep-svdd-$(m),--anomalies $(m) $(SVDD_OPTIONS))$(NEWLINE)	)
	$(call TRAIN,autoencoder,$(AE_OPTIONS))
	$(foreach p,$(AE_PRESETS),$(call TRAIN_AS,autoencoder,autoencoder-$(p),$(call PRESET_OPTIONS,$(p)) $(AE_OPTIONS))$(NEWLINE)	)
	$(foreach p,$(SVDD_PRESETS),$(call TRAIN_AS,deep-svdd,deep-svdd-$(p),$(call PRESET_OPTIONS,$(p)) $(SVDD_OPTIONS))$(NEWLINE)	)
	$(foreach a,$(FEATURE_BASELINES),$(call TRAIN,$(a),$(BACKBONE_OPTIONS) $(FEATURE_OPTIONS))$(NEWLINE)	)
	$(call TRAIN,patchcore,$(BACKBONE_OPTIONS) $(FEATURE_OPTIONS) $(PATCHCORE_OPTIONS))
	$(if $(filter official,$(FOLD)),@echo "balanced-softmax learns from labelled defects: not on the official split",\
		$(call TRAIN,balanced-softmax,$(BACKBONE_OPTIONS) $(FEATURE_OPTIONS))$(NEWLINE)	\
		$(call TRAIN_AS,balanced-softmax,balanced-softmax-cross-entropy,\
			--preset cross-entropy $(BACKBONE_OPTIONS) $(FEATURE_OPTIONS)))

reproduce: $(READY) ## bottle and cable: the rows of the two reports beside ours
	$(BIN)/python benchmarks/reproduce.py --runs $(RUNS) --device $(DEVICE) --seed $(SEED) $(BACKBONE_OPTIONS)

# Runs without predictions, such as those of a training that was interrupted, are named and left out.
FOUND    = $(wildcard $(RUNS)/$(NAME)-*-$(FOLD))
PART     = predictions/$(if $(filter all,$(FOLD)),crossval,test)
FINISHED = $(patsubst %/$(PART),%,$(wildcard $(addsuffix /$(PART),$(FOUND))))
LEFT_OUT = $(filter-out $(FINISHED),$(FOUND))
TELL     = $(if $(LEFT_OUT),@echo "left out for want of predictions: $(LEFT_OUT)" >&2)

evaluate: $(READY) ## NAME=name: score every run of NAME and print the leaderboard
	$(TELL)
	$(MB) evaluate $(FINISHED) --out $(RUNS)/$(NAME)-$(FOLD)-leaderboard

report: $(READY) ## NAME=name: one page of every run of NAME: leaderboard, curves, every image
	$(TELL)
	$(MB) report $(FINISHED) --out $(RUNS)/$(NAME)-$(FOLD)-report.html $(REPORT_OPTIONS)

bench: $(READY) ## print the ratios of convert.py, evaluation.py, baselines.py in benchmarks/ (MASKBRIDGE_DATA names real images)
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/baselines.py $(or $(BACKBONE_OPTIONS),--backbone-weights none)

clean: ## remove the virtual environment and caches; datasets and runs stay
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis
