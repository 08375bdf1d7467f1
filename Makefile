# make run · make test · make bench · make soak — each makes the environment first; a fresh machine needs Python 3.11, git, gcc, make.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
READY := $(VENV)/.ready
export UV_SYSTEM_CERTS := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test browser lint bench soak lock clean

run: $(READY)
	$(BIN)/huracan nightly --nights 2

test: browser lint
	$(BIN)/python -m pytest --cov --cov-report=term -q

browser:                     # the page tests look at what people see; where it cannot be installed they are skipped, and say so
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
		|| echo "chromium is missing and cannot be installed here: the page tests will be skipped"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	@$(BIN)/python tests/bench/run.py

soak: $(READY)
	HURACAN_SOAK=1 $(BIN)/python -m pytest -q -m soak

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(UV) pip sync --quiet --python $(BIN)/python --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(READY)

lock: $(READY)                # after a change of dependencies
	$(UV) pip compile pyproject.toml --all-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -o requirements.lock

clean:
	rm -rf $(VENV) .huracan
