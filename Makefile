# Needs python3 (3.11 to 3.13), pip, make and git; everything lands in ./.venv.
PYTHON  ?= python3
VENV    ?= .venv
PY      := $(VENV)/bin/python
PIP     := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PY) -m pip install --disable-pip-version-check --quiet --progress-bar off
STAMP   := $(VENV)/.installed
# Makes pip look for torch in PyTorch's own index of CPU wheels: smaller than the CUDA build that Linux gets otherwise.
TORCH_INDEX ?=
INDEX   := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)
# Timings are quoted for one thread; oversubscribed cores are several times slower.
export OMP_NUM_THREADS ?= 1

# Suites that are run once more with every shape and type checked at run time, which makes a call four times slower.
TYPED := tests/guides/test_contract.py tests/test_estimator_contract.py tests/mitigation/test_mitigator_contract.py \
	tests/test_problem.py tests/test_activations.py tests/importance

.PHONY: estimate test bench notebooks truths lint lock clean
.DELETE_ON_ERROR:

estimate: $(STAMP)
	@$(VENV)/bin/ppl-risk estimate digits; code=$$?; [ $$code -eq 0 ] || [ $$code -eq 2 ]

test: $(STAMP)
	$(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal
	$(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal --jaxtyping-packages=ppl_risk,beartype.beartype $(TYPED)

bench: $(STAMP)
	$(PY) -m benchmarks

notebooks: $(STAMP)
	$(VENV)/bin/jupytext --to ipynb notebooks/*.py
	PPL_RISK_NOTEBOOK=full $(PY) -m pytest -q --nbmake --nbmake-timeout=1200 --overwrite notebooks

# Does every truth.json belong to the network and law that its model has now? (WRITE=--write after a make_truth.py)
truths: $(STAMP)
	$(PY) models/fingerprints.py $(WRITE)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] < (3, 14) else "ppl_risk needs Python 3.11 to 3.13, this is %d.%d. Type: make PYTHON=/path/to/python3.11" % v[:2])'
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  echo "python3-venv is missing: making the environment with pip alone"; rm -rf $(VENV); \
	  $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install -q pip; }

$(STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "Installing into $(VENV) (1 to 3 minutes, about 1.5 GB on disk) ..."
	@$(PIP) $(INDEX) -e '.[dev]' -c constraints.txt
	@$(PY) -m pip check
	@touch $@

# A new throw-away environment is frozen; '+cpu' is stripped because only PyTorch's own index has that version.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q torch==2.13.0 && .venv-lock/bin/pip install -q -e '.[dev,cluster]' torch==2.13.0
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu//' | grep -v ' @ ' > constraints.txt && rm -rf .venv-lock

clean:
	rm -rf $(VENV)
