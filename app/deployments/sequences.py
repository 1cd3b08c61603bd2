"""Sequence classification by transformers: the model behind classifiers and cross-encoders. Imports torch."""

import threading
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.settings import Classifier, Reranker, SettingsError


class Scored(NamedTuple):
    """What the model says of a batch."""

    scores: np.ndarray
    """float32 [texts, labels], each in 0 … 1."""
    tokens: list[int]
    """Number of tokens of each text that the model has read."""


class Sequences:
    """Tokenizer and model, on a GPU when the placement asks for one.

    Raises SettingsError when the weights are no sequence classifier's.
    """

    def __init__(self, settings: Classifier | Reranker) -> None:
        where = {"pretrained_model_name_or_path": settings.source, "revision": settings.revision}
        self._device = torch.device("cuda" if settings.placement.num_gpus else "cpu")
        self._tokenizing = threading.Lock()
        self._tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="right")
        self._max_tokens = min(settings.max_tokens, self._tokenizer.model_max_length)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            **where, dtype=getattr(torch, settings.dtype), output_loading_info=True, use_safetensors=True
        )
        if missing := loaded["missing_keys"]:
            # transformers would make up the classifier's weights at random, and only warn.
            raise SettingsError(
                f"source = {settings.source!r}: is no text classifier, it has no {', '.join(sorted(missing))}; "
                "fix: use a model that was trained for sequence classification"
            )
        # Decoders are trained without padding, and read a text's score at its last token.
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = model.to(self._device).eval()
        self.labels: list[str] = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self._independent = model.config.problem_type == "multi_label_classification" or len(self.labels) == 1

    @torch.inference_mode()
    def __call__(self, texts: list[str] | list[tuple[str, str]], threads: int) -> Scored:
        """The scores of texts, or of pairs of them, in one pass of the model on so many threads.

        What is too long is cut off. A softmax over the labels; a sigmoid of each where several may hold at once, or
        there is only one.
        """
        torch.set_num_threads(threads)  # of operations that this thread calls
        # Fast tokenizers keep where to cut as their own state, for all threads.
        with self._tokenizing:
            inputs = self._tokenizer(
                texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
            ).to(self._device)
        logits = self._model(**inputs).logits.float()
        scores = logits.sigmoid() if self._independent else logits.softmax(dim=1)
        return Scored(scores.cpu().numpy(), inputs["attention_mask"].sum(1).tolist())
