"""Spans for an OpenTelemetry collector: Ray Serve makes them for each request and call, vLLM one for each answer."""

import os

from opentelemetry import propagate
from opentelemetry.sdk.trace import SpanProcessor

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""Environment variable with the collector's URL, where there is one (app.settings.environment)."""
_UNSAMPLED = f"00-{1:032x}-{1:016x}-00"


def exporter() -> list[SpanProcessor]:
    """What RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH names."""
    # Only here: whoever exports nothing can do without.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]


def headers() -> dict[str, str]:
    """The current span as W3C's traceparent, for an engine; empty where nothing is traced.

    Outside of a request, in a health check, it is one that is not sampled, so that the engine makes no span either.
    """
    found: dict[str, str] = {}
    propagate.inject(found)
    if not found and ENDPOINT in os.environ:
        return {"traceparent": _UNSAMPLED}
    return found
