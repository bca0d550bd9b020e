# Every target works in a fresh clone: it makes its own virtual environment.

VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
OUT ?= demo_out

.PHONY: install demo train test bench

install: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "torch>=2.10" "torchvision>=0.25" numpy "setuptools>=77" wheel ninja
	$(VENV)/bin/pip install --quiet --no-build-isolation -e ".[sdnet,test]"
	touch $@

demo: install
	$(RUN) -m sdnet demo --out $(OUT)

train: install
	$(RUN) -m sdnet train digits --out $(OUT)/digits
	$(RUN) -m sdnet invert $(OUT)/digits --out $(OUT)/digits/layers.png
	$(RUN) -m sdnet show $(OUT)/digits --out $(OUT)/digits/report.html

test: install
	$(RUN) -m pytest tests csc_kernels --doctest-modules

bench: install
	$(RUN) bench/bench_fista.py --out bench/results
	$(RUN) bench/bench_models.py --out bench/results
	$(RUN) bench/bench_ablation.py --out bench/results
	$(RUN) bench/bench_startup.py --out bench/results
	$(RUN) -m pytest bench --benchmark-only
	$(RUN) bench/report.py bench/results
