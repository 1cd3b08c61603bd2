"""Small sequence classifiers with random weights, and what transformers computes with them directly."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, LlamaConfig

from app.builtin import ensure


def make_classifier(
    directory: Path, labels: list[str], kind: type[BertConfig] | type[LlamaConfig] = BertConfig, **more: Any
) -> Path:
    """A model of a few megabytes with the built-in embedding model's tokenizer; `more` goes into its configuration."""
    tokenizer = AutoTokenizer.from_pretrained(ensure("all-minilm-l6-v2"))
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.5,  # the usual 0.02 says nearly the same of every text
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **more,
    )
    torch.manual_seed(7)
    AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@torch.inference_mode()
def logits(directory: Path, max_tokens: int, *texts: str) -> torch.Tensor:
    """float32 [labels] of one text or of one pair of texts: no batch, no padding, no server."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    return model(**tokenizer(*texts, truncation=True, max_length=max_tokens, return_tensors="pt")).logits[0]
