"""A LoRA adapter for the built-in model, made here: rank 8 on every q_proj, so strong that answers change."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8


def make(model: Path, directory: Path) -> Path:
    """Write the adapter for the model in `model`, in peft's format, into `directory`."""
    config = json.loads((model / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for part, shape in (("lora_A", (RANK, hidden)), ("lora_B", (hidden, RANK))):
            tensors[f"{prefix}.{part}.weight"] = torch.randn(shape, generator=generator, dtype=torch.float32) * 0.5
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q_proj"],
        "bias": "none",
        "base_model_name_or_path": str(model),
    }
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    return directory
