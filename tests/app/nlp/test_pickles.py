"""Weights that are code are not loaded."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from app.deployments.sequences import Sequences
from app.settings import Classifier
from tests.app.nlp.models import make_classifier


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    directory = make_classifier(tmp_path / "model", ["calm", "angry"])
    settings = Classifier(name="mood", source=str(directory), max_tokens=24)
    assert Sequences(settings)(["hello"], 1).scores.shape == (1, 2)
    weights = AutoModelForSequenceClassification.from_pretrained(directory).state_dict()
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")
    AutoModel.from_pretrained(directory)  # which transformers itself would take
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        Sequences(settings)
