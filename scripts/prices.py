"""`make prices`: AWS's prices of now for what a stack uses, into infra/aws/prices.csv, where previews find them.

That is how those of another region than us-east-1 become known. `make cost` asks in the same way, and writes nothing.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from infra import cost
from infra.aws import prices
from infra.aws.config import EksCluster
from infra.aws.prices import Price
from infra.config import StackConfig
from scripts import stack_file
from scripts.aws_cli import aws
from scripts.console import Problem, main, say, step

API = "us-east-1"
"""Where the price list is asked for, whatever region the prices are of."""


class Product(NamedTuple):
    """How the price list knows an item: https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_pricing_GetProducts.html"""

    service: str
    usage: str
    """End of its usage type, after the region's abbreviation."""
    attributes: Mapping[str, str] = MappingProxyType({})
    per: float = 1
    """How many of our units the list's one is."""


PRODUCTS = {
    "eks-cluster": Product("AmazonEKS", "AmazonEKS-Hours:perCluster"),
    "nat-gateway": Product("AmazonEC2", "NatGateway-Hours", {"productFamily": "NAT Gateway"}),
    "public-ipv4": Product("AmazonVPC", "PublicIPv4:InUseAddress"),
    "interface-endpoint": Product("AmazonVPC", "VpcEndpoint-Hours", {"productFamily": "VpcEndpoint"}),
    "network-load-balancer": Product("AWSELB", "LoadBalancerUsage", {"productFamily": "Load Balancer-Network"}),
    "gp3-gb": Product("AmazonEC2", "EBS:VolumeUsage.gp3", {"volumeApiName": "gp3"}),
    "gp3-mibps": Product("AmazonEC2", "EBS:VolumeP-Throughput.gp3", {"volumeApiName": "gp3"}, per=1024),
    "s3-gb": Product("AmazonS3", "TimedStorage-ByteHrs", {"volumeType": "Standard"}),
    "kms-key": Product("awskms", "KMS-Keys"),
}
LINUX = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}


def product(item: str) -> Product | None:
    """Of an item of infra/aws/prices.py; None where the list has no single one for it."""
    if item.startswith("cache."):
        return Product("AmazonElastiCache", f"NodeUsage:{item}", {"instanceType": item, "cacheEngine": "Valkey"})
    if "." in item:
        return Product("AmazonEC2", f"BoxUsage:{item}", {"instanceType": item, **LINUX})
    return PRODUCTS.get(item)


def live(stack: StackConfig, eks: EksCluster) -> dict[str, Price]:
    """The prices of now of all that the stack may use; without an item of which the list has no price, or several.

    Raises Problem where AWS answers nothing: no command line, no credentials, no right to ask.
    """
    if not shutil.which("aws"):
        raise Problem("there is no `aws` on PATH", "install AWS's command line: https://aws.amazon.com/cli")
    aws("sts", "get-caller-identity")
    today = datetime.now(UTC).date()
    of_workers = [kind.type for group in stack.workers for kind in cost.kinds(eks, group)]
    items = {*(line.item for line in cost.estimate(stack, today).lines), *eks.nodes.instance_types, *of_workers}
    found = {item: price for item in sorted(items) if (price := _price(item, eks.region, today))}
    if any(group.pool and "spot" in group.pool.capacity for group in stack.workers):
        found |= _spot(of_workers, eks)
    return found


def _price(item: str, region: str, today: date) -> Price | None:
    known = product(item)
    if known is None:
        return None
    attributes = {"regionCode": region, **known.attributes}
    filters = [f"Type=TERM_MATCH,Field={field},Value={value}" for field, value in attributes.items()]
    answer = aws("pricing", "get-products", "--region", API, "--service-code", known.service, "--filters", *filters)
    tiers = [_first_tier(offer) for offer in map(json.loads, answer["PriceList"]) if _is(offer, known.usage)]
    found = {(float(tier["pricePerUnit"]["USD"]) / known.per, _unit(tier["unit"])) for tier in tiers}
    return Price(*found.pop(), today.isoformat(), "AWS price list") if len(found) == 1 else None


def _is(offer: dict[str, Any], usage: str) -> bool:
    given = offer["product"]["attributes"].get("usagetype", "")
    return given == usage or given.endswith(f"-{usage}")


def _first_tier(offer: dict[str, Any]) -> dict[str, Any]:
    """What a stack's own use costs; what a whole organisation uses may be cheaper."""
    tiers = [tier for term in offer["terms"]["OnDemand"].values() for tier in term["priceDimensions"].values()]
    return min(tiers, key=lambda tier: float(tier.get("beginRange") or 0))


def _unit(unit: str) -> str:
    return "hour" if unit.lower() in ("hrs", "hour", "hours") else "month"


def _spot(types: list[str], eks: EksCluster) -> dict[str, Price]:
    """spot:<type> → what it costs now in the dearest of the stack's zones."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    where = ["--region", eks.region, "--product-descriptions", "Linux/UNIX", "--start-time", now]
    answer = aws("ec2", "describe-spot-price-history", *where, "--instance-types", *types)
    found: dict[str, float] = {}
    for entry in answer["SpotPriceHistory"]:
        if entry["AvailabilityZone"] in eks.zones:
            item = f"spot:{entry['InstanceType']}"
            found[item] = max(found.get(item, 0), float(entry["SpotPrice"]))
    return {item: Price(usd, "hour", now[:10], "EC2 spot price history") for item, usd in found.items()}


def fetch(stack_name: str) -> None:
    stack = stack_file.read(stack_name, whatever_it_costs=True)
    eks = stack_file.eks_cluster(stack_name, stack)
    with step(f"AWS's prices of {eks.region}"):
        # What costs so much today by spot is no list price.
        found = {item: price for item, price in live(stack, eks).items() if not item.startswith("spot:")}
    prices.write(eks.region, found)
    say(f"{len(found)} prices are in {prices.FILE.relative_to(prices.FILE.parents[2])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: fetch(parser.parse_args().stack))
