"""A transformers encoder: the model behind embeddings. Imports torch."""

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from app import builtin
from app.settings import EmbeddingModel


class Encoder:
    """Tokenizer and model, on a GPU when the placement asks for one."""

    def __init__(self, settings: EmbeddingModel) -> None:
        self._settings = settings
        source = str(builtin.ensure(settings.builtin)) if settings.builtin else settings.source
        self._device = torch.device("cuda" if settings.placement.num_gpus else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(source, revision=settings.revision, padding_side="right")
        model = AutoModel.from_pretrained(
            source, revision=settings.revision, dtype=getattr(torch, settings.dtype), use_safetensors=True
        )
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def __call__(self, batch: list[list[int]], threads: int) -> np.ndarray:
        """Normalised vectors [texts, dimensions] of tokenised texts, in one pass of the model on so many threads."""
        torch.set_num_threads(threads)  # of operations that this thread calls
        inputs: BatchEncoding = self.tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(self._device)
        states = self._model(**inputs).last_hidden_state  # [texts, tokens, dimensions]
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        match self._settings.pooling:
            case "mean":
                pooled = (states * mask).sum(1) / mask.sum(1)
            case "cls":
                pooled = states[:, 0]
            case "last":
                last = inputs["attention_mask"].sum(1) - 1
                pooled = states[torch.arange(len(batch)), last]
        return normalize(pooled.float(), dim=1).cpu().numpy()
