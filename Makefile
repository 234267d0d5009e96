# Two commands on a fresh machine: `make demo` and `make test`. Both make the virtual environment by themselves.
#
# On a machine with a GPU, install PyTorch's CUDA build first and let the rest follow:
#   make venv TORCH="torch==2.13.0 --index-url URL-FROM-PYTORCH'S-INSTALL-PAGE"

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP = .venv/bin/python -m pip --disable-pip-version-check
export PYTHONUNBUFFERED = 1

.PHONY: demo test venv weights docs chaos fuzz audit lint format clean

demo: venv  ## the shipped model on photos it has not seen, then a small training: runs/demo/report.html
	.venv/bin/python -m pixelbert.demo --output runs/demo

test: venv  ## lint, types and tests; no network, no GPU
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest

venv: .venv/ready

# torch comes first, so that nothing that depends on it brings a build with CUDA along.
.venv/ready: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

weights: venv  ## ImageNet ResNet-50 and MiniLM (180 MB), which some tests and recipes start from
	.venv/bin/python tools/fetch_weights.py weights

docs: .venv/docs-ready  ## the docs site, in build/docs; a warning fails
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "open build/docs/index.html"

.venv/docs-ready: .venv/ready
	$(PIP) install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

chaos: venv  ## kill training runs, for real, and see that nothing is lost: five to twelve minutes
	.venv/bin/python tools/chaos.py --output runs/chaos --json runs/chaos/chaos.json

fuzz: venv  ## hostile input to whatever reads files or requests, a minute each of 19: images, recipes, checkpoints, ...
	.venv/bin/python tools/fuzz.py --minutes 1 --output runs/fuzz

# In an environment of its own, so that what it needs never meets what the project needs. Without --strict, packages that
# the service does not know are passed over and the end is "No known vulnerabilities found".
audit: .venv-audit/ready  ## known vulnerabilities of the pinned versions; asks PyPI's service
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

.venv-audit/ready:
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet "pip-audit==2.10.1"
	touch $@

lint: venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: venv
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv .venv-audit runs build dist .pytest_cache .mypy_cache .ruff_cache
