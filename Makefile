# Every target but `help` sets up .venv by itself, once; the stamp .venv/ready says that it is complete.
PYTHON ?= python3
DATASET ?= mocap
PRESET ?=
PAIRS ?= card
SEEDS ?= 0
FULL ?=
STUDY_SEEDS ?= 0 1 2 3 4 5 6 7
PROFILE ?= default
OUTPUTS ?= outputs
DATA_ROOT ?=
WEIGHTS ?=
ALLOW_MISSING ?= 0.0
SKELETONS ?=
BROWSER_OUTPUTS ?=
SCREENSHOTS ?= outputs/browser

BIN := .venv/bin
LONGEST := $(addprefix tests/test_,notebooks.py published.py extending.py students.py extraction.py)
empty :=
comma := ,
SEED_LIST = [$(subst $(empty) $(empty),$(comma),$(strip $(SEEDS)))]

.PHONY: help demo study test browser lint lab notebooks

help:
	@echo "make demo       run all notebooks on $(DATASET), then print the results and the report's path"
	@echo "                DATASET=$(DATASET) PRESET=$(PRESET) SEEDS=\"$(SEEDS)\" PROFILE=$(PROFILE) OUTPUTS=$(OUTPUTS)"
	@echo "                PAIRS= for the paper's protocol: labelled clips alone"
	@echo "                for datasets on disk: DATA_ROOT=<videos and annotations> WEIGHTS=<folder of pretrained weights>"
	@echo "                ALLOW_MISSING=<share of clips> SKELETONS=<pickle or folder>"
	@echo "make study      the same with all ablations and analyses, STUDY_SEEDS=\"$(STUDY_SEEDS)\""
	@echo "make test       lint, then every test, then every notebook at a small size"
	@echo "make browser    operate every interactive view in Chromium; pictures of them go to $(SCREENSHOTS)"
	@echo "                BROWSER_OUTPUTS=<outputs made with the preset smoke, to begin with>"
	@echo "make lint       ruff alone"
	@echo "make lab        JupyterLab on the notebooks"
	@echo "make notebooks  put the outputs, figures and claims of the last study into notebooks/ and docs/"

demo: .venv/ready
	$(BIN)/snakemake --profile profiles/$(PROFILE) --config \
		dataset=$(DATASET) preset=$(PRESET) "seeds=$(SEED_LIST)" outputs=$(OUTPUTS) \
		"pairs=$(PAIRS)" "data_root=$(DATA_ROOT)" "weights=$(WEIGHTS)" \
		full=$(FULL) allow_missing=$(ALLOW_MISSING) "skeletons=$(SKELETONS)"
	@$(BIN)/python -m uniego_utils.pipeline.runner summary $(OUTPUTS)/$(DATASET)/10_report

study: SEEDS = $(STUDY_SEEDS)
study: FULL = true
study: demo

# Two processes of one thread each; the longest files come first, so that both end at about the same time.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		$(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

# Not part of `make test`: it needs a browser.
browser: .venv/browser
	BROWSER_OUTPUTS='$(BROWSER_OUTPUTS)' SCREENSHOTS='$(SCREENSHOTS)' $(BIN)/python -m pytest tests/browser/live.py

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

notebooks: .venv/ready
	$(BIN)/python -m uniego_utils.pipeline.ship $(OUTPUTS)/$(DATASET)/notebooks notebooks
	@mkdir -p docs/figures docs/results
	cp $(addprefix $(OUTPUTS)/$(DATASET)/,00_data/clip.jpg 01_teacher_extraction/probe.png 10_report/gains.png) \
		docs/figures
	cp $(OUTPUTS)/$(DATASET)/10_report/claims.md docs/results/$(DATASET).md

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv (once, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

.venv/browser: .venv/ready requirements-browser.txt
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ echo "Chromium is needed; on Debian: apt-get install chromium"; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-browser.txt
	@touch $@
