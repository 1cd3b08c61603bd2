"""What stacks cost: sums made by hand, prices that are not known, and AWS's own by a fake `aws`."""

import csv
import gzip
import json
import os
import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from infra import config, cost, versions
from infra.aws import prices
from infra.aws.prices import Price
from scripts import cost as command
from scripts import prices as live
from scripts.console import Problem
from tests.unit.contract_stacks import L4, values

ON = date(2026, 11, 28)
MONTH = 730
DISK = 0.08 / MONTH
"""A GiB of gp3 for an hour."""
FAST = (600 - 125) * 0.04 / MONTH
"""What a worker's volume costs for being fast, an hour."""
KEYS = 2 * 1 / MONTH


def estimate(stack: str | dict[str, Any], on: date = ON) -> cost.Estimate:
    found = config.from_file(stack) if isinstance(stack, str) else config.parse(stack, "test", whatever_it_costs=True)
    return cost.estimate(found, on)


def test_dev() -> None:
    """EKS, system nodes, L4s, disks of them and of Prometheus, NAT and its address, two endpoints, keys."""
    fixed = 0.10 + 0.045 + 0.005 + 2 * 0.01 + 20 * DISK + KEYS
    least = fixed + 1 * (0.2016 + 100 * DISK) + 1 * (0.9776 + 200 * DISK + FAST)
    most = fixed + 2 * (0.2016 + 100 * DISK) + 2 * (0.9776 + 200 * DISK + FAST)
    assert estimate("dev").total == pytest.approx((least, most, most + 2 * (3.3968 - 0.9776)))


def test_staging() -> None:
    fixed = 0.10 + 0.045 + 0.005 + 2 * 0.01 + 0.0225 + 0.0256 + KEYS + (14.77 + 8.19) * 2 * 0.023 / MONTH + 50 * DISK
    four, one = 4.6016 + 300 * DISK + FAST, 0.9776 + 200 * DISK + FAST
    least = fixed + 2 * (0.2016 + 100 * DISK) + 1 * four + 1 * one
    most = fixed + 4 * (0.2016 + 100 * DISK) + (1 + 1) * four + (2 + 2) * one
    assert estimate("staging").total == pytest.approx(
        (least, most, most + 2 * (6.6752 - 4.6016) + 4 * (3.3968 - 0.9776))
    )


def test_prod() -> None:
    """With a second Ray cluster of full size in an upgrade, a warm L4, and three of all that a zone has."""
    fixed = 0.10 + 3 * (0.045 + 0.005 + 2 * 0.01) + 0.0225 + 2 * 0.1264 + KEYS + (70.55 + 8.03) * 2 * 0.023 / MONTH
    fixed += 100 * DISK
    eight, one = 55.04 + 500 * DISK + FAST, 0.9776 + 200 * DISK + FAST
    least = fixed + 3 * (0.2016 + 100 * DISK) + 1 * eight + (2 + 1) * one
    most = fixed + 6 * (0.2016 + 100 * DISK) + (1 + 1) * eight + (6 + 6 + 1) * one
    assert estimate("prod").total == pytest.approx((least, most, most + 13 * (3.3968 - 0.9776)))


def part(stack: dict[str, Any], component: str, on: date = ON) -> cost.Line:
    return next(line for line in estimate(stack, on).lines if line.component == component)


@pytest.mark.parametrize(
    ("changed", "component", "quantity"),
    [
        (values(), "l4 nodes", (1, 2)),
        (values(upgrade={"kind": "None"}), "l4 nodes", (1, 1)),
        (values({**L4, "min_replicas": 3, "max_replicas": 5}), "l4 nodes", (3, 10)),
        (values({**L4, "pool": {"gpu": "L4", "warm": 2}}), "l4 nodes", (3, 4)),
        (values({**L4, "min_replicas": 0, "pool": {"gpu": "L4", "nodes": "managed"}}), "l4 nodes", (2, 2)),
        (values(cluster={"nodes": {"min": 3, "max": 9}}), "system nodes", (3, 9)),
        (values(cluster={"network": {"nat": "one"}}), "NAT gateways", (1, 1)),
        (values(cluster={"network": {"nat": "per-zone"}}), "NAT gateways", (3, 3)),
        (values(cluster={"cache": {"nodes": 3}}), "Valkey", (3, 3)),
        (values({**L4, "pool": {"gpu": "L4", "disk_gib": 500}}), "  their throughput, MiB/s", (475, 950)),
    ],
)
def test_figures_follow_the_stack_file(changed: dict[str, Any], component: str, quantity: tuple[int, int]) -> None:
    line = part(changed, component)
    assert (line.least, line.most) == quantity


def test_parts_that_are_not_there_cost_nothing() -> None:
    components = [line.component for line in estimate(values(cluster={"entry": None})).lines]
    assert not {"load balancer", "Valkey"} & {*components}
    assert "load balancer" in [line.component for line in estimate(values()).lines]


def test_a_public_load_balancer_has_an_address_in_each_zone() -> None:
    arn = "arn:aws:acm:us-east-1:123456789012:certificate/0123-abcd"
    entry = {"public": True, "host": "models.example.com", "certificate": arn}
    assert part(values(cluster={"entry": entry}), "public addresses").most == 6
    assert part(values(), "public addresses").most == 3


def test_after_its_standard_support_kubernetes_costs_six_times_as_much() -> None:
    last = versions.EKS_STANDARD_SUPPORT_ENDS
    assert part(values(), "EKS control plane", last).usd.least == pytest.approx(0.60)
    assert part(values(), "EKS control plane", last.replace(day=last.day - 1)).usd.least == pytest.approx(0.10)


def test_a_price_that_is_not_known_is_said_and_is_no_zero() -> None:
    found = estimate(values(cluster={"cache": {"node_type": "cache.x9.large"}}))
    assert found.unknown == ["cache.x9.large"]
    (line,) = [line for line in found.lines if not line.known]
    with pytest.raises(ValueError, match="the price of cache"):
        _ = line.usd
    assert found.total == pytest.approx(estimate(values()).total)


def test_of_a_pool_whose_dearest_instance_has_no_price_nothing_is_known() -> None:
    stack = config.parse(values(), "test")
    known = {item: price for item, price in prices.known("us-east-1").items() if item != "g6.16xlarge"}
    assert cost.estimate(stack, ON, known).unknown == ["g6.2xlarge"]


@pytest.mark.parametrize("stack", ["dev", "staging", "prod"])
def test_an_hour_by_what_is_there_starts_at_the_least(stack: str) -> None:
    found, estimate = cost.hourly(config.from_file(stack), ON), cost.estimate(config.from_file(stack), ON)
    nodes = {line.component.removesuffix(" nodes"): line.least for line in estimate.lines}
    groups = sum(nodes[group.name] * group.usd for group in found.groups)
    assert found.always + groups == pytest.approx(estimate.total.least)
    assert all(group.usd > 0 and group.pods >= 1 for group in found.groups)


def test_in_another_region_nothing_of_the_first_ones_prices_is_assumed() -> None:
    zones = [f"eu-central-1{zone}" for zone in "abc"]
    found = estimate(values(cluster={"region": "eu-central-1", "zones": zones}))
    assert {line.item for line in found.lines if line.known} == {"eks-cluster", "public-ipv4", "kms-key"}
    assert "m7i.xlarge" in found.unknown


def test_a_million_tokens() -> None:
    assert cost.per_million_tokens(36, 1000) == pytest.approx(10)


def test_every_price_has_a_date_and_a_source() -> None:
    known = prices.known("us-east-1")
    assert len(known) > 70
    assert all(price.date and price.source and price.usd > 0 for price in known.values())
    assert [item for item, price in known.items() if price.date == "unknown"] == ["s3-gb"]


def test_the_regions_instances_are_those_of_the_pinned_moto() -> None:
    moto = find_spec("moto")
    assert moto
    assert moto.origin
    folder = Path(moto.origin).parent / "ec2" / "resources" / "instance_type_offerings" / "region"
    with prices.instances.FILE.open() as file:
        types = [row["instance_type"] for row in csv.DictReader(file)]
    with prices.instances.FILE.with_name("offerings.csv").open() as file:
        found = {row["region"]: row["instance_types"].split() for row in csv.DictReader(file)}
    wanted = {}
    for file in folder.glob("*.json.gz"):
        offered = {entry["InstanceType"] for entry in json.loads(gzip.decompress(file.read_bytes()))}
        wanted[file.name.partition(".")[0]] = [kind for kind in types if kind in offered]
    assert found == wanted


FAKE_AWS = """\
import json, os, sys
command, given = " ".join(sys.argv[1:3]), [part.split(",") for part in sys.argv[3:]]
filters = [part for part in given if part[0] == "Type=TERM_MATCH"]
filters = {field.removeprefix("Field="): value.removeprefix("Value=") for _, field, value in filters}
with open(os.environ["FAKE_AWS_CALLS"], "a") as calls:
    print(json.dumps(filters), file=calls)

def offer(usage, *tiers, unit="Hrs"):
    tiers = {n: {"unit": unit, "beginRange": str(n), "pricePerUnit": {"USD": str(usd)}} for n, usd in enumerate(tiers)}
    terms = {"OnDemand": {"term": {"priceDimensions": tiers}}}
    return json.dumps({"product": {"attributes": {"usagetype": usage}}, "terms": terms})

OFFERS = {
    ("instanceType", "g6.2xlarge"): [offer("BoxUsage:g6.2xlarge", 0.5), offer("UnusedBox:g6.2xlarge", 9)],
    ("instanceType", "m7i.xlarge"): [offer("USE1-BoxUsage:m7i.xlarge", 0.3), offer("BoxUsage:m7i.xlarge", 0.4)],
    ("productFamily", "NAT Gateway"): [offer("USE1-RegionalNatGateway-Hours", 9), offer("USE1-NatGateway-Hours", 0.05)],
    ("volumeApiName", "gp3"): [
        offer("EBS:VolumeUsage.gp3", 0.09, unit="GB-Mo"),
        offer("EBS:VolumeP-Throughput.gp3", 51.2, unit="GiBps-mo"),
    ],
    ("volumeType", "Standard"): [offer("TimedStorage-ByteHrs", 0.024, 0.022, unit="GB-Mo")],
}
if os.environ.get("FAKE_AWS_DENIES"):
    sys.exit("An error occurred (ExpiredToken)")
answer = {"Account": "123456789012"}
if command == "pricing get-products":
    answer = {"PriceList": [one for part, found in OFFERS.items() if part in filters.items() for one in found]}
elif command == "ec2 describe-spot-price-history":
    zones = [("us-east-1a", "0.31"), ("us-east-1b", "0.42"), ("us-east-1f", "0.99")]
    keys = ("InstanceType", "AvailabilityZone", "SpotPrice")
    answer = {"SpotPriceHistory": [dict(zip(keys, ("g6.2xlarge", *zone))) for zone in zones]}
print(json.dumps(answer))
"""


@pytest.fixture
def fake_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake `aws` with a few prices; the file has what it was asked."""
    program, calls = tmp_path / "aws", tmp_path / "calls"
    program.write_text(f"#!{sys.executable}\n{FAKE_AWS}")
    program.chmod(0o755)
    monkeypatch.setenv("FAKE_AWS_CALLS", str(calls))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return calls


def test_aws_is_asked_for_what_the_stack_uses(fake_aws: Path) -> None:
    stack = config.from_file("dev")
    assert stack.cluster.kind == "eks"
    found = live.live(stack, stack.cluster)
    assert {item: (price.usd, price.unit) for item, price in found.items()} == {
        "g6.2xlarge": (0.5, "hour"),
        "nat-gateway": (0.05, "hour"),
        "gp3-gb": (0.09, "month"),
        "gp3-mibps": (0.05, "month"),  # a GiB/s costs 51.2
        "spot:g6.2xlarge": (0.42, "hour"),  # of the stack's zones the dearest
    }, "of m7i.xlarge it has two prices, and of the others none"
    asked = [json.loads(line) for line in fake_aws.read_text().splitlines()]
    assert {"regionCode": "us-east-1", "instanceType": "g6.16xlarge", **live.LINUX} in asked


def test_of_tiers_the_first_counts(fake_aws: Path) -> None:
    stack = config.from_file("staging")
    assert stack.cluster.kind == "eks"
    assert live.live(stack, stack.cluster)["s3-gb"].usd == 0.024


def test_the_table_has_prices_of_now_where_aws_answers(fake_aws: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.report("dev", 1000, as_json=False)
    said = capsys.readouterr().out
    assert "0.5 to 3.3968 an hour, 20" in said
    assert "AWS price list" in said
    assert "asked AWS for 5 of the prices" in said
    assert "0.42 an hour" in said
    assert "at 1000 tokens a second, all the time" in said


def test_without_credentials_it_says_so_and_goes_on(
    fake_aws: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_AWS_DENIES", "1")
    command.report("prod", None, as_json=False)
    said = capsys.readouterr().out
    assert (
        "did not ask AWS for its prices of now: aws sts get-caller-identity: An error occurred (ExpiredToken)" in said
    )
    assert "55.04 an hour, 2026-07-06: Karpenter's AWS provider 1.14.1" in said
    assert "at most that; there is no list price" in said
    assert "logs of control plane and network" in said
    assert said.count("unknown") >= 3, "what has no price is said to have none"


def test_json_has_the_same_figures(
    fake_aws: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_AWS_DENIES", "1")
    command.report("prod", 2500, as_json=True)
    found = json.loads(capsys.readouterr().out)
    total = estimate("prod").total
    assert found["hourly"] == pytest.approx(total._asdict())
    assert found["monthly"]["most"] == pytest.approx(total.most * 730)
    assert found["per_million_tokens"]["most"] == pytest.approx(total.most / (2500 * 3600) * 1e6)
    assert found["max_hourly_usd"] == 170
    (h100,) = [line for line in found["lines"] if line["component"] == "h100 nodes"]
    assert h100["price"] == {"usd": 55.04, "unit": "hour", "date": "2026-07-06", "source": prices.INSTANCES_FROM[1]}
    assert found["by_use"]["logs of control plane and network"] is None


def test_a_stack_over_its_limit_is_shown_and_refused(
    fake_aws: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_AWS_DENIES", "1")
    over = config.from_file("prod").model_copy(update={"max_hourly_usd": 60.0})
    monkeypatch.setattr(config, "from_file", lambda *_, **__: over)
    with pytest.raises(Problem, match=r"Pulumi\.prod\.yaml: max_hourly_usd = 60: at its largest(.|\n)*fix: raise it"):
        command.report("prod", None, as_json=False)
    assert "h100 nodes" in capsys.readouterr().out


def test_a_stack_elsewhere_has_no_price() -> None:
    with pytest.raises(Problem, match="stack local has no cluster on AWS"):
        command.report("local", None, as_json=False)


@pytest.mark.parametrize("text", ["many", "0", "-1", "inf", "nan"])
def test_a_throughput_that_is_none_is_told(text: str) -> None:
    with pytest.raises(Problem, match=f"TOKENS_PER_SECOND = '{text}'(.|\n)*fix: say make cost"):
        command.throughput(text)


def test_prices_of_another_region_are_kept_for_previews(
    fake_aws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "prices.csv"
    copy.write_text(prices.FILE.read_text())
    monkeypatch.setattr(prices, "FILE", copy)
    prices.known.cache_clear()
    before = prices.rows()
    prices.write("eu-central-1", {"nat-gateway": Price(0.052, "hour", "2026-11-28", "AWS price list")})
    assert prices.known("eu-central-1")["nat-gateway"].usd == 0.052
    assert prices.known("us-east-1")["nat-gateway"].usd == 0.045
    prices.write("eu-central-1", {"nat-gateway": Price(0.06, "hour", "2026-11-29", "AWS price list")})
    assert [row for row in prices.rows() if row[0] != "eu-central-1"] == before
    assert prices.known("eu-central-1")["nat-gateway"].usd == 0.06
    prices.known.cache_clear()
