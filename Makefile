# Two commands do everything: `make demo` and `make test`. Both install what they need first, once.
# With an environment of your own (a GPU build of torch, say) activate it and use `make demo VENV=$VIRTUAL_ENV`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.rlhf_ext_installed
# The versions that the tests run against, in an environment of our own; yours keeps its own.
CONSTRAINTS := $(if $(filter .venv,$(VENV)),-c constraints.txt)

.PHONY: install demo test test-oldest-trl lint

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing (some minutes, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[quantization,test]'
	touch $@

# glibc hands every large block back to the system and fetches it again page by page; keeping them saves a fifth of the
# time on a CPU. --quiet: after an error, show the recipe's own message only.
demo: export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
demo test: export MALLOC_MMAP_MAX_ = 0
demo test: export MALLOC_TRIM_THRESHOLD_ = 4294967296
demo: install
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml recipes/dpo.py

test: install
	$(BIN)/python -m pytest

# The oldest TRL we support, unpacked beside the installed one. Its DPO loss needs Triton and so a GPU; without one, what
# can be tested there is everything that does not train.
OLDEST_TRL := $(VENV)/oldest-trl

test-oldest-trl: install
	test -d $(OLDEST_TRL)/trl || $(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST_TRL) trl==1.15.0
	PYTHONPATH=$(OLDEST_TRL) $(BIN)/python -m pytest tests/test_trl_seams.py tests/trainers \
		-k "seam or tag_names or refused or accepted or label_smoothing or ambiguous"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
