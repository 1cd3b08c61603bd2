"""One Ray for the stages that need no language model: classifiers, rerankers and the pipeline without a summary."""

from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import LlamaConfig

from app.settings import parse
from tests.app.conftest import START_SECONDS, eventually
from tests.app.nlp.models import make_classifier
from tests.app.ray_cluster import Cluster, ray_cluster

LABELS = ["calm", "angry", "sad"]
MAX_TOKENS = 24
MAX_CHARACTERS = 1000


class Made(NamedTuple):
    cluster: Cluster
    models: dict[str, Path]
    """Where the weights of each model lie that the tests made."""


@pytest.fixture(scope="package")
def made(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Made]:
    directory = tmp_path_factory.mktemp("models")
    models = {
        "single": make_classifier(directory / "single", LABELS),
        "multi": make_classifier(directory / "multi", LABELS, problem_type="multi_label_classification"),
        # A decoder reads a text's score at its last token, so that padding may spoil it.
        "decoder": make_classifier(directory / "decoder", LABELS, LlamaConfig, pad_token_id=None),
        "cross": make_classifier(directory / "cross", ["relevant"]),
    }
    small = {name: {"name": name, "source": str(path), "max_tokens": MAX_TOKENS} for name, path in models.items()}
    cross = small.pop("cross")
    settings: dict[str, Any] = {
        "classifiers": [
            {"name": "sentiment", "source": "builtin:vader-sentiment"},
            {"name": "safety", "source": "builtin:profanity", "unsafe": ["offensive"]},
            *small.values(),
        ],
        "rerankers": [{"name": "cosine", "source": "embedding:embed"}, cross],
        "pipeline": {
            "summary": None,
            "max_characters": MAX_CHARACTERS,
            "preprocess": {"scaling": {"num_replicas": 2}},
        },
        **{"models": [], "generate": None},
    }
    with ray_cluster(parse(settings), logs / "ray-nlp.log") as cluster:
        eventually("all applications run", cluster.runs, START_SECONDS)
        yield Made(cluster, models)


@pytest.fixture(scope="package")
def cluster(made: Made) -> Cluster:
    return made.cluster
