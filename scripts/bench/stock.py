"""What Ray's documentation of ray.serve.llm would have one write for this model: nothing of ours is in it."""

from ray.llm._internal.serve.core.configs.accelerators import CPUConfig
from ray.serve.llm import LLMConfig, build_openai_app

from app.builtin import ensure
from app.settings import Settings
from scripts.bench.servers import MODEL, NAME, engine_arguments

app = build_openai_app(
    {
        "llm_configs": [
            LLMConfig(
                model_loading_config={"model_id": NAME, "model_source": str(ensure(MODEL))},
                accelerator_config=CPUConfig(),
                engine_kwargs=engine_arguments(Settings().models[0].variants[0]),
                deployment_config={"num_replicas": 1, "max_ongoing_requests": 256},
                runtime_env={"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}},
            )
        ],
        # On two cores the default never gets a place.
        "ingress_deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}},
    }
)
