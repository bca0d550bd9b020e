# Every target works in a fresh clone: it makes its own virtual environment.

VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
OUT ?= demo_out

# Where there is a compiler, kernels that do not build are an error and not a slower installation.
ifneq ($(shell command -v $(or $(CXX),c++) 2>/dev/null),)
export CSC_KERNELS_NATIVE ?= 1
endif

# "cuda" runs the tests and the benchmarks on a GPU.
DEVICE ?= cpu

# Without a GPU the CUDA kernels are built for one architecture, which is what `make test` looks at; a wheel has all.
ifeq ($(DEVICE)$(shell command -v nvidia-smi 2>/dev/null),cpu)
export TORCH_CUDA_ARCH_LIST ?= 8.0
endif

.PHONY: install demo train pretrained test prove prove-triton prove-cuda prove-compiled prove-mutations prove-avx512 bench profile wheel-check

install: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/cpu/* csrc/cuda/*)
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

# Trains what ships, or goes on with it: make pretrained CIFAR10=FOLDER_OR_ARCHIVE
SMALL = resnet18 sdnet18 sdnet18_all
pretrained: install $(SMALL:%=pretrained-%)

pretrained-%:
	$(RUN) -m sdnet train cifar10_small --out runs/cifar10_$*_w16 --model.name $* --data.root $(CIFAR10)
	mkdir -p python/sdnet/pretrained_models/cifar10_$*_w16
	cp runs/cifar10_$*_w16/model/config.json runs/cifar10_$*_w16/model/model.safetensors runs/cifar10_$*_w16/log.csv \
		python/sdnet/pretrained_models/cifar10_$*_w16
	echo "sdnet train cifar10_small --model.name $* --data.root CIFAR10" \
		> python/sdnet/pretrained_models/cifar10_$*_w16/command.txt

# On all cores; on a GPU, where tests would wait for each other, in one process.
JOBS ?= $(if $(filter cuda,$(DEVICE)),1,auto)
test: install
	CSC_TEST_DEVICE=$(DEVICE) $(RUN) -m pytest tests csc_kernels --doctest-modules -n $(JOBS) --dist worksteal

# The GPU kernels without a GPU: executed, compiled for every architecture, and broken on purpose.
prove: $(VENV)/all-architectures
	$(MAKE) -j4 -Oline prove-triton prove-cuda prove-compiled prove-mutations

COMPILED = tests/test_triton_resources.py tests/test_cuda_resources.py
prove-triton: install
	$(RUN) -m pytest --whole $(filter-out $(COMPILED),$(wildcard tests/test_triton*.py))

prove-cuda: install
	$(RUN) -m pytest --whole $(filter-out $(COMPILED),$(wildcard tests/test_cuda*.py)) tests/test_cudnn.py \
		tests/test_emulation.py

prove-compiled: $(VENV)/all-architectures
	$(RUN) -m pytest --whole $(COMPILED)

$(VENV)/all-architectures: $(VENV)/installed
	env -u TORCH_CUDA_ARCH_LIST $(RUN) setup.py --quiet build_ext --inplace
	touch $@

prove-mutations: install
	$(RUN) tests/mutate_cuda.py
	$(RUN) tests/mutate_triton.py

# The kernels of AVX-512 where there is AVX2 alone.
prove-avx512: install
	$(RUN) tests/prove_avx512.py

wheel-check: install
	env -u TORCH_CUDA_ARCH_LIST $(RUN) tests/check_wheel.py

profile: install
	$(RUN) bench/profile_gpu.py --out bench/results

ifeq ($(DEVICE),cuda)
bench: install
	$(RUN) bench/bench_gpu.py --out bench/results
else
bench: install
	$(RUN) bench/bench_fista.py --out bench/results
	$(RUN) bench/bench_models.py --out bench/results
	$(RUN) bench/bench_ablation.py --out bench/results
	$(RUN) bench/bench_startup.py --out bench/results
	$(RUN) bench/bench_phases.py --out bench/results
	$(RUN) bench/bench_wide.py --out bench/results
	$(RUN) bench/bench_density.py --out bench/results
	$(RUN) -m pytest bench --benchmark-only
	$(RUN) bench/report.py bench/results
endif
