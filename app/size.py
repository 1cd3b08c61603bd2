"""How much GPU memory a language model takes: known before anything runs, from what its config.json says.

A floor. What vLLM takes beside weights and cache (activations, CUDA graphs) comes on top, and so do the parts of a
model that a quantisation leaves as they are.
"""

import math
from typing import NamedTuple

from pydantic import Field

from app.engine import Engine
from app.validation import Strict

GIB = 2**30
DTYPE_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}
"""Of a number; `auto` is the weights' own type, which is one of 16 bits for all but very old models."""
QUANTIZED_BYTES = {
    **dict.fromkeys(("fp8", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block", "fbgemm_fp8", "experts_int8"), 1.0),
    **dict.fromkeys(("awq", "awq_marlin", "auto_awq", "gptq", "gptq_marlin", "auto_gptq", "mxfp4"), 0.5),
}
"""Of a parameter. The other methods' depend on the weights: size.bytes_per_parameter says it."""


class Size(Strict):
    """What of a model decides how much memory it takes, under the names of its config.json."""

    parameters_billion: float = Field(gt=0, description="Parameters, all of them, in billions: 8.19 for Qwen3-8B.")
    num_hidden_layers: int = Field(
        ge=1, description="Layers that cache every token; of a hybrid model, those of full attention."
    )
    num_attention_heads: int = Field(ge=1, description="Attention heads: tensor parallelism divides them.")
    num_key_value_heads: int = Field(ge=1, description="Heads of keys and values. 1 with latent attention (MLA).")
    head_dim: int = Field(
        ge=1,
        description="Numbers of a head; hidden_size / num_attention_heads where config.json has none. With latent "
        "attention half of kv_lora_rank + qk_rope_head_dim, which are cached once and not as keys and values.",
    )
    bytes_per_parameter: float | None = Field(
        default=None,
        gt=0,
        le=4,
        description="Of the weights on the GPU; left out, what engine.quantization or else engine.dtype make of them.",
    )

    def weights_gib(self, engine: Engine) -> float:
        """The weights on all of a replica's GPUs together. Raises ValueError where their type is not known."""
        of_engine = QUANTIZED_BYTES.get(engine.quantization) if engine.quantization else DTYPE_BYTES[engine.dtype]
        each = self.bytes_per_parameter or of_engine
        if each is None:
            raise ValueError(
                f"size.bytes_per_parameter: is missing, and what quantization = {engine.quantization!r} makes of a "
                "parameter is for the weights to say; fix: add it, 0.5 for 4 bits or 1 for 8"
            )
        return self.parameters_billion * 1e9 * each / GIB

    def memory(self, engine: Engine) -> "Memory":
        """What each GPU of a replica must hold at the least: its part of the weights, and one request of full length.

        A token is cached as keys and values, 2 × layers × heads × head_dim numbers, of which a GPU has its layers and
        its heads, and one head at the least. As vLLM has it in FullAttentionSpec.max_memory_usage_bytes and
        ModelConfig.get_num_kv_heads, which refuses to start below:
        https://github.com/vllm-project/vllm/blob/v0.29.0/vllm/v1/kv_cache_interface.py

        Raises ValueError where the type of the weights is not known.
        """
        layers = math.ceil(self.num_hidden_layers / engine.pipeline_parallel_size)
        heads = max(1, self.num_key_value_heads // engine.tensor_parallel_size)
        token = 2 * layers * heads * self.head_dim * _cached_bytes(engine)
        offloaded = engine.extra.get("cpu_offload_gb")
        weights = self.weights_gib(engine) / engine.workers - (offloaded if isinstance(offloaded, (int, float)) else 0)
        return Memory(max(0, weights), token * engine.max_model_len / GIB)


class Memory(NamedTuple):
    """Of one GPU, in GiB."""

    weights: float
    context: float
    """The key-value cache of one request of max_model_len tokens."""


def _cached_bytes(engine: Engine) -> float:
    """Of a cached number, by vLLM's kv_cache_dtype."""
    dtype = str(engine.extra.get("kv_cache_dtype", "auto"))
    if dtype in DTYPE_BYTES:
        return DTYPE_BYTES[engine.dtype if dtype == "auto" else dtype]
    return 1 if dtype.startswith(("fp8", "int8")) else 0.375  # the least that there is: 3 bits
