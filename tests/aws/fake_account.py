"""What of an AWS account moto lacks: quotas of EC2, credentials that have expired.

The quotas begin at AWS's own defaults, and whoever asks for another has it at once.
"""

import json

from moto.core.responses import ActionResult
from moto.servicequotas import urls as quotas
from moto.servicequotas.responses import ServiceQuotasResponse
from moto.sts import urls as sts
from moto.sts.exceptions import STSClientError
from moto.sts.responses import TokenResponse

EXPIRED = "ASIAEXPIREDEXPIRED00"
"""An access key of which the fake says so."""


class Quotas(ServiceQuotasResponse):
    """Service Quotas of EC2. AWS's defaults: 5 vCPUs of the Standard family, none of others."""

    _given: dict[tuple[str, str], float] = {}  # noqa: RUF012 - moto makes one object a request

    def get_service_quota(self) -> str:
        code = self._get_param("QuotaCode")
        default = 5.0 if code in ("L-1216C47A", "L-34B43A08") else 0.0
        return json.dumps({"Quota": {"QuotaCode": code, "Value": self._given.get((self.region, code), default)}})

    def request_service_quota_increase(self) -> str:
        code, value = self._get_param("QuotaCode"), self._get_param("DesiredValue")
        self._given[self.region, code] = value
        return json.dumps({"RequestedQuota": {"QuotaCode": code, "DesiredValue": value, "Status": "APPROVED"}})


class Tokens(TokenResponse):
    """STS, which is the first to be asked who one is."""

    def get_caller_identity(self) -> ActionResult:
        if self.get_access_key() == EXPIRED:
            raise STSClientError("ExpiredToken", "The security token included in the request is expired")
        return super().get_caller_identity()


quotas.url_paths = dict.fromkeys(quotas.url_paths, Quotas.dispatch)
sts.url_paths = dict.fromkeys(sts.url_paths, Tokens.dispatch)
