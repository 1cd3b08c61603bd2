"""Embeddings and classification: what batching gains over one text at a time, and loses against a loop that batches.

The classifier is the built-in embedding model under a head of random weights: none of the built-in classifiers is a
transformer. What it says means nothing, and takes as long as that of a real one of its size.
"""

import base64
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from app.builtin import cache_dir, ensure
from app.deployments import batching
from app.deployments.encoder import Encoder
from app.deployments.sequences import Sequences
from app.settings import Classifier, EmbeddingModel
from scripts.bench.kind import Contender, Kind
from scripts.bench.load import SUBJECTS, Measured, Point, answered, ask
from scripts.bench.servers import Served, ours
from scripts.console import Problem, say

PLACEMENT = {"num_cpus": 1.5}
"""What the deployment sets aside: two threads."""
THREADS = 2
"""Those of the loop."""
ENCODER = EmbeddingModel.model_validate({"placement": PLACEMENT})
PASSES = (8, 16, 32, 64)
"""Texts in one pass of the loop, of which the fastest counts."""
BATCHED, UNBATCHED, LOOP, BY_CORE = "batched", "unbatched", "loop", "loop-by-core"
CLOSE = 1e-4
"""How far two computations of one vector may be apart."""


Loop = Callable[[list[str], int], np.ndarray]
"""[texts, …] of all texts, sorted, so many in one pass."""


class Reader(NamedTuple):
    """A model that makes of each text a vector, in a server and without one."""

    settings: Callable[[], dict[str, Any]]
    """Those of an application which serves it alone."""
    path: str
    options: dict[str, Any]
    """What requests say beside their texts."""
    read: Callable[[Any], np.ndarray]
    """[texts, …] of an answer."""
    loop: Callable[[int], Loop]
    """Loads the model. So many passes at once share its threads."""


def texts(point: Point) -> list[list[str]]:
    """Those of each request: of 4 to 60 words, at random, the same for all."""
    chosen = np.random.default_rng(point.concurrency)
    words = " ".join(SUBJECTS).split()
    return [
        [" ".join(chosen.choice(words, chosen.integers(4, 61))) for _ in range(point.texts)]
        for _ in range(point.requests)
    ]


def in_passes(
    given: Sequence[Any], forward: Callable[[list[Any]], np.ndarray], size: int, at_once: int = 1
) -> np.ndarray:
    """What `forward` makes of texts, or of their tokens, when those of like length share a pass; in their order."""
    order = batching.by_length(given)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    with ThreadPoolExecutor(at_once) as threads:
        done = np.concatenate(list(threads.map(lambda part: forward([given[index] for index in part]), parts)))
    found = np.empty_like(done)
    found[order] = done
    return found


def _embed(at_once: int) -> Loop:
    encoder = Encoder(ENCODER)
    forward = partial(encoder, threads=THREADS // at_once)
    return lambda given, size: in_passes(encoder.tokenizer(given)["input_ids"], forward, size, at_once)


def _vectors(said: Any) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in said["data"]])


@cache
def _classifier() -> Classifier:
    made = cache_dir() / "bench-classifier"
    source = ensure("all-minilm-l6-v2")
    torch.manual_seed(7)
    logging.set_verbosity_error()  # that the head is random is known
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=3,
        initializer_range=0.5,  # the usual 0.02 says nearly the same of every text
        dtype=torch.float32,
    )
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(source).save_pretrained(made)
    return Classifier.model_validate({"name": "random", "source": str(made), "placement": PLACEMENT})


def _classify(at_once: int) -> Loop:
    model = Sequences(_classifier())
    return lambda given, size: in_passes(given, lambda part: model(part, THREADS // at_once).scores, size, at_once)


def _scores(said: Any) -> np.ndarray:
    return np.array([list(item["scores"].values()) for item in said["data"]])


def _kind(reader: Reader) -> Kind:
    """The model in batches, one text at a time, and without a server; all must agree about every vector."""
    agreed: dict[Point, np.ndarray] = {}
    load = cache(reader.loop)

    def start(log: Path, **options: int) -> contextlib.AbstractContextManager[Served]:
        settings = reader.settings()
        for models in settings.values():
            models[0] |= {"batching": options}
        return ours(settings, log)

    def over_http(served: Served, point: Point, salt: int) -> Measured:
        calls = [partial(ask, reader.path, {"input": given, **reader.options}) for given in texts(point)]
        measured, answers = answered(served, calls, point.concurrency, point.texts)
        _agree(agreed, point, np.concatenate([reader.read(answer) for answer in answers]))
        return measured

    def in_loop(served: Served, point: Point, salt: int, at_once: int) -> Measured:
        given = [text for request in texts(point) for text in request]
        run, rates = load(at_once), dict[int, float]()
        for size in PASSES:
            began = time.perf_counter()
            vectors = run(given, size)
            rates[size] = len(given) / (time.perf_counter() - began)
            _agree(agreed, point, vectors)
        say(f"    {point}: {', '.join(f'{rate:.0f} texts/s in passes of {size}' for size, rate in rates.items())}")
        return Measured(len(given), max(rates.values()), 0, 0)

    return Kind(
        "texts",
        {
            BATCHED: Contender("what comes during a batch is the next one", start, {"aiohttp": over_http}),
            UNBATCHED: Contender("one text at a time", partial(start, max_batch_size=1), {"aiohttp": over_http}),
            LOOP: Contender(
                "sorted texts in passes of the best size, without a server",
                _nobody,
                {"aiohttp": partial(in_loop, at_once=1)},
            ),
            BY_CORE: Contender(
                "the same, each core on a pass of its own", _nobody, {"aiohttp": partial(in_loop, at_once=THREADS)}
            ),
        },
        peers=(UNBATCHED, LOOP, BY_CORE),
        points=(Point(1, 200, texts=1), Point(64, 960, texts=1), Point(8, 32, texts=64)),
        warm=Point(8, 40, texts=8),
    )


@contextlib.contextmanager
def _nobody(log: Path) -> Iterator[Served]:
    yield Served("", "", "")


def _agree(agreed: dict[Point, np.ndarray], point: Point, found: np.ndarray) -> None:
    apart = float(np.abs(agreed.setdefault(point, found) - found).max())
    if apart > CLOSE:
        raise Problem(f"{point}: a vector is {apart:.5f} from that of another contender", "find out who is wrong")


EMBEDDINGS = _kind(
    Reader(
        settings=lambda: {"embeddings": [ENCODER.model_dump(mode="json")]},
        path="/v1/embeddings",
        options={"encoding_format": "base64"},
        read=_vectors,
        loop=_embed,
    )
)
CLASSIFY = _kind(
    Reader(
        settings=lambda: {"classifiers": [_classifier().model_dump(mode="json")]},
        path="/v1/classify",
        options={},
        read=_scores,
        loop=_classify,
    )
)
