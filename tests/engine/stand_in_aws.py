"""A stand-in for Pulumi's AWS provider: it answers the engine, and neither knows AWS nor emulates it.

The engine starts it as `pulumi-resource-aws`. What it is asked goes, line by line, to $STAND_IN_AWS/operations; a name
in $STAND_IN_AWS/fails is the resource that it does not create.
"""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime import rpc
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

from infra import versions
from tests.infra.aws_outputs import outputs

ENVIRONMENT = "STAND_IN_AWS"
FORCES_ANOTHER = {"Vpc": {"cidrBlock"}, "Subnet": {"vpcId", "cidrBlock", "availabilityZone"}}
"""Properties that AWS cannot change; of the others it says that they can be."""


class Operation(NamedTuple):
    verb: str
    """create, update or delete."""
    kind: str
    name: str
    inputs: dict[str, Any]


def operations(directory: Path) -> Iterator[Operation]:
    """What was asked so far, in order."""
    for line in (directory / "operations").read_text().splitlines():
        yield Operation(*json.loads(line))


def _note(verb: str, urn: str, inputs: dict[str, Any]) -> None:
    line = json.dumps([verb, *_kind_and_name(urn), inputs]) + "\n"
    with (Path(os.environ[ENVIRONMENT]) / "operations").open("a") as file:
        file.write(line)


def _kind_and_name(urn: str) -> tuple[str, str]:
    kind, name = urn.split("::")[2:]
    return kind.rpartition("$")[2], name


def _struct(values: dict[str, Any]) -> struct_pb2.Struct:
    result = struct_pb2.Struct()
    result.update(values)
    return result


def _answer(urn: str, inputs: dict[str, Any], preview: bool) -> struct_pb2.Struct:
    made = outputs(*_kind_and_name(urn), inputs)
    return _struct(_known_later(made, inputs) if preview else made)


def _known_later(made: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Before it is there: what was given, and the engine's sign for the rest."""
    return {
        name: _known_later(value, inputs.get(name) or {})
        if isinstance(value, dict)
        else value
        if name in inputs
        else rpc.UNKNOWN
        for name, value in made.items()
    }


class StandIn(provider_pb2_grpc.ResourceProviderServicer):
    def GetPluginInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version=versions.PULUMI_AWS)

    def CheckConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return empty_pb2.Empty()

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        old, new = (json_format.MessageToDict(values) for values in (request.old_inputs, request.news))
        changed = sorted(name for name in {*old, *new} - {*request.ignoreChanges} if old.get(name) != new.get(name))
        kind = _kind_and_name(request.urn)[0].rpartition(":")[2]
        difference = provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE
        forced = sorted(FORCES_ANOTHER.get(kind, set()) & {*changed})
        return provider_pb2.DiffResponse(changes=difference, diffs=changed, replaces=forced)

    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        inputs = json_format.MessageToDict(request.properties)
        _, name = _kind_and_name(request.urn)
        if not request.preview:
            fails = Path(os.environ[ENVIRONMENT]) / "fails"
            if fails.exists() and fails.read_text() == name:
                context.abort(grpc.StatusCode.UNKNOWN, f"the stand-in was told not to create {name}")
            _note("create", request.urn, inputs)
        answer = _answer(request.urn, inputs, request.preview)
        return provider_pb2.CreateResponse(
            id="" if request.preview else f"{name}-{uuid.uuid4().hex}", properties=answer
        )

    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        inputs = json_format.MessageToDict(request.news)
        if not request.preview:
            _note("update", request.urn, inputs)
        return provider_pb2.UpdateResponse(properties=_answer(request.urn, inputs, request.preview))

    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        _note("delete", request.urn, {})
        return empty_pb2.Empty()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine's to answer
    server = grpc.server(futures.ThreadPoolExecutor(8))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(StandIn(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
