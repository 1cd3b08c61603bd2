"""The models that answer in batches, and the pipelines over them: one application in a cluster."""

from collections.abc import Mapping

from ray.serve import Application

from app.deployments import classification, embeddings, pipeline, rerank
from app.settings import ANALYZE, Remote, Settings


def deployments(settings: Settings, engines: Mapping[str, Application | Remote]) -> dict[str, Application]:
    """All deployments by their names; `engines` are the language models that they ask."""
    encoders = {model.name: embeddings.build(model) for model in settings.embeddings}
    found = {model.deployment: encoders[model.name] for model in settings.embeddings}
    found |= {model.deployment: classification.build(model) for model in settings.classifiers}
    for model in settings.rerankers:
        encoder = encoders[model.embedding] if model.embedding is not None else None
        found[model.deployment] = rerank.build(model, encoder)
    if settings.pipeline:
        found[ANALYZE] = pipeline.build(settings, found, engines)
    return found
