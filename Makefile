# The commands of the project. `make` alone lists them.
STACK ?= local
CACHE := $(or $(BLUEPRINT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ray-serve-blueprint)
UV := $(or $(shell command -v uv),$(CACHE)/uv/bin/uv)
APP := .venv/bin/python
INFRA := .venv-infra/bin/python

# One environment runs the application, the other deploys it: they disagree about protobuf.
export UV_PYTHON_DOWNLOADS := never

# Without bytecode on disk each process of a server compiles vLLM for itself, at every start: 30 s of import for 10.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help rename setup serve demo experiment metrics key bootstrap weights preview cost plan prices doctor up status \
  coldstart logs forward down bench test fuzz fuzz-server aws setup-docker remove-docker engine e2e e2e-upgrade \
  e2e-kill karpenter check audit tools image push lock schema record-metrics vendor-balancer vendor-dashboards \
  vendor-karpenter vendor-kuberay vendor-prometheus vendor-secrets

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

rename: .venv-infra/.installed ## call the project NAME, once, before anything of it is deployed
	@$(INFRA) -m scripts.rename "$(NAME)"

setup: .venv/.installed .venv-infra/.installed ## install both Python environments from the locks
	@$(APP) -m scripts.packages laptop

serve: .venv/.installed ## serve the built-in models, or SETTINGS=file, on 127.0.0.1:8000; SHAPE=cluster as a RayService does
	@$(APP) -m scripts.serve $(SETTINGS) $(if $(SHAPE),--shape $(SHAPE))

demo: .venv/.installed ## a tour over all routes of the server that runs at URL (default: here)
	@$(APP) -m scripts.demo $(if $(URL),--url $(URL))

experiment: .venv/.installed ## compare the variants of the server that runs here
	@$(APP) -m scripts.experiment

metrics: .venv-infra/.installed ## a Prometheus with STACK's rules beside the server that runs here (PORT=9090), until Ctrl-C
	@$(INFRA) -m scripts.local_prometheus $(STACK) --port "$(PORT)"

key: .venv-infra/.installed ## make an API key for NAME (MODELS=a,b RPM= TPM= CONCURRENCY= limit it), shown once
	@$(INFRA) -m scripts.key --name "$(NAME)" --models "$(MODELS)" --rpm "$(RPM)" --tpm "$(TPM)" \
	  --concurrency "$(CONCURRENCY)"

bootstrap: .venv-infra/.installed ## the bucket and the key for Pulumi's state, in the AWS account of STACK
	@$(INFRA) -m scripts.bootstrap $(STACK)

weights: .venv/.installed ## put MODEL of the hub, at the commit REVISION, into STACK's bucket, with checksums
	@$(APP) -m scripts.weights $(STACK) --model "$(MODEL)" --revision "$(REVISION)"

preview: .venv-infra/.installed ## what `make up` would do to STACK
	@$(INFRA) -m scripts.preview $(STACK)

cost: .venv-infra/.installed ## what STACK costs by the hour and month (TOKENS_PER_SECOND= adds USD a million tokens; JSON=1)
	@$(INFRA) -m scripts.cost $(STACK) --tokens-per-second "$(TOKENS_PER_SECOND)" $(if $(JSON),--json)

plan: .venv/.installed ## what traffic does to STACK: waits, 429s, GPU hours and cost, also with other settings (docs/planning.md)
	@$(APP) -m scripts.plan $(STACK) --model "$(MODEL)" --trace "$(TRACE)" --rate "$(RATE)" \
	  --seconds-alone "$(SECONDS_ALONE)" --seconds-full "$(SECONDS_FULL)" --plot "$(PLOT)"

prices: .venv-infra/.installed ## AWS's prices of now for what STACK uses, into infra/aws/prices.csv
	@$(INFRA) -m scripts.prices $(STACK)

up: .venv/.installed .venv-infra/.installed ## deploy STACK (default: local) and ask the model a question
	@$(INFRA) -m scripts.up $(STACK)

doctor: .venv-infra/.installed ## what would make `make up` of STACK fail, or does not work now, each with its fix
	@$(INFRA) -m scripts.doctor $(STACK)

status: .venv-infra/.installed ## what of STACK runs, and what keeps the rest from running
	@$(INFRA) -m scripts.status $(STACK)

coldstart: .venv-infra/.installed ## how long each stage of their start took STACK's Ray pods and replicas, to the first token
	@$(INFRA) -m scripts.coldstart $(STACK)

logs: .venv-infra/.installed ## the logs of STACK's Ray pods (POD= and WHAT= choose by a part of the name, REQUEST= by id; FOLLOW=1)
	@$(INFRA) -m scripts.logs $(STACK) --pod "$(POD)" --what "$(WHAT)" --request "$(REQUEST)" $(if $(FOLLOW),--follow)

forward: .venv-infra/.installed ## STACK's endpoint (PORT=8000), Ray's DASHBOARD=8265, GRAFANA=3000, PROMETHEUS=9090 on 127.0.0.1
	@$(INFRA) -m scripts.forward $(STACK) --port "$(PORT)" --dashboard "$(DASHBOARD)" --grafana "$(GRAFANA)" \
	  --prometheus "$(PROMETHEUS)"

down: .venv-infra/.installed ## take STACK away and leave nothing behind; production wants its name, CONFIRM=<stack>
	@$(INFRA) -m scripts.down $(STACK) --confirm "$(CONFIRM)"

bench: .venv/.installed ## measure KIND=chat, generate, embeddings, classify, analyze, noop, overload or scaling into bench/results (docs/performance.md)
	@$(APP) -m scripts.bench $(KIND) --contenders "$(CONTENDERS)" --concurrency "$(CONCURRENCY)" \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(RESULTS),--results $(RESULTS)) $(if $(PROFILE),--profile)

test: setup ## unit and infrastructure tests, the AWS provider, and the real server driven by the OpenAI client
	$(TWICE) $(INFRA) -m pytest tests/unit tests/infra
	$(TWICE) $(MAKE) aws
	$(TWICE) $(APP) -m pytest tests/app

fuzz: .venv/.installed ## atheris on the parsers of what comes from outside, SECONDS=60 for all (TARGET= for one, INPUT= again)
	@$(APP) -m tests.fuzz --seconds $(or $(SECONDS),60) $(if $(TARGET),--target $(TARGET)) $(if $(INPUT),--input $(INPUT))

fuzz-server: .venv/.installed ## requests of any kind to a server of its own for SECONDS=3600, and what became of them into RESULTS
	$(APP) -m pytest --capture=no tests/app/test_any_request.py --seconds $(or $(SECONDS),3600) \
	  $(if $(RESULTS),--results $(RESULTS))

aws: .venv-infra/.installed ## each stack's AWS half to the real AWS provider and back, against a fake AWS (TF_PLUGIN_MIRROR=)
	$(INFRA) -m pytest --capture=no tests/aws

setup-docker: .venv-infra/.installed ## start a Docker engine for test containers, where none answers; tests do it themselves
	@$(INFRA) -m scripts.docker_engine setup

remove-docker: .venv-infra/.installed ## end it, with its containers and images
	@$(INFRA) -m scripts.docker_engine remove

engine: .venv-infra/.installed ## the real Pulumi engine on the program and its policies, with a stand-in for its AWS provider
	$(INFRA) -m pytest tests/engine

e2e: .venv-infra/.installed ## the whole path on a real Kubernetes: up, answer, unchanged, down, nothing left (but scenarios WITHOUT=)
	$(INFRA) -m pytest --capture=no tests/e2e $(addprefix --ignore=tests/e2e/,upgrades incremental kills $(WITHOUT))

e2e-upgrade: .venv-infra/.installed ## RUNS upgrades of each kind under load, and what clients saw of them, into RESULTS
	$(INFRA) -m pytest --capture=no tests/e2e/upgrades tests/e2e/incremental --runs $(or $(RUNS),1) $(if $(RESULTS),--results $(RESULTS))

e2e-kill: .venv-infra/.installed ## what clients see, and for how long, of whatever dies under load, into RESULTS
	$(INFRA) -m pytest --capture=no tests/e2e/kills $(if $(RESULTS),--results $(RESULTS))

karpenter: .venv-infra/.installed ## worker pods of all stacks on AWS, or STACKS, lead to nodes: the real Karpenter, a fake AWS (needs root)
	$(INFRA) -m pytest --capture=no tests/karpenter $(if $(STACKS),--stacks "$(STACKS)")

APP_SCRIPTS := $(addprefix scripts/,bench demo.py experiment.py metrics.py plan record_metrics.py schema.py serve.py \
  vendor_dashboards.py weights.py)
check: setup ## format, lint, types, and no secret in any file
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath $(APP) app $(APP_SCRIPTS) tests/app tests/fuzz
	git ls-files -z | xargs -0 .venv-infra/bin/detect-secrets-hook --no-verify --baseline .secrets.baseline
	.venv-infra/bin/pyright --pythonpath $(INFRA) infra $(filter-out $(APP_SCRIPTS),$(wildcard scripts/*.py)) \
	  scripts/cluster scripts/doctor scripts/tools tests/unit tests/infra tests/aws tests/engine tests/e2e \
	  tests/karpenter tests/ports.py

audit: .venv-infra/.installed ## what is known against the packages of the locks (OSV_URL= names another OSV)
	@$(INFRA) -m scripts.audit

tools: .venv-infra/.installed ## build the tools of the Kubernetes path that are not on PATH
	@$(INFRA) -m scripts.tools

image: .venv-infra/.installed ## build the application image of STACK
	@$(INFRA) -m scripts.image $(STACK)

push: .venv-infra/.installed ## build it, and bring it to its registry
	@$(INFRA) -m scripts.image $(STACK) --push

LOCK = $(UV) pip compile pyproject.toml --quiet --no-emit-index-url --custom-compile-command 'make lock' $(UPGRADE)
# Never loaded on a CPU, and close to a gigabyte.
UNUSED = $(addprefix --no-emit-package ,triton nvidia-cusolver nvidia-nvtx cuda-bindings cuda-pathfinder)
# What is in both has the version that vLLM takes on GPUs: tests run on CPUs.
lock: $(UV) ## make the locks anew from pyproject.toml (UPGRADE=--upgrade for newer versions)
	$(LOCK) --extra app --extra gpu -o requirements/gpu.txt
	$(LOCK) --extra app --extra cpu $(UNUSED) -c requirements/gpu.txt -o requirements/cpu.txt
	$(LOCK) --extra app --extra cpu --group models --group dev --group experiment --group plan $(UNUSED) \
	  -c requirements/cpu.txt -o requirements/dev.txt
	$(LOCK) --extra infra --group dev --group aws --group security --group gateway -o requirements/infra.txt

schema: .venv/.installed ## write the JSON schemas of settings and stack files, and what the pinned vLLM knows
	@$(APP) -m scripts.schema

record-metrics: .venv/.installed ## write what a server exports to Prometheus into infra/observability/metrics.csv
	@$(APP) -m scripts.record_metrics

vendor-balancer: .venv-infra/.installed ## copy the Load Balancer Controller's CRDs into infra/platform/manifests
	@$(INFRA) -m scripts.vendor_balancer

vendor-dashboards: .venv/.installed ## Grafana's dashboards as the pinned Ray generates them, into infra/observability/dashboards/ray
	@$(APP) -m scripts.vendor_dashboards

vendor-karpenter: .venv-infra/.installed ## copy the pinned Karpenter's CRDs into infra/platform/manifests
	@$(INFRA) -m scripts.vendor_karpenter

vendor-kuberay: .venv-infra/.installed ## copy the pinned KubeRay's manifests into infra/platform/manifests
	@$(INFRA) -m scripts.vendor_kuberay

vendor-prometheus: .venv-infra/.installed ## copy the pinned Prometheus operator's manifests into infra/observability/manifests
	@$(INFRA) -m scripts.vendor_prometheus

vendor-secrets: .venv-infra/.installed ## copy the schemas of External Secrets' objects into tests/infra/crds
	@$(INFRA) -m scripts.vendor_secrets

define install
	@echo "… installing $(1) from $(2)"
	@$(UV) venv --quiet --clear --python 3.11 $(1) || { \
	  echo "error: Python 3.11 is needed and not found" >&2; \
	  echo "  fix: install it (Debian 12: apt-get install python3.11-venv), or put it on PATH" >&2; exit 1; }
	@$(UV) pip sync --quiet --python $(1)/bin/python --require-hashes $(2)
	@touch $@ && echo "✓ installed $(1)"
endef

.venv/.installed: requirements/dev.txt | $(UV)
	$(call install,.venv,requirements/dev.txt)

.venv-infra/.installed: requirements/infra.txt | $(UV)
	$(call install,.venv-infra,requirements/infra.txt)

$(CACHE)/uv/bin/uv:
	@command -v python3 >/dev/null || { echo "error: Python 3.11 is needed and not found" >&2; exit 1; }
	@python3 -m venv $(CACHE)/uv
	@$(CACHE)/uv/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt
