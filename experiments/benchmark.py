"""How fast it is: simulation, decisions, training, and the memory they take, on one core.

    python experiments/benchmark.py                   # everything, which takes long; draws docs/images/scaling.png
    python experiments/benchmark.py --quick --json    # the headline figures, within a minute once all is compiled

Every figure is the median of several repeats after a warm-up, in which all is compiled; what is compared alternates.
Seconds are those that the core has worked (`time.process_time`), so that other load hardly matters. In the full run
each measurement has a process of its own, and with it a peak of memory.

The loads are the published simulator's trace ``conv70``, 70 requests/s on 40 machines, laid end to end (simulation),
and the card SplitwiseHH (decisions, training). Other sizes split the machines alike and give each the same load.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import gymnasium
import numpy as np
import numpy.typing as npt

from splitgym.cards import Card, load_card
from splitgym.errors import SplitgymError
from splitgym.folders import check_writable
from splitgym.machines import parse_machines
from splitgym.policies import make_policy
from splitgym.randomness import Streams
from splitgym.sim.cluster import Scenario
from splitgym.sim.rows import RequestRows
from splitgym.sim.run import run
from splitgym.workload import Requests, read_trace

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

ROOT = Path(__file__).resolve().parents[1]
TRACE = ROOT.parent / "shared" / "reference" / "splitwise-sim" / "traces" / "conv70.csv.gz"
PLOT = ROOT / "docs" / "images" / "scaling.png"

CARD, POLICY, RATE_RPS, TRACE_S = "SplitwiseHH", "splitwise", 70.0, 120.0
SPLITS = {5: (3, 2), 40: (25, 15), 320: (200, 120), 1000: (625, 375)}  # machines: for prompts, for tokens
USUAL = 40  # machines
KINDS = ("routing", "repurposing", "joint")
ALGORITHMS, NETWORKS = ("ppo", "maskable-ppo"), ("mlp", "equivariant")
LINK_SHARES = (1.0, 0.01)  # of the links' bandwidth: their own; so little that the network is overloaded
TRAINED = 64  # environments
EVENTS = ("arrival", "iteration_end", "transfer_end", "ready")  # lines of the log that are events of the clock

Figures = dict[str, Any]
Actions = npt.NDArray[np.int64]  # (num_envs,) or (num_envs, heads)
Masks = npt.NDArray[np.bool_]  # (num_envs, choices of all heads)


def machine_groups(machines: int) -> str:
    """So many machines, as ``--machines`` takes them."""
    prompt, token = SPLITS[machines]
    return f"prompt={prompt}:h100-80gb,token={token}:h100-80gb"


# --- Simulation: from arrays of requests to rows of results --------------------------------------------------------


def simulation(machines: int, requests: int, reference_requests: int, repeats: int) -> Figures:
    """Requests/s of the compiled engine, and of the reference engine on the first ``reference_requests``."""
    card = load_card(CARD)
    cluster = card.build_cluster(machine_groups(machines))
    everything, workload = offered(card, machines, requests)

    def simulated(requests: Requests, engine: str = "compiled") -> tuple[float, RequestRows]:
        began_s = time.process_time()
        rows = run(Scenario(cluster, requests), make_policy(POLICY), engine=engine).rows
        return len(requests) / (time.process_time() - began_s), rows

    simulated(first(100, everything))
    rates: dict[str, list[float]] = {"requests_per_s": [], "reference_requests_per_s": []}
    same = True
    for _ in range(repeats):
        rates["requests_per_s"].append(simulated(everything)[0])
        if reference_requests:
            prefix = first(reference_requests, everything)
            rate, rows = simulated(prefix, "reference")
            rates["reference_requests_per_s"].append(rate)
            same &= identical(rows, simulated(prefix)[1])
    figures: Figures = {name: statistics.median(values) for name, values in rates.items() if values}
    if reference_requests:
        figures["ratio_to_reference"] = figures["requests_per_s"] / figures["reference_requests_per_s"]
        figures["rows_identical"] = same
    return figures | {"workload": workload}


def network(machines: int, requests: int, link_share: float, repeats: int) -> Figures:
    """What the network `shared` costs beside the ideal one, in time per request and per event of the clock.

    With a hundredth of their links' bandwidth the machines are held up by the network: hundreds of caches are on their
    way at once, decodes trickle in, and a request takes seven times as many iterations.
    """
    card = load_card(CARD)
    cluster = card.build_cluster(machine_groups(machines))
    own = cluster.machines[0].profile
    slowed = replace(own, link_bytes_per_s=link_share * own.link_bytes_per_s)  # all machines are alike
    cluster = replace(cluster, machines=tuple(replace(machine, profile=slowed) for machine in cluster.machines))
    everything, _ = offered(card, machines, requests)
    scenarios = {
        name: Scenario(replace(cluster, transfer=replace(cluster.transfer, network=name)), everything)
        for name in ("ideal", "shared")
    }
    seconds: dict[str, list[float]] = {name: [] for name in scenarios}
    for _ in range(1 + repeats):  # the first is the warm-up
        for name, scenario in scenarios.items():
            began_s = time.process_time()
            run(scenario, make_policy(POLICY))
            seconds[name].append(time.process_time() - began_s)
    counted = {name: clock_events(scenario) for name, scenario in scenarios.items()}
    ideal_s, shared_s = (statistics.median(seconds[name][1:]) for name in scenarios)
    ratio = shared_s / ideal_s
    return {
        "shared_requests_per_s": requests / shared_s,
        "shared_time_per_request": ratio,
        "shared_time_per_event": ratio * counted["ideal"] / counted["shared"],
    }


def events(machines: int, requests: int) -> Figures:
    """Events of the simulation's clock for each request: arrivals, ends of iterations and transfers."""
    card = load_card(CARD)
    scenario = Scenario(card.build_cluster(machine_groups(machines)), offered(card, machines, requests)[0])
    return {"events_per_request": clock_events(scenario) / requests}


def clock_events(scenario: Scenario) -> int:
    """How many events of the simulation's clock a run has."""
    recorder = run(scenario, make_policy(POLICY), record=True).recorder
    assert recorder is not None
    return sum(event.kind in EVENTS for event in recorder.events)


def offered(card: Card, machines: int, count: int) -> tuple[Requests, str]:
    """``count`` requests for so many machines, and what they are."""
    if TRACE.is_file():
        once, what = read_trace(TRACE), "conv70 of the reference cases"
    else:
        once = card.workload.draw(Streams(0, "test"), num_requests=round(RATE_RPS * TRACE_S), rate_rps=RATE_RPS)
        once = replace(once, arrival_s=once.arrival_s * (TRACE_S / once.arrival_s[-1]))  # the drawn rate swings
        what = "the card's conversations at 70 requests/s, conv70 being absent"
    times = -(-count // len(once))
    columns: dict[str, Any] = {name: np.tile(column, times)[:count] for name, column in columns_of(once).items()}
    columns["arrival_s"] = (columns["arrival_s"] + TRACE_S * (np.arange(count) // len(once))) * (USUAL / machines)
    return Requests(**columns), what


def first(count: int, requests: Requests) -> Requests:
    """The first ``count`` of them."""
    return Requests(**{name: column[:count] for name, column in columns_of(requests).items()})


def columns_of(requests: Requests) -> dict[str, Any]:
    """Each column (num_requests,) by its name; these requests have no prefixes in common."""
    return {field.name: getattr(requests, field.name) for field in fields(requests) if field.name != "prefixes"}


def identical(one: RequestRows, other: RequestRows) -> bool:
    """Whether all columns are equal to the last bit."""
    columns = [(np.asarray(getattr(one, f.name)), np.asarray(getattr(other, f.name))) for f in fields(one)]
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in columns)


# --- Decisions: random valid actions, observations and masks included ----------------------------------------------


def decisions(kind: str, num_envs: int, machines: int, repeats: int, seconds: float) -> Figures:
    """Decisions/s of environments that choose at random: of steps, and with beginning episodes spread over them."""
    envs: Any
    if num_envs > 1:
        envs = gymnasium.make_vec("splitgym/Cluster-v0", num_envs, kind=kind, **loaded(machines))
        space, action_masks = envs.single_action_space, envs.action_masks
    else:
        envs = gymnasium.make("splitgym/Cluster-v0", disable_env_checker=True, kind=kind, **loaded(machines))
        space, action_masks = envs.action_space, lambda: envs.unwrapped.action_masks()[None]
    sizes = [int(space.n)] if isinstance(space, gymnasium.spaces.Discrete) else space.nvec.tolist()
    rng = np.random.default_rng(0)

    def rates(seed: int) -> tuple[float, float]:
        began_s = time.process_time()
        envs.reset(seed=seed)
        masks = action_masks()
        reset_s, stepped_s, steps, is_over = time.process_time() - began_s, 0.0, 0, False
        while stepped_s < seconds and not is_over:
            actions = random_actions(masks, sizes, rng)  # not counted
            began_s = time.process_time()
            _, _, terminated, truncated, _ = envs.step(actions if num_envs > 1 else actions[0])
            masks = action_masks()
            stepped_s += time.process_time() - began_s
            steps += 1
            is_over = bool(np.any(terminated) or np.any(truncated))
        step_s = stepped_s / steps
        return num_envs / step_s, num_envs / (step_s + reset_s / episode_decisions(kind))

    rates(0)
    found = [statistics.median(measured) for measured in zip(*map(rates, range(1, 1 + repeats)), strict=True)]
    return {"decisions_per_s": found[0], "decisions_with_resets_per_s": found[1]}


def loaded(machines: int) -> Figures:
    """Arguments of environments of so many machines: the card's load on each, its number of requests in an episode."""
    card, scale = load_card(CARD), USUAL / machines
    times = card.episode.model_dump(include={"warmup_s", "horizon_s", "tick_s"})
    episode = card.episode.model_copy(update={name: scale * time_s for name, time_s in times.items()})
    cluster = card.cluster.model_copy(update={"machines": parse_machines(machine_groups(machines))})
    card = card.model_copy(update={"episode": episode, "cluster": cluster})
    return {"card": card, "rate": card.workload.mean_rate_rps / scale}


def episode_decisions(kind: str) -> float:
    """Expected in an episode, after its warm-up."""
    card = load_card(CARD)
    assert card.episode.horizon_s is not None
    counted_s = card.episode.horizon_s - card.episode.warmup_s
    arrivals, ticks = counted_s * card.workload.mean_rate_rps, counted_s / card.episode.tick_s
    return {"routing": arrivals, "repurposing": ticks, "joint": arrivals + ticks}[kind]


def random_actions(masks: Masks, sizes: Sequence[int], rng: np.random.Generator) -> Actions:
    """Valid choices, each as likely, a column for each of several heads."""
    heads = np.split(masks, np.cumsum(sizes)[:-1], axis=1)
    chosen = [(rng.random(head.shape) * head).argmax(axis=1) for head in heads]
    return chosen[0] if len(chosen) == 1 else np.stack(chosen, axis=1)


# --- Training: against an environment that costs nothing -----------------------------------------------------------


def training(algorithm: str, network: str, machines: int, num_steps: int, repeats: int) -> Figures:
    """Steps/s of an algorithm on 64 environments of kind routing, and its share of those on the free one."""
    from stable_baselines3.common.logger import Logger

    from splitgym.learn.agents import PpoSettings, make_agent, use_threads
    from splitgym.learn.network import Shape
    from splitgym.learn.vec_env import SchedulingVecEnv

    use_threads(1)
    settings = replace(PpoSettings(), num_steps=num_steps)
    real = SchedulingVecEnv(
        TRAINED, reward_scale=0.02, stagger=True, kind="routing", gamma=settings.discount, **loaded(machines)
    )
    agents = {}
    for name, envs in {"steps_per_s": real, "free_steps_per_s": free_like(real)}.items():
        shape = Shape.of(envs.observation_space, ("machine", "machine"))
        agents[name] = make_agent(
            algorithm,  # type: ignore[arg-type]
            envs,
            network=network,
            shape=shape,
            settings=settings,
            seed=0,
        )
        agents[name].set_logger(Logger(folder=None, output_formats=[]))

    def rate(name: str) -> float:
        began_s = time.process_time()
        agents[name].learn(TRAINED * num_steps, reset_num_timesteps=False)
        return TRAINED * num_steps / (time.process_time() - began_s)

    rates: dict[str, list[float]] = {name: [] for name in agents}
    for _ in range(1 + repeats):  # the first is the warm-up
        for name in agents:
            rates[name].append(rate(name))
    figures = {name: statistics.median(values[1:]) for name, values in rates.items()}
    return figures | {"share_of_free": figures["steps_per_s"] / figures["free_steps_per_s"]}


def free_like(real: VecEnv) -> VecEnv:
    """Environments with the spaces of ``real`` that cost nothing: they always return the same arrays."""
    from stable_baselines3.common.vec_env import VecEnv

    count = real.num_envs
    observations, masks = real.reset(), np.stack(real.env_method("action_masks"))
    rewards, dones = np.linspace(-1, 1, count, dtype=np.float32), np.zeros(count, np.bool_)
    infos: list[dict[str, Any]] = [{} for _ in range(count)]

    class Free(VecEnv):
        def reset(self) -> Any:
            return observations

        def step_async(self, actions: Actions) -> None:
            pass

        def step_wait(self) -> Any:
            return observations, rewards, dones, infos

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
            return masks  # nothing else is asked for

        def has_attr(self, attr_name: str) -> bool:
            return attr_name == "action_masks"

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * count

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            pass

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * count

        def close(self) -> None:
            pass

    return Free(count, real.observation_space, real.action_space)


# --- All of it -----------------------------------------------------------------------------------------------------


def measure_all() -> Figures:
    """The full run; each measurement has a process of its own."""
    return {
        "simulation": [
            measured(simulation, machines=m, requests=n, reference_requests=20_000 if n == 100_000 else 0, repeats=5)
            for m in SPLITS
            for n in (10_000, 100_000, 1_000_000)
        ],
        "events": [measured(events, machines=m, requests=100_000) for m in SPLITS],
        "network": [
            measured(network, machines=m, requests=20_000, link_share=share, repeats=5)
            for m in SPLITS
            for share in LINK_SHARES
        ],
        "decisions": [
            measured(decisions, kind=kind, num_envs=count, machines=m, repeats=5, seconds=2.0)
            for m in SPLITS
            for kind in KINDS
            for count in (1, 64, 256)
        ],
        "training": [
            measured(training, algorithm=a, network=n, machines=m, num_steps=min(128, max(8, 5120 // m)), repeats=5)
            for m in SPLITS
            for a in (ALGORITHMS if m == USUAL else ALGORITHMS[1:])
            for n in NETWORKS
        ],
    }


def measure_some() -> Figures:
    """The quick run, in this process; the largest simulation comes first, so that the peak it sees is its own."""
    here: dict[str, Any] = {"apart": False, "machines": USUAL}
    return {
        "simulation": [
            measured(simulation, **here, requests=1_000_000, reference_requests=0, repeats=1),
            measured(simulation, **here, requests=100_000, reference_requests=8_000, repeats=3),
            measured(simulation, **here | {"machines": 1000}, requests=100_000, reference_requests=0, repeats=3),
        ],
        "events": [measured(events, **here, requests=100_000)],
        "network": [measured(network, **here, requests=20_000, link_share=share, repeats=3) for share in LINK_SHARES],
        "decisions": [measured(decisions, **here, kind="routing", num_envs=64, repeats=3, seconds=1.0)],
        "training": [
            measured(training, **here, algorithm=algorithm, network=network, num_steps=8, repeats=3)
            for algorithm in ALGORITHMS
            for network in NETWORKS
        ],
    }


def measured(measurement: Callable[..., Figures], *, apart: bool = True, **asked: Any) -> Figures:
    """What was asked and what was found, in this process or one ``apart``; told on standard error, too."""
    if apart:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(with_peak, measurement, asked).result()
    else:
        found = with_peak(measurement, asked)
    told = ", ".join(f"{name} {shown(value)}" for name, value in (asked | found).items())
    print(f"{measurement.__name__}: {told}", file=sys.stderr, flush=True)
    return asked | found


def with_peak(measurement: Callable[..., Figures], asked: Figures) -> Figures:
    """What was found, and the process's peak of memory."""
    found = measurement(**asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"peak_rss_mb": peak / (1e6 if sys.platform == "darwin" else 1e3)}


def headline(found: Figures) -> Figures:
    """The figures the project is held to."""

    def of(measurement: str, **asked: Any) -> Figures:
        return next(row for row in found[measurement] if asked.items() <= row.items())

    decided = of("decisions", kind="routing", num_envs=64, machines=USUAL)
    own_links, slow_links = (of("network", machines=USUAL, link_share=share) for share in LINK_SHARES)
    usual, large = (of("simulation", machines=machines, requests=100_000) for machines in (USUAL, 1000))
    return {
        "requests_per_s": usual["requests_per_s"],
        "reference_requests_per_s": usual["reference_requests_per_s"],
        "ratio_to_reference": usual["ratio_to_reference"],
        "rows_identical": usual["rows_identical"],
        "events_per_s": usual["requests_per_s"] * of("events", machines=USUAL)["events_per_request"],
        "requests_per_s_1000_machines": large["requests_per_s"],
        "share_at_1000_machines": large["requests_per_s"] / usual["requests_per_s"],
        "shared_time_per_request": own_links["shared_time_per_request"],
        "shared_requests_per_s_overloaded": slow_links["shared_requests_per_s"],
        "shared_time_per_event_overloaded": slow_links["shared_time_per_event"],
        "peak_rss_mb_million_requests": of("simulation", machines=USUAL, requests=1_000_000)["peak_rss_mb"],
        "decisions_per_s_vector_64": decided["decisions_per_s"],
        "decisions_with_resets_per_s_vector_64": decided["decisions_with_resets_per_s"],
        "ppo_share_of_free_environment": min(
            row["share_of_free"] for row in found["training"] if row["machines"] == USUAL
        ),
        "workload": usual["workload"],
    }


def shown(value: object) -> str:
    """Three digits at least, or as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def machine() -> dict[str, str]:
    """What it ran on."""
    packages = {name: version(name) for name in ("numpy", "numba", "torch", "stable-baselines3", "sb3-contrib")}
    return {"processor": platform.processor() or platform.machine(), "python": platform.python_version()} | packages


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message} (see --help)\n")


def main() -> None:
    """Measure, draw, tell."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the headline figures alone; draws nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object with everything measured")
    parser.add_argument("--plot", type=Path, default=PLOT, help="where the full run draws how it scales")
    arguments = parser.parse_args()
    if not arguments.quick:
        try:
            check_writable(arguments.plot.parent)
        except SplitgymError as error:
            parser.error(f"--plot: {error}")

    found = measure_some() if arguments.quick else measure_all()
    figures = headline(found)
    if not arguments.quick:
        from benchmark_picture import draw_scaling  # beside this file

        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        draw_scaling(found, arguments.plot, usual=USUAL)
    if arguments.json:
        print(json.dumps(figures | found | {"machine": machine()}, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name.replace('_', ' '):32} {shown(value)}")
    if not figures["rows_identical"]:
        sys.exit("error: the compiled engine's rows are not the reference engine's")


if __name__ == "__main__":  # worker processes import this file
    os.environ["OMP_NUM_THREADS"] = "1"  # theirs
    main()
