"""A secret that a stack file names and does not hold."""

from pydantic import Field

from app.validation import Strict


class SecretKey(Strict):
    """A value in a Secret of the stack's namespace, which somebody else makes there, say External Secrets."""

    name: str = Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", description="Name of the Secret.")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$", description="Which of its values.")
