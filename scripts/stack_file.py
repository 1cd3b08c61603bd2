"""The stack file that a command was given."""

from app.settings import SettingsError
from infra import config
from infra.config import StackConfig
from scripts.console import Problem


def read(stack: str) -> StackConfig:
    """The configuration of `stack`. Raises Problem before anything has begun."""
    try:
        return config.from_file(stack)
    except SettingsError as error:
        raise Problem(str(error), "nothing was created; correct the stack file") from None
