PYTHON ?= python3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help .venv quickstart test test-all test-browser fuzz lint clean

help:  ## List the targets
	@grep -hE '^[.a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-12s %s\n", $$1, $$2 }'

.venv: .venv/.installed  ## Make the environment and install OneNet in it

# Not compiling in advance saves a minute: Python compiles what it imports.
.venv/.installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --no-compile -c constraints.txt -e '.[test]'
	touch $@

SHAPES := configs/quick_schedules/onenet.res18.shapes.yaml
RUN := output/shapes

quickstart: .venv/.installed  ## Draw a data set, train on it, evaluate, show pictures
	.venv/bin/python tools/make_shapes_dataset.py --size 96
	.venv/bin/python projects/OneNet/train_net.py --config-file $(SHAPES) --overwrite \
		OUTPUT_DIR $(RUN)
	.venv/bin/python tools/visualize_json_results.py --output $(RUN)/validation.jpg \
		--input $(RUN)/inference/coco_instances_results.json \
		--dataset datasets/shapes/annotations/instances_val.json:datasets/shapes/val
	@echo 'The same weights, with NMS added (OneNet should not need it):'
	.venv/bin/python projects/OneNet/train_net.py --config-file $(SHAPES) --eval-only \
		OUTPUT_DIR $(RUN)/nms MODEL.WEIGHTS $(RUN)/model_final.pth MODEL.OneNet.NMS True
	@echo
	@echo 'Log               $(RUN)/log.txt'
	@echo 'Curves, pictures  .venv/bin/tensorboard --logdir $(RUN)'
	@echo 'Weights           $(RUN)/model_final.pth'
	@echo 'Validation images $(RUN)/validation.jpg'

test: .venv/.installed  ## Run the tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: .venv/.installed  ## Run the slow tests, too
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal

test-browser: .venv/.installed  ## Test the page in a headless Chromium; installs Debian's, which needs root
	.venv/bin/pip install -q --no-compile -c constraints.txt -e '.[page]' playwright
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y chromium; }
	ONENET_BROWSER=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/browser

fuzz: .venv/.installed  ## Read 340,000 mutated files: annotations, labels, results, configs, weights (RUNS=N of each)
	.venv/bin/pip install -q -c constraints.txt atheris
	PYTHONPATH=tests .venv/bin/python -m fuzz $(if $(RUNS),--runs $(RUNS))

lint: .venv/.installed  ## Check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:  ## Remove the environment and what building and testing leave behind
	rm -rf .venv build dist .hypothesis .pytest_cache .ruff_cache projects/OneNet/onenet.egg-info
	find configs demo projects tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
