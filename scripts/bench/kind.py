"""What is measured together: contenders that do the same, and how they are asked."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scripts.bench.load import Measured, Point
from scripts.bench.servers import Served, Start

Client = Callable[[Served, Point, int], Measured]
"""Takes a salt, by which no two prompts are alike. Problem when an answer is not what it should be."""


class Contender(NamedTuple):
    """A server that can be started; `what` says which."""

    what: str
    start: Start
    clients: Mapping[str, Client]
    """By their names, which are the same for all contenders of a kind."""
    golden: Callable[[Served], list[str]] = lambda _: []
    """Answers that must be the same, whoever gives them."""


class Kind(NamedTuple):
    """What `make bench KIND=` names."""

    unit: str
    """What is counted: tokens, texts, requests."""
    contenders: Mapping[str, Contender]
    peers: Sequence[str]
    """The contenders that the others are beside."""
    points: Sequence[Point]
    warm: Point
    """What a server answers before it is measured."""
