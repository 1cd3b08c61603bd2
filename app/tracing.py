"""Spans for an OpenTelemetry collector: Ray Serve makes them for each request and call, vLLM one for each answer."""

from opentelemetry import propagate
from opentelemetry.sdk.trace import SpanProcessor


def exporter() -> list[SpanProcessor]:
    """What RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH names; the environment (app.settings.environment) says where to."""
    # Only here: whoever exports nothing can do without.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]


def headers() -> dict[str, str]:
    """The current span as W3C's traceparent, for what begins spans of its own; empty where nothing is traced."""
    found: dict[str, str] = {}
    propagate.inject(found)
    return found
