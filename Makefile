# GLoSS. `make run` and `make test` set up the environment on first use.
#   make run PARAMS="beauty llama-1b"   runs params/beauty.yaml and params/llama-1b.yaml into runs/beauty-llama-1b/
#   make lab                            opens the notebooks in JupyterLab, set to the demo's parameters (or to PARAMS)
#   make report RUN=runs/demo           joins a run's executed notebooks into runs/demo/report.html
#   make lock                           resolves all dependencies again into requirements/cpu.txt and gpu.txt
#   make figures                        draws figures/ and writes docs/results.md again from figures/results/
#   make pages                          runs the demo where it is not done, and writes docs/demo/ from its notebooks
#   make run TORCH_INDEX=<address>      takes PyTorch from there (its CPU index spares gigabytes of CUDA)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PARAMS ?= demo
RUN ?= runs/$(subst $(space),-,$(strip $(PARAMS)))
TORCH_INDEX ?=
EXTRAS ?= test

# The active environment, unless it is conda's base or there is none: then .venv.
ifneq ($(VIRTUAL_ENV),)
ENV := $(VIRTUAL_ENV)
else ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif
PY := $(ENV)/bin/python
comma := ,
space := $() $()
READY := $(ENV)/.gloss-ready-$(subst $(comma),-,$(EXTRAS))

LOCK := requirements/$(if $(findstring gpu,$(EXTRAS)),gpu,cpu).txt

.PHONY: run test test-slow lint lab report figures pages setup lock

run: $(READY)
	$(PY) -m gloss_utils run $(PARAMS:%=params/%.yaml)

test: $(READY)
	$(PY) -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(PY) -m pytest -m slow

lint: $(READY)
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

lab: $(READY)
	$(PY) -m gloss_utils lab $(PARAMS:%=params/%.yaml)
	$(PY) -m jupyter lab "$(RUN)/lab"

report: $(READY)
	$(PY) -m gloss_utils report "$(RUN)"

figures: $(READY)
	$(PY) -m gloss_utils figures
	$(PY) -m benchmarks.results_page

pages: $(READY)
	$(PY) -m gloss_utils run params/demo.yaml
	$(PY) -m benchmarks.demo_pages runs/demo

setup: $(READY)

# All versions of the CPU's and of the GPU's environment, for Linux, macOS and Windows.
COMPILE = $(PY) -m uv --no-config pip compile pyproject.toml --universal --python-version 3.11 --quiet --no-header \
	--no-annotate --upgrade
lock: $(READY)
	$(PY) -m pip install --quiet --editable ".[dev]"
	$(COMPILE) --extra test | grep -vE '^(cuda|nvidia|triton)' > requirements/cpu.txt
	$(COMPILE) --extra gpu --extra test > requirements/gpu.txt

$(READY): pyproject.toml $(LOCK)
	test -x $(PY) || $(PYTHON) -m venv $(ENV)
	$(PY) -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint $(LOCK) --editable ".[$(EXTRAS)]"
	touch $@
