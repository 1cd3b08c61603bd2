"""What AWS asks for what a stack uses: list prices in USD, each with its date and where it was read.

prices.csv has all but instances in us-east-1, which instances.csv has; region * is every region of AWS's own partition.
`make prices` adds those of other regions.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from infra.aws import instances

FILE = Path(__file__).with_name("prices.csv")
INSTANCES_FROM = ("2026-07-06", "Karpenter's AWS provider 1.14.1")
HOURS_PER_MONTH = 730
"""As AWS's own calculator counts."""


class Price(NamedTuple):
    usd: float
    unit: str
    """hour, month, or GB: of one of the item, of a GB-month, or of a GB that passes."""
    date: str
    """When it was read: a year, a month or a day."""
    source: str

    @property
    def hourly(self) -> float:
        """USD for an hour. What is paid by the GB has none."""
        return self.usd / {"hour": 1, "month": HOURS_PER_MONTH}[self.unit]


Prices = Mapping[str, Price]
"""By item, of one region. An instance type and a node type of ElastiCache are items of their own names; spot:<type> is
an instance's spot price."""


@cache
def known(region: str) -> Prices:
    """The prices of a region that are in the files; what is not there is not known."""
    found: dict[str, Price] = {}
    if region == "us-east-1":
        with instances.FILE.open() as file:
            for row in csv.DictReader(file):
                found[row["instance_type"]] = Price(float(row["on_demand_usd_per_hour"]), "hour", *INSTANCES_FROM)
    for of_region, item, price in rows():
        if of_region in ("*", region):
            found[item] = price
    return found


def rows() -> list[tuple[str, str, Price]]:
    """Region, item and price of each line of prices.csv, those of all regions first."""
    with FILE.open() as file:
        return [
            (row["region"], row["item"], Price(float(row["usd"]), row["unit"], row["date"], row["source"]))
            for row in csv.DictReader(file)
        ]


def write(region: str, prices: Prices) -> None:
    """Put a region's prices into prices.csv, in place of what it had of these items."""
    kept = [row for row in rows() if row[0] != region or row[1] not in prices]
    merged = sorted([*kept, *((region, item, price) for item, price in prices.items())], key=lambda row: row[:2])
    with FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["region", "item", "usd", "unit", "date", "source"])
        writer.writerows([of_region, item, f"{price.usd:g}", *price[1:]] for of_region, item, price in merged)
    known.cache_clear()
