"""What Karpenter asks of AWS before it starts an instance, and moto lacks: images, prices, reservations.

Types, zones and the GPUs in them are moto's, copied from AWS. Images and prices are made up: an image of the ledger's
release for each kind of node, and one price, as Karpenter has a price list of its own.
"""

import json
import re

from moto import backend_index
from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.responses import EC2Response
from moto.ssm import urls as ssm
from moto.ssm.responses import SimpleSystemManagerResponse

from infra import versions

# https://docs.aws.amazon.com/eks/latest/userguide/retrieve-ami-id.html
_IMAGE = re.compile(
    rf"/aws/service/eks/optimized-ami/[\d.]+/amazon-linux-2023/x86_64/\w+/([^/]+-{versions.EKS_AMI})/image_id"
)


class Machines(EC2Response):
    """EC2 in an account that has reserved nothing."""

    def describe_capacity_reservations(self) -> ActionResult:
        return ActionResult({"CapacityReservations": []})

    def describe_placement_groups(self) -> ActionResult:
        return ActionResult({"PlacementGroups": []})


class Parameters(SimpleSystemManagerResponse):
    """SSM with the parameters that name EKS's images for x86-64, and the price list, whose protocol is the same."""

    def get_parameter(self) -> ActionResult:
        name = self._get_param("Name")
        if found := _IMAGE.fullmatch(name):
            return ActionResult({"Parameter": {"Name": name, "Type": "String", "Value": self._image(found[1])}})
        return super().get_parameter()

    def _image(self, name: str) -> str:
        ec2 = ec2_backends[self.current_account][self.region]
        for image in ec2.amis.values():
            if image.name == name:
                return image.id
        image: Ami = ec2.register_image(name)
        image.architecture = "x86_64"
        return image.id

    def get_products(self) -> str:
        """One of each kind that is asked for: Karpenter takes an empty answer for an error."""
        kinds = {item["Value"] for item in self._get_param("Filters")}
        instance = "m5.metal" if "Compute Instance (bare metal)" in kinds else "m5.large"
        price = {"priceDimensions": {"one": {"pricePerUnit": {"USD": "1"}}}}
        product = {"product": {"attributes": {"instanceType": instance}}, "terms": {"OnDemand": {"one": price}}}
        return json.dumps({"FormatVersion": "aws_v1", "PriceList": [json.dumps(product)]})


ssm.url_paths = dict.fromkeys(ssm.url_paths, Parameters.dispatch)
backend_index.backend_url_patterns.append(("ssm", re.compile(r"https?://pricing\.(.+)\.amazonaws\.com")))
