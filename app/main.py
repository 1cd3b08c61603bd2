"""The application. `serve run app.main:app` serves it here, a RayService in a cluster."""

from typing import Any

import click
from ray.serve import Application

from app.builtin import BuiltinModelError
from app.settings import Settings, load, parse
from app.validation import SettingsError


def app(args: dict[str, Any]) -> Application:
    """Build the Serve application from its arguments.

    `serve run app.main:app` has none and takes the defaults, `serve run app.main:app settings=FILE`
    names a YAML file, and a cluster gives the settings themselves (`serve_config`).
    """
    try:
        return graph(load(args["settings"]) if args.keys() == {"settings"} else parse(args))
    except (SettingsError, BuiltinModelError) as error:
        # The one exception that `serve run` prints as a message, without a stack trace.
        raise click.ClickException(str(error)) from None


def graph(settings: Settings) -> Application:
    """All deployments, and who calls whom."""
    # Not at the top: they import vLLM for many seconds, and a typo should be told at once.
    from app.deployments import embeddings, gateway, llm

    return gateway.deployment(settings).bind(
        settings,
        models={
            model.deployment(variant): llm.build(model, variant)
            for model in settings.models
            for variant in model.variants
        },
        embeddings={model.deployment: embeddings.build(model) for model in settings.embeddings},
    )
