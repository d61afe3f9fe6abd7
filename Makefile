# The commands of the project. Each does its own set-up in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process a GPU; two on a machine without one.
PROCESSES = $(shell $(BIN)/python -c 'import torch; print(torch.cuda.device_count() or 2)')
# Ranks set their own number of threads; this silences torchrun's advice about it.
export OMP_NUM_THREADS ?= 1
# Where the real text lies.
export MINDLLM_DATA ?= ../shared/data
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo real-text stages studies test fuzz lint format bench bench-corpus bench-data bench-gpu bench-tuning bench-zero1 clean

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
# and law, taught sums, asked benchmarks, exported, reported: 18 minutes on two cores.
STAGES = runs/stages
stages: $(VENV)/.installed-dev
	$(BIN)/python tools/prepare_corpus.py --config configs/stages/corpus.yaml
	$(BIN)/python tools/make_arithmetic.py --out data/stages/arithmetic --largest 9
	$(MAKE) --jobs 2 stages-gpt_neo stages-mindllm
	$(BIN)/python tools/report.py $(foreach network,gpt_neo mindllm,$(STAGES)/$(network) $(STAGES)/$(network)_tuned $(STAGES)/$(network)_sums) \
	  --out $(STAGES)/report.html

# One process each: two that exchange gradients through gloo are 1.4 times slower than two that do not.
stages-%:
	$(BIN)/python tools/pretrain.py --config configs/stages/corpus.yaml --config configs/stages/$*.yaml
	$(BIN)/python tools/tune.py --config configs/stages/tune.yaml --run.init_from $(STAGES)/$* --run.dir $(STAGES)/$*_tuned
	$(BIN)/python tools/tune.py --config configs/stages/arithmetic.yaml --run.init_from $(STAGES)/$* --run.dir $(STAGES)/$*_sums
	for run in $(STAGES)/$* $(STAGES)/$*_tuned; do $(BIN)/python tools/evaluate.py --run $$run --suite configs/stages/knowledge.yaml || exit 1; done
	for run in $(STAGES)/$* $(STAGES)/$*_sums; do $(BIN)/python tools/evaluate.py --run $$run --suite configs/stages/sums.yaml || exit 1; done
	$(BIN)/python tools/export_hf.py --run $(STAGES)/$*_tuned --out $(STAGES)/$*_tuned/hf

# The papers' experiments at toy scale, on real text (docs/studies.md): 77 minutes on two cores.
STUDIES = scaling batch_size sources orders transfer wsd wind_tunnel
INSTRUCTIONS = data/instruction_text
studies: $(VENV)/.installed-dev
	for lang in en zh; do test -f $(INSTRUCTIONS)/$$lang.jsonl || $(BIN)/python tools/write_instruction_text.py \
	  --records '["'$(MINDLLM_DATA)'/instruct/alpaca_'$$lang'.jsonl.gz"]' --out $(INSTRUCTIONS)/$$lang.jsonl || exit 1; done
	for study in $(STUDIES); do echo "$$study:"; $(BIN)/python tools/study.py --config configs/studies/$$study.yaml || exit 1; done
	$(BIN)/python tools/report_studies.py $(addprefix runs/studies/,$(STUDIES)) --out runs/studies/report/report.html

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

# Few-shot questions and instruction scoring beside Transformers, and how far arenas are from the truth: hours, most
# of them instructions in fp32; each has run, but fp32 on few records. The network that scores is one of `make stages`.
ALPACA = $(MINDLLM_DATA)/instruct/alpaca_en.jsonl.gz $(MINDLLM_DATA)/instruct/alpaca_zh.jsonl.gz
bench-tuning: $(VENV)/.installed-dev
	test -d $(STAGES)/gpt_neo || $(MAKE) stages
	status=0; $(BIN)/python benchmarks/evaluation.py || status=1; for file in instruction_scoring entropy_filter; do \
	  $(BIN)/python benchmarks/$$file.py --run $(STAGES)/gpt_neo --records $(ALPACA) || status=1; done; \
	  $(BIN)/python benchmarks/exported_evaluation.py --run $(STAGES)/gpt_neo_tuned --run $(STAGES)/mindllm_tuned || status=1; \
	  $(BIN)/python benchmarks/arena.py || status=1; exit $$status

# ZeRO-1 beside DeepSpeed, FSDP2 and DDP, on two ranks, then the loop's own work: about eight minutes on two idle cores.
bench-zero1: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/zero1.py

# Every kernel beside its peers, then a training step of both networks: under nine minutes on one GPU. Runs on any image
# with torch and Triton, with no installation; on a CPU the kernels are interpreted at toy sizes.
bench-gpu:
	status=0; for file in kernels train_step; do $(PYTHON) benchmarks/$$file.py || status=1; done; exit $$status

clean:
	rm -rf $(VENV) build *.egg-info mindllm_engine/*.so runs data
