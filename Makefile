# make demo | test | slow | reference | kills | signals | fuzz | bench | check: each sets up .venv by itself; needed beforehand: Python 3.11+, make, network.
PYTHON ?= $(firstword $(foreach p,python3.14 python3.13 python3.12 python3.11 python3,$(shell command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
# On Linux the MLX wheel brings a slow BLAS. opencv-python, which mlx-vlm installs, brings a fast one: loaded first,
# it is used instead and everything runs several times faster. Nothing depends on it; NO_PRELOAD=1 goes without.
BLAS = $(if $(NO_PRELOAD),,$(firstword $(wildcard .venv/lib/python3*/site-packages/opencv_python.libs/libopenblasp*.so)))
ENV = $(if $(BLAS),LD_PRELOAD=$(CURDIR)/$(BLAS)) OMP_WAIT_POLICY=passive MLX_DISABLE_COMPILE=1

.PHONY: demo test slow reference kills signals fuzz bench check clean

demo: .venv/ready
	@$(ENV) $(BIN)/visalign demo

# Two processes, each with whole files in their order, whose slow ones come first. One BLAS thread in each:
# at this size more of them mostly wait for each other, spinning.
test: .venv/ready
	@$(ENV) OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder
	@grep -rl pytest.mark.alone tests --include='test_*.py' | $(ENV) OPENBLAS_NUM_THREADS=1 xargs -P 2 -n 1 $(BIN)/python -m pytest -q -m alone

slow: .venv/ready
	@$(ENV) $(BIN)/python -m pytest -q -m slow

reference: .venv/reference
	@$(ENV) $(BIN)/python -m pytest -q -m reference

# Methods, converters, fuse and upload killed with SIGKILL at N random moments each, and gone on with: the same, bit for bit?
N ?= 20
kills: .venv/ready
	@$(ENV) $(BIN)/python tests/benchmarks/kills.py --kills $(N)

# SIGINT, SIGTERM and SIGHUP at N random moments each, a quarter of them in the first second: no traceback, nothing torn?
signals: .venv/ready
	@$(ENV) $(BIN)/python tests/benchmarks/signals.py --count $(N)

# Damaged inputs of every kind, 50,000 of them in an hour: each a result or one sentence? Finds go to runs/fuzz.
fuzz: .venv/ready
	@$(ENV) $(BIN)/python tests/benchmarks/fuzz.py

# A DPO step and sampling against mlx-vlm and TRL; the table goes to tests/benchmarks/results/bench.json too.
bench: .venv/reference
	@$(ENV) $(BIN)/python tests/benchmarks/bench.py

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found. Install it (python.org, Homebrew or your package manager), or name it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,dev]'
	@touch $@

.venv/reference: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,dev,reference]'
	@touch $@

clean:
	rm -rf .venv runs build *.egg-info
