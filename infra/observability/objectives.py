"""What a stack promises its users, and from when on somebody is woken.

Alerts follow the multi-window, multi-burn-rate method of https://sre.google/workbook/alerting-on-slos/: they look at
how fast the error budget, what the promise leaves for failures, is spent.
"""

from bisect import bisect
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from app.engine import VLLM
from app.settings import GENERATE, Settings
from app.validation import Strict, nearest


class BurnRate(NamedTuple):
    """When an alert fires: a part of the budget is gone within `long`, and more of it goes within `short`."""

    budget: float
    """Part of the window's error budget."""
    long: str
    hours: int
    """Of `long`."""
    short: str


PAGE = (BurnRate(0.02, "1h", 1, "5m"), BurnRate(0.05, "6h", 6, "30m"))
TICKET = (BurnRate(0.1, "1d", 24, "2h"), BurnRate(0.1, "3d", 72, "6h"))
"""Table 5-8 of the workbook: with a window of 30 days, 14.4, 6, 3 and 1 times what the budget allows."""
RATES = (*PAGE, *TICKET)
LONGEST_HOURS = max(rate.hours for rate in RATES)
"""Of the windows that alerts look at."""


def _a_bound_of(metric: str) -> AfterValidator:
    bounds = VLLM["buckets"][metric]

    def check(seconds: float) -> float:
        if seconds not in bounds:
            after = bisect(bounds, seconds)
            around = " or ".join(f"{bound:g}" for bound in bounds[max(after - 1, 0) : after + 1])
            raise ValueError(f"vLLM counts how many were faster at other bounds, not at this one; fix: use {around}")
        return seconds

    return AfterValidator(check)


Part = Annotated[float, Field(gt=0, lt=1)]


class FirstToken(Strict):
    """How long a request waits for its first token, from when an engine has it."""

    within_s: Annotated[float, _a_bound_of("time_to_first_token_seconds")] = Field(
        default=5.0, description="Seconds, a bound of vLLM's histogram."
    )
    target: Part = Field(default=0.95, description="Part of the requests that are so fast.")


class InterToken(Strict):
    """How long a token comes after the one before."""

    within_s: Annotated[float, _a_bound_of("inter_token_latency_seconds")] = Field(
        default=0.5, description="Seconds, a bound of vLLM's histogram."
    )
    target: Part = Field(default=0.95, description="Part of the tokens that are so fast.")


class ModelObjectives(Strict):
    """What is promised of one language model, all its variants together. Defaults are for the small one on CPUs."""

    availability: Part = Field(
        default=0.99,
        description="Part of the requests, but for wrong ones and those that their client left, that are answered to "
        "the end. A full queue's 429 is not; a key's own quota does not count.",
    )
    time_to_first_token: FirstToken | None = Field(
        default=FirstToken(), description="How long requests wait for an answer's beginning; null: nothing is promised."
    )
    inter_token_latency: InterToken | None = Field(
        default=InterToken(), description="How fast the rest of it comes; null: nothing is promised."
    )

    @property
    def targets(self) -> Iterator[tuple[str, float]]:
        """Each target, by its key."""
        yield "availability", self.availability
        for key in ("time_to_first_token", "inter_token_latency"):
            if latency := getattr(self, key):
                yield f"{key}.target", latency.target


class Objectives(Strict):
    """Service level objectives of a stack, and where its alerts point to."""

    window_days: int = Field(default=30, ge=7, le=90, description="Days over which a target is to hold.")
    availability: Part = Field(
        default=0.99, description="Part of the HTTP requests, on all routes, that are not answered by a 5xx."
    )
    every_model: ModelObjectives = Field(
        default=ModelObjectives(), description="Of language models, and of generate, that are not in `models`."
    )
    models: dict[str, ModelObjectives] = Field(
        default={}, description="By a language model's name, or generate for /generate: what is promised of this one."
    )
    runbooks_url: str = Field(
        default="docs/runbooks",
        pattern=r"^(https?://\S+[^/\s]|docs/runbooks)$",
        description="Where the directory docs/runbooks can be read; left out, alerts name the file in this repository.",
    )
    grafana_url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+[^/\s]$",
        description="By which people reach Grafana. Left out, alerts have no link to a dashboard.",
    )

    @model_validator(mode="after")
    def _alerts_can_fire(self) -> "Objectives":
        """All requests failing must be enough for the fastest alert."""
        least = 1 - 1 / max(map(self.burn_rate, RATES))
        targets = [("availability", self.availability)]
        for where, model in (("every_model", self.every_model), *((f"models.{n}", m) for n, m in self.models.items())):
            targets += [(f"{where}.{key}", target) for key, target in model.targets]
        for key, target in targets:
            if target <= least:
                raise ValueError(
                    f"{key} = {target:g}: leaves so much for failures that not even all requests failing would be "
                    f"noticed in time; fix: make it more than {least:.3f}"
                )
        return self

    def burn_rate(self, rate: BurnRate) -> float:
        """How many times faster than the budget allows."""
        return rate.budget * self.window_days * 24 / rate.hours

    def of(self, model: str) -> ModelObjectives:
        """What is promised of a model."""
        return self.models.get(model, self.every_model)


def require_known(objectives: Objectives, serving: Settings) -> None:
    """ValueError where something is promised of a model that is not served, or that has no tokens."""
    known = list(model_labels(serving))
    for name in objectives.models:
        if name not in known:
            raise ValueError(
                f"observability.objectives.models.{name}: there is no such language model in serving; fix: "
                + (f"use {nearest(name, known)}, or leave it out" if known else "leave it out")
            )


def model_labels(serving: Settings) -> dict[str, str]:
    """What each language model is called in the metrics, by its name in the stack file.

    A model by its name, whatever the variant; /generate by its deployment's.
    """
    found = {model.name: model.name for model in serving.models}
    return found | ({"generate": GENERATE} if serving.generate else {})
