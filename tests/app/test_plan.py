"""`make plan`: the simulation against queueing formulas and sums made by hand, and what the command says.

Ray's own autoscaling code is in it, and no Ray runs here: what real ones did is in bench/results, in plan.json and
scaling.json.
"""

import json
import math
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.serve._private.autoscaling_metrics_codec import decode_handle_flat, encode

from app.options import Autoscaling
from infra import config
from infra.aws import prices
from scripts.bench import scaling
from scripts.console import Problem
from scripts.plan import __main__ as command
from scripts.plan import report, traffic
from scripts.plan.autoscaler import Autoscaler
from scripts.plan.nodes import Fleet, Nodes
from scripts.plan.report import Result
from scripts.plan.simulation import Deployment, Load, Outcome, simulate
from scripts.plan.stack import alternatives, choose, cold_start, deployment, fleet, others, the_rest
from scripts.plan.traffic import Traffic
from tests.app.test_warm_capacity import AUTOSCALING as AUTOSCALING_THERE
from tests.unit.contract_stacks import L4, SHARED, values, variant

LONG = 1000.0


def poisson(rate: float, seconds: float) -> Load:
    return Traffic("even", np.array([0.0, seconds]), np.array([rate])).load(seed=1)


def at(seconds: float, *arrivals: float) -> Load:
    return Load(np.array(arrivals), np.ones(len(arrivals)), seconds)


def erlang_c(rate: float, servers: int) -> float:
    """Part of the requests that wait, where each takes a second in the mean: https://en.wikipedia.org/wiki/Erlang_(unit)"""
    full = rate**servers / math.factorial(servers) * servers / (servers - rate)
    return full / (sum(rate**k / math.factorial(k) for k in range(servers)) + full)


@pytest.mark.parametrize(("rate", "replicas", "each"), [(2.4, 3, 1), (2.4, 1, 3), (0.8, 1, 1), (7.0, 4, 2)])
def test_waits_are_those_of_erlang(rate: float, replicas: int, each: int) -> None:
    found = simulate(poisson(rate, 100_000), Deployment(None, replicas, each))
    servers = replicas * each
    waits = erlang_c(rate, servers)
    assert (found.waits > 0).mean() == pytest.approx(waits, rel=0.03)
    assert found.waits.mean() == pytest.approx(waits / (servers - rate), rel=0.08)
    assert found.answers.mean() == pytest.approx(1 + waits / (servers - rate), rel=0.05)


def test_an_answer_takes_longer_on_a_busy_replica() -> None:
    one = Deployment(None, max_ongoing_requests=3, alone_s=4, full_s=8)
    found = simulate(at(100, 0, 1, 2, 3), one)
    assert found.answers.tolist() == [4, 6, 8, 9]  # the last waits a second, and finds two others
    assert found.waits.tolist() == [0, 0, 0, 1]


def test_a_full_queue_refuses() -> None:
    """One is under way until 10, one waits at each of two callers, and the next at each is too many."""
    one = Deployment(None, max_ongoing_requests=1, max_queued_requests=1, callers=2, alone_s=10, full_s=10)
    found = simulate(at(50, 0, 1, 2, 3, 4, 11), one)
    assert (found.arrived, found.refused) == (6, 2)
    assert found.waits.tolist() == [0, 9, 18, 19]


AUTOSCALING = Autoscaling(max_replicas=4, target_ongoing_requests=2)
"""With Ray's defaults: a look each 6 s, a report each 10, over 30 s; 30 s until more, 600 until fewer."""


def test_a_step_up() -> None:
    """Six requests at second 100 on one replica, where two are right. The report of 110 tells of them.

    Ray begins its mean where something was seen at all, so that it is 6 at once and not some of the five zeros before;
    30 s later come three replicas.
    """
    one = Deployment(AUTOSCALING, alone_s=LONG, full_s=LONG, start_s=45)
    found = simulate(at(300, *[100.0] * 6), one)
    wanted = next(moment for moment in found.moments if moment.target > 1)
    assert (wanted.second, wanted.target, wanted.running) == (pytest.approx(140, abs=0.01), 3, 1)
    running = next(moment for moment in found.moments if moment.running > 1)
    assert (running.second, running.running) == (pytest.approx(140 + 45, abs=0.01), 2)
    assert max(moment.running for moment in found.moments) == 3


def test_a_step_down() -> None:
    """All six end at 200. The report of 210 has three looks that say 6, and that of 204, which says 0.

    Their mean is 6 · 18 / (now - 186), which is less than 4, and so asks for two replicas, from 213 on: noticed at 214,
    and done a minute later, when all looks say 0.
    """
    scaling = AUTOSCALING.model_copy(update={"downscale_delay_s": 60.0})
    found = simulate(at(400, *[100.0] * 6), Deployment(scaling, alone_s=100, full_s=100))
    assert max(moment.target for moment in found.moments) == 3
    fewer = next(moment for moment in found.moments if moment.second > 200 and moment.target < 3)
    assert (fewer.second, fewer.target) == (pytest.approx(274, abs=0.01), 1)


def test_ray_aggregates_bytes_and_objects_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle sends bytes, for which Ray has another code than for the objects that the simulation gives it."""
    load = traffic.burst(3.0).load()
    one = Deployment(AUTOSCALING, alone_s=2, full_s=4, start_s=60, max_ongoing_requests=8)
    objects = simulate(load, one)

    def push(self: Autoscaler, now: float, queued: int) -> None:
        self.state.record_columnar_metrics_for_handle(decode_handle_flat(encode(self.report(now, queued))))

    monkeypatch.setattr(Autoscaler, "push", push)
    assert simulate(load, one).moments == objects.moments
    assert len({moment.target for moment in objects.moments}) > 2


RUNS = json.loads((Path(__file__).parents[2] / "bench/results/plan.json").read_text())
BOUND_S = 1.0
"""What the recorded test's own looks at Ray's REST API take on a busy machine."""


@pytest.mark.parametrize("run", RUNS["runs"])
def test_a_real_ray_serve_scaled_at_the_same_times(run: dict[str, float]) -> None:
    """The load of test_warm_capacity.py, which printed these times, begun at each tenth of the second between reports.

    Its clients end with an answer under way each, which takes another mean answer at most.
    """
    scaling, held = Autoscaling(**AUTOSCALING_THERE), run["wanted_s"] + run["first_answer_s"]
    answer = RUNS["clients"] * held / run["requests"]
    wanted, gone = list[float](), list[float]()
    for begun in np.arange(20, 21, 0.1).tolist():
        calm = begun + held + np.arange(0, 40, 0.3)  # one client, one short answer after the other
        arrivals = np.concatenate((np.full(RUNS["clients"], begun), calm))
        work = np.concatenate((np.full(RUNS["clients"], held), np.full(calm.size, 0.3)))
        found = simulate(Load(arrivals, work, begun + held + 40), Deployment(scaling, start_s=run["start_s"])).moments
        wanted.append(next(moment.second for moment in found if moment.target == 2) - begun)
        over = begun + held
        gone.append(next(moment.second for moment in found if moment.second > over and moment.running == 1) - over)
    assert min(wanted) - BOUND_S <= run["wanted_s"] <= max(wanted) + BOUND_S
    assert min(gone) - BOUND_S <= run["gone_s"] <= max(gone) + answer + BOUND_S


BURSTS = json.loads((Path(__file__).parents[2] / "bench/results/scaling.json").read_text())["runs"]
BOUNDS = {
    "more replicas wanted, s after the burst's begin": (0, BOUND_S),
    "replicas at most": (0, 0),
    "replicas in the mean": (0.05, 0),
    "requests refused": (0.1, 0),
    "wait, mean, s": (0.15, 0),
    "wait, 95th percentile, s": (0.15, 0),
    "answer, mean, s": (0.1, 0),
    "answer, 95th percentile, s": (0.1, 0),
}
"""How far a real figure may be beyond what is simulated: as a part of that, and in its unit.

In the simulation a request goes to the least busy of all replicas; Ray's router takes the less busy of two.
"""


@pytest.mark.parametrize("run", BURSTS)
def test_a_burst_does_to_a_real_ray_serve_what_is_simulated(run: dict[str, Any]) -> None:
    """Those of `make bench KIND=scaling`, simulated with the load begun at each tenth of the second between reports."""
    found = scaling.Scaled.read(run)
    seen, said = scaling.real(found), list(scaling.simulated(found))
    for what, (part, absolute) in BOUNDS.items():
        values = [one[what] for one in said]
        assert min(values) * (1 - part) - absolute <= seen[what] <= max(values) * (1 + part) + absolute, what


def test_nobody_asks() -> None:
    found = simulate(at(3600), Deployment(AUTOSCALING), Fleet(usd_per_hour=2.5, gpus=4))
    assert found.arrived == found.lost == 0
    assert {moment.target for moment in found.moments} == {1}
    assert (found.wait(0.95), found.node_hours, found.gpu_hours, found.usd) == (0, 1, 4, 2.5)


def test_from_zero() -> None:
    """The first request wakes the deployment without a delay, and waits for the cold start."""
    scaling = Autoscaling(min_replicas=0, max_replicas=2, target_ongoing_requests=2)
    found = simulate(at(500, 100.0), Deployment(scaling, start_s=40), Fleet(cold_s=200))
    assert found.waits.tolist() == [pytest.approx(240, abs=11)]
    assert found.node_hours == pytest.approx((500 - 100) / 3600, abs=10 / 3600)


@pytest.mark.parametrize(("shutdown_s", "cut_off"), [(5.0, 1), (LONG, 0)])
def test_a_stopping_replica_finishes_what_it_can(shutdown_s: float, cut_off: int) -> None:
    """Four at 100 bring a second replica, which gets the two of 180, as the first is full. One of them takes long."""
    scaling = Autoscaling(max_replicas=2, target_ongoing_requests=1, downscale_delay_s=30)
    load = Load(np.array([*[100.0] * 4, 180.0, 180.0]), np.array([1, 1, 1, 1, 0.5, 9]), 600)
    one = Deployment(scaling, max_ongoing_requests=4, alone_s=100, full_s=100, shutdown_s=shutdown_s)
    found = simulate(load, one)
    assert [max(moment.running for moment in found.moments), found.moments[-1].running] == [2, 1]
    assert (found.cut_off, found.lost) == (cut_off, cut_off)


def test_the_same_load_gives_the_same_outcome() -> None:
    load = traffic.burst(3.0).load()
    first, second = (simulate(load, Deployment(AUTOSCALING, alone_s=2, full_s=4, start_s=60)) for _ in range(2))
    assert first.moments == second.moments
    assert (first.waits == second.waits).all()
    assert (traffic.burst(3.0).load().arrivals == load.arrivals).all()


def test_nodes() -> None:
    """Two replicas to a pod, two pods to a node, one of them warm; a second node more starts cold."""
    nodes = Nodes(Fleet(share=0.5, least=1, per_node=2, warm=1, cold_s=100, linger_s=50, usd_per_hour=1), 2)
    assert nodes.count == 1 + 1
    assert nodes.place(10, 3) == 10  # another pod on the same node
    assert nodes.place(20, 5) == 20  # on the warm one, in whose place the next starts
    assert nodes.count == 2 + 1
    assert nodes.place(30, 9) == 120  # on that, as soon as it is there
    nodes.release(200, 5)
    assert nodes.count == 3 + 1
    assert nodes.place(240, 7) == 240  # two pods wait for work until 250
    nodes.release(260, 2)
    # 2 until 20, 3 until 30, 4 until 250, 3 until 310; then the warm one and one more.
    assert nodes.hours(400) == pytest.approx((2 * 20 + 3 * 10 + 4 * 220 + 3 * 60 + 2 * 90) / 3600)


def test_cost_by_hand() -> None:
    """Three replicas from 140 on, as in test_a_step_up: two nodes more, until the end of the hour."""
    of = Fleet(usd_per_hour=3.6, gpus=8, cold_s=200)
    found = simulate(at(3600, *[100.0] * 6), Deployment(AUTOSCALING, alone_s=5000, full_s=5000), of)
    assert found.usd == pytest.approx(3.6 + 2 * 3.6 * (3600 - 140) / 3600, rel=1e-4)
    assert found.gpu_hours == pytest.approx(found.usd / 3.6 * 8)


def test_shapes() -> None:
    day = traffic.daily(10)
    assert (day.seconds, day.rates.max(), day.rates.min()) == (86400, pytest.approx(10), pytest.approx(1))
    assert day.rates.argmax() == 16 * 60
    load = day.load()
    assert load.arrivals.size == pytest.approx(86400 * 5.5, rel=0.01)
    assert (np.diff(load.arrivals) >= 0).all()
    assert load.work.mean() == pytest.approx(1, rel=0.01)
    step = traffic.step(5).load().arrivals
    assert ((step > 1200) & (step < 4800)).sum() == pytest.approx(5 * 3600, rel=0.05)
    with pytest.raises(Problem, match="requests, and 5,000,000"):
        traffic.daily(1000).load()


def test_a_csv(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("second,rate\n1000,2\n1060,0\n1120,0.5\n1180,9\n")
    found = traffic.read(str(file), 1)
    assert (found.name, found.edges.tolist(), found.rates.tolist()) == ("trace", [0, 60, 120, 180], [2, 0, 0.5])
    arrivals = found.load().arrivals
    assert not ((arrivals > 60) & (arrivals < 120)).any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("second,rate,user\n0,1,a\n60,1,a\n", "its columns are second, rate, user"),
        ("time,rate\n0,1\n60,1\n", "its columns are time, rate"),
        ("rate\n1\n1\n", "its columns are rate"),
        ("", "its columns are none"),
        ("second,rate\n0,1\n60,-1\n", "line 3: rate = '-1' is no number of 0 or more"),
        ("second,rate\n0,1\n60,nan\n", "line 3: rate = 'nan'"),
        ("second,rate\n0,1\n60,inf\n", "line 3: rate = 'inf'"),
        ("second,rate\n0,1\n60\n", "line 3: rate = None"),
        ("second,rate\n0,1,2\n60,1\n", "line 2: has more than two values"),
        ("second,rate\n0,many\n60,1\n", "line 2: rate = 'many'"),
        ("second,rate\n0,1\n0,1\n", "line 3: second = 0 is not after the one before"),
        ("second,rate\n0,1\n", "has 1 row"),
    ],
)
def test_csvs_that_are_none(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(content)
    with pytest.raises(Problem) as told:
        traffic.read(str(file), 1)
    assert said in told.value.what
    assert "TRACE = " in told.value.what
    assert "second,rate" in told.value.fix


def test_prod_as_it_is_in_its_file() -> None:
    stack = config.from_file("prod")
    planned = choose("prod", stack, "")
    assert (planned.name, planned.key, planned.group.name) == ("chat@canary", "models.0.variants.1", "l4")
    one = deployment(planned, 4, 9)
    assert one.autoscaling == planned.variant.scaling.autoscaling_config
    assert (one.max_ongoing_requests, one.max_queued_requests, one.callers, one.shutdown_s) == (64, 256, 3, 120)
    stages = cold_start()
    assert list(stages) == ["node", "image", "weights", "engine", "first token"]
    assert all(stage.mark in ("measured", "estimate") and stage.source for stage in stages.values())
    # 8.03 billion parameters of 16 bits
    weights = stages["weights"].per_gib * 16.06e9 / 2**30
    assert one.start_s == pytest.approx(stages["engine"].seconds + stages["first token"].seconds + weights)
    known = prices.known("us-east-1")
    nodes = fleet(planned, known)
    # Two embedding models of a fifth of a GPU each are on these nodes, too.
    assert (sum(others(planned)), nodes.share, nodes.least, nodes.most, nodes.warm, nodes.gpus) == (0.4, 1, 2, 6, 1, 1)
    assert nodes.cold_s == stages["node"].seconds + stages["image"].seconds
    assert nodes.linger_s == 1800 + 600
    each = 0.9776 + (200 * 0.08 + (600 - 125) * 0.04) / 730
    assert nodes.usd_per_hour == pytest.approx(each)
    # What is left of `make cost`'s sum.
    least = 59.4281 + 100 * 0.08 / 730  # with Prometheus' volume
    assert the_rest(planned, known, date(2026, 11, 29)) == pytest.approx(least - 3 * each, abs=1e-4)


def test_others_have_their_fewest_replicas() -> None:
    scales = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}
    both = [variant(name="stable", scaling={"num_replicas": 2}), variant(name="canary", scaling=scales)]
    stack = config.parse(values({**L4, "max_replicas": 6}, variants=both), "test")
    assert sum(others(choose("test", stack, "chat@stable"))) == pytest.approx(1, abs=0.01)  # and the gateway
    assert sum(others(choose("test", stack, "chat@canary"))) == pytest.approx(2, abs=0.01)


def test_other_settings_are_held_against_the_contract() -> None:
    scaling = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 8}}
    scaled = variant(name="stable", scaling={**scaling, "max_ongoing_requests": 16})
    stack = config.parse(values({**L4, "max_replicas": 2}, variants=[scaled]), "test")
    found, refused = alternatives("test", choose("test", stack, ""))
    assert list(found) == [
        *("as it is", "target_ongoing_requests: 4", "target_ongoing_requests: 12", "min_replicas: 2"),
        *("upscale_delay_s: 10", "downscale_delay_s: 300", "pool.warm: 1"),
    ]
    assert list(refused) == ["max_replicas: 3"]
    assert "fix:" in refused["max_replicas: 3"]
    for what, planned in found.items():
        changed = planned.variant.scaling.autoscaling_config
        assert changed
        key, _, value = what.partition(": ")
        if value and key != "pool.warm":
            assert getattr(changed, key) == float(value)
    assert fleet(found["pool.warm: 1"], prices.known("us-east-1")).warm == 1


def test_a_managed_group_is_paid_for_in_whole() -> None:
    shared = variant(name="stable", placement={"num_cpus": 1}, engine={"gpu_memory_utilization": 0.2})
    small = {"parameters_billion": 1.0, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8}
    shared |= {"size": {**small, "head_dim": 64}}
    stack = config.parse(values({**SHARED, "max_replicas": 4}, variants=[shared]), "test")
    nodes = fleet(choose("test", stack, ""), prices.known("us-east-1"))
    assert nodes.fixed is not None
    assert nodes.fixed > 0
    assert Nodes(nodes, 1).count == Nodes(nodes, 4).count == nodes.fixed


def test_a_stack_without_prices() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.plan", "local"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: Pulumi.local.yaml: cluster.kind = 'native': its nodes have no price that we know\n"
        "  fix: name a stack of kind eks: make plan STACK=prod\n"
    )


def test_a_variant_without_gpus() -> None:
    engine, placement = {"quantization": None}, {"num_gpus": 0}
    without = variant(None, None, name="cpu", placement=placement, engine=engine)
    stack = config.parse(values({**L4, "name": "cpu", "gpus": 0, "pool": None}, variants=[without]), "test")
    with pytest.raises(Problem, match=r"serving\.models\.0\.variants\.0\.placement\.num_gpus = 0"):
        choose("test", stack, "")


def test_a_region_without_prices() -> None:
    with pytest.raises(Problem, match=r"cluster\.region = 'us-east-1': the price of g6") as told:
        fleet(choose("prod", config.from_file("prod"), ""), {})
    assert "make prices" in told.value.fix


def outcome(usd: float, wait: float, refused: int = 0) -> Outcome:
    waits = np.full(10, wait)
    return Outcome(10, waits, waits, waits, refused, 0, [], 1, 1, usd)


@pytest.mark.parametrize(
    ("given", "other", "said"),
    [
        ((10, 0.1), (9, 0.5), "recommended: cheaper, -1.00 USD (-10%)"),
        ((10, 0.1), (9.9, 0.1), "recommended: leave it as it is"),
        ((10, 0.1), (5, 30.0), "recommended: leave it as it is"),
        ((10, 0.1), (5, 0.1, 1), "recommended: leave it as it is"),
        ((10, 30.0), (12, 0.5), "recommended: cheaper, +2.00 USD (+20%)"),
        ((10, 30.0, 5), (12, 40.0, 2), "recommended: cheaper, which is not enough: 2 of 10 requests are lost"),
    ],
)
def test_recommendations(given: tuple[float, ...], other: tuple[float, ...], said: str) -> None:
    planned = choose("prod", config.from_file("prod"), "")
    settings = {"as it is": given, "cheaper": other}
    results = {what: Result(planned, outcome(*one)) for what, one in settings.items()}  # type: ignore[arg-type]
    assert report.recommend(results).startswith(said)


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    command.ask()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trace, plot = tmp_path / "morning.csv", tmp_path / "plan.svg"
    trace.write_text("second,rate\n0,1\n300,8\n900,1\n1800,0\n")
    given = ("--trace", str(trace), "--seconds-alone", "8", "--seconds-full", "16", "--plot", str(plot))
    ask(monkeypatch, "prod", *given)
    out = capsys.readouterr().out
    for said in ("chat@canary on the nodes of l4", "traffic morning: 0.5 h", "recommended: ", "estimate", "as it is"):
        assert said in out
    assert "assumed" not in out
    assert "requests/s" in plot.read_text()


def test_plots(tmp_path: Path) -> None:
    planned, steps = choose("prod", config.from_file("prod"), ""), traffic.step(0.2)
    results = {"as it is": Result(planned, simulate(steps.load(), Deployment(None)))}
    plots = [tmp_path / name for name in ("plan.svg", "again.svg", "plan.png")]
    for file in plots:
        report.plot(file, steps, results)
    assert plots[0].read_bytes() == plots[1].read_bytes()
    assert plots[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "-1"], "RATE = '-1': is no number above 0"),
        (["--rate", "nan"], "RATE = 'nan'"),
        (["--seconds-alone", "0"], "SECONDS_ALONE = '0'"),
        (["--seconds-alone", "5", "--seconds-full", "4"], "SECONDS_FULL = 4: is less than SECONDS_ALONE (5)"),
        (["--trace", "dayly"], "TRACE = 'dayly': there is no such shape"),
        (["--trace", "none.csv"], "TRACE = 'none.csv': cannot be read"),
        (["--trace", "x.csv", "--rate", "5"], "RATE = 5: is the peak of a shape"),
        (["--model", "chat@cannary"], "MODEL = 'chat@cannary': the stack has no such variant"),
        (["--plot", "plan.jpg"], "PLOT = 'plan.jpg'"),
        (["--plot", "/nowhere/plan.svg"], "there is no directory /nowhere"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem) as told:
        ask(monkeypatch, "prod", *arguments)
    assert said in told.value.what
