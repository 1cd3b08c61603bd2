"""A collector of OpenTelemetry traces for tests: it takes OTLP over HTTP, and keeps all that it gets in memory."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATH = "/v1/traces"


class Span(NamedTuple):
    """One span, its ids in hexadecimal; `parent` is empty for the first of its trace."""

    trace: str
    id: str
    parent: str
    name: str
    attributes: dict[str, str]


class Collector(NamedTuple):
    url: str
    spans: list[Span]
    received: list[bytes]
    """Bodies as they came."""


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port of this machine, while the context lasts."""
    spans: list[Span] = []
    received: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == PATH, self.path
            assert self.headers["Content-Encoding"] is None, "nothing is compressed unless somebody asks for it"
            received.append(body)
            spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_request(self, code: object = "-", size: object = "-") -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Collector(f"http://127.0.0.1:{server.server_port}", spans, received)
        server.shutdown()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {
                    one.key: str(getattr(one.value, one.value.WhichOneof("value") or "string_value"))
                    for one in span.attributes
                }
                yield Span(span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name, attributes)
