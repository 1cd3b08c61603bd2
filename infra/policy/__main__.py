"""The policy pack: `pulumi preview --policy-pack infra/policy`, and what `make preview` and `make up` run."""

import sys
from pathlib import Path
from typing import Any

import grpc
from pulumi.runtime import proto
from pulumi_policy import EnforcementLevel, PolicyPack, policy

# Pulumi starts it inside infra/policy/.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from infra.policy.pack import POLICIES, initial_config, is_passed_over


class Analyzer(policy._PolicyAnalyzerServicer):
    """pulumi_policy's own with two differences.

    It unpacks every resource once for each policy, and once more for remediations, of which there are none. With the
    CRDs that takes 14 s of a preview, without what is passed over less than one.

    And rules about a whole stack are asked about what the program says, as all others are, and not about what
    providers answer: as long as there is no cluster, that of Kubernetes answers nothing.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._inputs: dict[str, Any] = {}

    def Analyze(self, request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802
        if is_passed_over(request.type):
            return proto.AnalyzeResponse()
        self._inputs[request.urn] = request.properties
        return super().Analyze(request, _context)

    def AnalyzeStack(self, request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802
        kept = [resource for resource in request.resources if not is_passed_over(resource.type)]
        for resource in kept:
            if resource.urn in self._inputs:
                resource.properties.CopyFrom(self._inputs[resource.urn])
        return super().AnalyzeStack(proto.AnalyzeStackRequest(resources=kept), _context)

    def Remediate(self, request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802
        return proto.RemediateResponse()


policy._PolicyAnalyzerServicer = Analyzer
LEVEL = EnforcementLevel.MANDATORY
PolicyPack(
    name="blueprint",
    enforcement_level=LEVEL,
    policies=POLICIES,
    # A policy whose config says no level would only warn.
    initial_config={name: {**values, "enforcementLevel": LEVEL} for name, values in initial_config().items()},
)
