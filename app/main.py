"""The application. `serve run app.main:app` serves it here, a RayService in a cluster."""

from typing import Any

import click
from ray.serve import Application

from app.builtin import BuiltinModelError
from app.settings import SettingsError, load, parse


def app(args: dict[str, Any]) -> Application:
    """Build the Serve application from its arguments.

    `serve run app.main:app` has none and takes the defaults, `serve run app.main:app settings=FILE`
    names a YAML file, and a cluster gives the settings themselves (`serve_config`).
    """
    try:
        settings = load(args["settings"]) if args.keys() == {"settings"} else parse(args)
        # Not at the top: it imports vLLM for many seconds, and a typo should be told at once.
        from app.deployments import llm

        return llm.build(settings.models)
    except (SettingsError, BuiltinModelError) as error:
        # The one exception that `serve run` prints as a message, without a stack trace.
        raise click.ClickException(str(error)) from None
