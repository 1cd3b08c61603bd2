"""The application. `serve run app.main:app` serves all of it here; a RayService has an application of each part."""

import os
from collections.abc import Callable
from typing import Any

import click
from ray.serve import Application

from app.builtin import BuiltinModelError
from app.deployments import engines, ingress, together
from app.deployments.nlp import deployments as nlp_deployments
from app.settings import GENERATE, Settings, SettingsError, environment, load, parse, remotes


def builder(build: Callable[[Settings], Application]) -> Callable[[dict[str, Any]], Application]:
    """An application builder for Ray Serve, from one that takes Settings.

    `serve run app.main:app` has no arguments and takes the defaults, `serve run app.main:app settings=FILE` names a
    YAML file, and a cluster gives the settings themselves (`serve_config`).
    """

    def built(args: dict[str, Any]) -> Application:
        try:
            settings = load(args["settings"]) if args.keys() == {"settings"} else parse(args)
            # `serve run` starts Ray after this, or within. In a cluster all processes have them already.
            os.environ.update(environment(settings))
            return build(settings)
        except (SettingsError, BuiltinModelError) as error:
            # The one exception that `serve run` prints as a message, without a stack trace.
            raise click.ClickException(str(error)) from None

    return built


@builder
def app(settings: Settings) -> Application:
    """All deployments in one application."""
    if settings.gateway.fast:
        every = ingress.fast(settings)
    else:
        language = _variants(settings) | _generator(settings)
        every = ingress.gateway(settings, {**language, **nlp_deployments(settings, language)})
    _log(every, settings.logging.options("text"))
    return every


@builder
def variant(settings: Settings) -> Application:
    """One variant of one model."""
    (only,) = _variants(settings).values()
    return only


@builder
def generate(settings: Settings) -> Application:
    """The model behind /generate."""
    (only,) = _generator(settings).values()
    return only


@builder
def nlp(settings: Settings) -> Application:
    """Everything but the engines: embeddings, classifiers, rerankers, pipeline."""
    return together.build(nlp_deployments(settings, remotes(settings)))


@builder
def gateway(settings: Settings) -> Application:
    """The way in, in front of the other applications."""
    return ingress.gateway(settings, remotes(settings))


@builder
def fast(settings: Settings) -> Application:
    """The one model that there is, with the way in."""
    return ingress.fast(settings)


def _log(part: Any, options: dict[str, str]) -> None:
    """Make the deployments of an application log so, since `serve run` cannot; in a cluster the Serve config does."""
    if isinstance(part, Application):
        bound = part._bound_deployment = part._bound_deployment.options(logging_config=options)
        _log([*bound.init_args, bound.init_kwargs], options)
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            _log(inner, options)


def _variants(settings: Settings) -> dict[str, Application]:
    return {
        model.deployment(variant): engines.variant(model, variant)
        for model in settings.models
        for variant in model.variants
    }


def _generator(settings: Settings) -> dict[str, Application]:
    return {GENERATE: engines.generator(settings.generate)} if settings.generate else {}
