# The commands of the project. Each does its own set-up in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process a GPU; two on a machine without one.
PROCESSES = $(shell $(BIN)/python -c 'import torch; print(torch.cuda.device_count() or 2)')
# Ranks set their own number of threads; this silences torchrun's advice about it.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo real-text stages test fuzz lint format bench bench-corpus bench-data bench-gpu bench-zero1 clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The engine and what it needs to train.
$(VENV)/.installed: $(BIN)/python pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# What tests and lint need besides.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# What `bench-data` compares with.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/python tools/prepare_corpus.py --config configs/demo.yaml
	$(BIN)/torchrun --nproc-per-node $(PROCESSES) tools/pretrain.py --config configs/demo.yaml
	$(BIN)/python tools/report.py runs/demo

# The 14 real sources under $MINDLLM_DATA (see configs/real_text.yaml): about 45 minutes on two cores.
real-text: setup
	$(BIN)/python tools/prepare_corpus.py --config configs/real_text.yaml
	$(BIN)/torchrun --nproc-per-node $(PROCESSES) tools/pretrain.py --config configs/real_text.yaml
	$(BIN)/python tools/report.py runs/real_text

# Both networks of the paper, small, through every stage on real text: pre-trained, tuned on instructions in both languages
# and law, taught sums, asked benchmarks, exported, reported; meant to stay under 30 minutes on two cores (not yet measured whole).
STAGES = runs/stages
TORCHRUN = $(BIN)/torchrun --nproc-per-node $(PROCESSES) --
stages: $(VENV)/.installed-dev
	$(BIN)/python tools/prepare_corpus.py --config configs/stages/gpt_neo.yaml
	$(BIN)/python tools/make_arithmetic.py --out data/stages/arithmetic --largest 19
	for run in $(STAGES)/gpt_neo $(STAGES)/mindllm; do \
	  $(TORCHRUN) tools/pretrain.py --config configs/stages/$$(basename $$run).yaml && \
	  $(TORCHRUN) tools/tune.py --config configs/stages/tune.yaml --run.init_from $$run --run.dir $${run}_tuned && \
	  $(TORCHRUN) tools/tune.py --config configs/stages/arithmetic.yaml --run.init_from $$run --run.dir $${run}_sums && \
	  $(TORCHRUN) tools/evaluate.py --run $$run --suite configs/stages/knowledge.yaml && \
	  $(TORCHRUN) tools/evaluate.py --run $${run}_tuned --suite configs/stages/knowledge.yaml && \
	  $(TORCHRUN) tools/evaluate.py --run $$run --suite configs/stages/sums.yaml && \
	  $(TORCHRUN) tools/evaluate.py --run $${run}_sums --suite configs/stages/sums.yaml && \
	  $(BIN)/python tools/export_hf.py --run $${run}_tuned --out $${run}_tuned/hf || exit 1; done
	$(BIN)/python tools/report.py $(STAGES)/gpt_neo $(STAGES)/gpt_neo_tuned $(STAGES)/gpt_neo_sums $(STAGES)/mindllm \
	  $(STAGES)/mindllm_tuned $(STAGES)/mindllm_sums --out $(STAGES)/report.html

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Hostile token files, manifests and samples under the sanitizers, 1.1 million inputs in all (tests/fuzz/__init__.py).
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz.run

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What can be measured without a GPU: every kernel's machine code, addresses and memory traffic, and the host's time.
bench: setup
	for file in machine_code address_arithmetic memory_traffic host_cost; do \
	  echo "$$file:"; $(BIN)/python benchmarks/$$file.py || status=1; done; exit $${status:-0}

# The data path beside megatron-core's, then sources in object storage: about 15 minutes on two idle cores, 30 GB of disk.
bench-data: $(VENV)/.installed-bench
	for file in token_streams remote_streams; do \
	  echo "$$file:"; $(BIN)/python benchmarks/$$file.py || status=1; done; exit $${status:-0}

# The corpus pipeline, step by step and as a whole, beside its peers: about 20 minutes on two idle cores.
bench-corpus: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/corpus.py

# ZeRO-1 beside DeepSpeed, FSDP2 and DDP, on two ranks, then the loop's own work: about eight minutes on two idle cores.
bench-zero1: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/zero1.py

# Every kernel beside its peers, then a training step of both networks: under nine minutes on one GPU. Runs on any image
# with torch and Triton, with no installation; on a CPU the kernels are interpreted at toy sizes.
bench-gpu:
	status=0; for file in kernels train_step; do $(PYTHON) benchmarks/$$file.py || status=1; done; exit $$status

clean:
	rm -rf $(VENV) build *.egg-info mindllm_engine/*.so runs data
