"""What a stack promises its users, and from when on somebody is woken."""

from app.settings import Strict


class Objectives(Strict):
    """Service level objectives of a stack."""
