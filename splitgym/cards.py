"""Environment cards: a cluster, what arrives, what is promised, when it counts; YAML files of ``envs/``."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from splitgym.errors import SplitgymError, did_you_mean
from splitgym.fault_card import FOLLOWED_S, FaultsCard
from splitgym.hardware import list_profiles
from splitgym.machines import (
    Hardware,
    MachineGroup,
    build_machines,
    cached_profile,
    check_phases,
    parse_machines,
)
from splitgym.policies import make_policy
from splitgym.randomness import Streams
from splitgym.request_classes import ClassCard, SloCard, with_classes
from splitgym.shipped import shipped_folder
from splitgym.sim.cluster import Batching, Cluster, Scenario, Telemetry, Transfer, VllmBatching
from splitgym.sim.faults import Faults
from splitgym.workload import Requests, WorkloadConfig
from splitgym.yaml_file import read_model

KINDS = ("routing", "repurposing", "joint")
Kind = Literal["routing", "repurposing", "joint"]

BASE_KEY = "extends"
"""The field of a card that names another of its folder, whose fields it has but for those it gives itself."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BatchingCard(_Strict):
    """See `splitgym.sim.cluster.Batching` and, for discipline `vllm`, `splitgym.sim.cluster.VllmBatching`."""

    discipline: Literal["splitwise", "vllm"] = "splitwise"
    max_batch_tokens: PositiveInt = Batching.max_batch_tokens
    max_batch_size: PositiveInt = Batching.max_batch_size
    max_preemptions: PositiveInt = Batching.max_preemptions
    max_num_seqs: PositiveInt = VllmBatching.max_num_seqs
    max_num_batched_tokens: PositiveInt = VllmBatching.max_num_batched_tokens
    block_size: PositiveInt = VllmBatching.block_size
    watermark: Annotated[NonNegativeFloat, FiniteFloat] = VllmBatching.watermark
    prefix_caching: bool = VllmBatching.prefix_caching

    @model_validator(mode="after")
    def _of_one_discipline(self) -> Self:
        for discipline, names in _SETTINGS.items():
            foreign = [name for name in names if name in self.model_fields_set and discipline != self.discipline]
            if foreign:
                raise ValueError(f"{foreign[0]} belongs to discipline {discipline}; leave it out or change discipline")
        self.build()  # raises for what cannot be
        return self

    def build(self) -> Batching | VllmBatching:
        """The settings of the discipline."""
        settings = self.model_dump(include=set(_SETTINGS[self.discipline]))
        return VllmBatching(**settings) if self.discipline == "vllm" else Batching(**settings)


_SETTINGS = {
    "splitwise": [setting.name for setting in fields(Batching)],
    "vllm": [setting.name for setting in fields(VllmBatching)],
}


class TransferCard(_Strict):
    """See `splitgym.sim.cluster.Transfer`."""

    mode: Literal["serialized", "layerwise"] = "serialized"
    overhead_s: Annotated[NonNegativeFloat, FiniteFloat] = Transfer.overhead_s
    overhead_per_block_s: Annotated[NonNegativeFloat, FiniteFloat] = Transfer.overhead_per_block_s
    network: Literal["ideal", "shared"] = "ideal"
    kv_lease_s: Annotated[PositiveFloat, FiniteFloat] | None = None


class PowerCard(_Strict):
    """A cap on what each machine draws; a group of machines may have its own."""

    cap_w: Annotated[PositiveFloat, FiniteFloat] | None = None


class TelemetryCard(_Strict):
    """See `splitgym.sim.cluster.Telemetry`."""

    scrape_interval_s: Annotated[PositiveFloat, FiniteFloat]
    jitter_s: Annotated[NonNegativeFloat, FiniteFloat] = Telemetry.jitter_s
    loss: NonNegativeFloat = Telemetry.loss

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        self.build()  # raises for what cannot be
        return self

    @property
    def oldest_s(self) -> float:
        """How old a report becomes while no scrape fails."""
        return self.scrape_interval_s + self.jitter_s

    def build(self) -> Telemetry:
        """The same for the simulator."""
        return Telemetry(**self.model_dump())


class ClusterCard(_Strict):
    """Machines of one model; the groups number them in order."""

    model: str
    tensor_parallel: PositiveInt = 8
    machines: tuple[MachineGroup, ...]
    baseline: Hardware = "a100-80gb"  # the hardware that slowdown is measured against
    batching: BatchingCard = BatchingCard()
    transfer: TransferCard = TransferCard()
    power: PowerCard = PowerCard()
    switch_s: Annotated[NonNegativeFloat, FiniteFloat] = 0.0
    frontend_s: Annotated[NonNegativeFloat, FiniteFloat] = 0.0
    first_token: Literal["prompt_machine", "token_machine"] = "prompt_machine"
    token_choice: Literal["arrival", "prompt_end"] = "arrival"
    migrate: bool = False
    faults: FaultsCard = FaultsCard()
    admission: bool = False

    @field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        known = {profile[0] for profile in list_profiles()}
        if model not in known:
            raise ValueError(f"unknown {model!r}{did_you_mean(model, known)}")
        return model

    @field_validator("machines")
    @classmethod
    def _both_phases(cls, machines: tuple[MachineGroup, ...]) -> tuple[MachineGroup, ...]:
        return check_phases(machines)

    @model_validator(mode="after")
    def _profiles_exist(self) -> Self:
        for hardware in sorted({self.baseline, *(group.hardware for group in self.machines)}):
            try:
                cached_profile(self.model, hardware, self.tensor_parallel)
            except SplitgymError as error:
                raise ValueError(str(error)) from None
        self.faults.check_machines(self.build(self.machines).num_machines)  # raises for what cannot be
        return self

    def build(self, groups: tuple[MachineGroup, ...], model: str | None = None) -> Cluster:
        """The cluster of these machines, with the default SLO.

        Raises:
            SplitgymError: for a model without a profile.
            ValueError: for machines that cannot be had.
        """
        baseline = cached_profile(model or self.model, self.baseline, self.tensor_parallel)
        batching = self.batching.build()
        return Cluster(
            machines=build_machines(groups, model or self.model, self.tensor_parallel, batching, self.power.cap_w),
            model=baseline.model,
            baseline=baseline,
            batching=batching,
            transfer=Transfer(**self.transfer.model_dump()),
            switch_s=self.switch_s,
            frontend_s=self.frontend_s,
            first_token=self.first_token,
            token_choice=self.token_choice,
            migrate=self.migrate,
            admission=self.admission,
        )


class EpisodeCard(_Strict):
    """When an episode begins to count and when it ends: at ``horizon_s`` or with the last of ``arrivals``."""

    warmup_s: Annotated[NonNegativeFloat, FiniteFloat] = 0.0
    horizon_s: Annotated[PositiveFloat, FiniteFloat] | None = None  # of the whole run, warm-up included
    arrivals: PositiveInt | None = None  # after warm-up
    drain_s: NonNegativeFloat = 300.0
    tick_s: Annotated[PositiveFloat, FiniteFloat] = 5.0
    offset: Literal["random"] | Annotated[NonNegativeFloat, FiniteFloat] = "random"  # where in the workload it begins

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if (self.horizon_s is None) == (self.arrivals is None):
            raise ValueError("give either horizon_s or arrivals, the one thing that ends an episode")
        if self.horizon_s is not None and self.horizon_s <= self.warmup_s:
            raise ValueError(f"horizon_s {self.horizon_s:g} is not after warmup_s {self.warmup_s:g}; raise it")
        return self


class DefaultsCard(_Strict):
    """What an environment of this card does unless told otherwise; policies are named as everywhere."""

    kind: Kind = "routing"
    reward: str = "slowdown-shaped"
    warmup_policy: str | None = None  # decides during warm-up; the policy under test itself for None
    other: str = "splitwise"  # decides what the kind leaves open

    @field_validator("warmup_policy", "other")
    @classmethod
    def _known_policy(cls, spec: str | None) -> str | None:
        if spec is not None and not any(sign in spec for sign in "/.:"):  # files are looked for when they are used
            try:
                make_policy(spec)
            except SplitgymError as error:
                raise ValueError(str(error)) from None
        return spec


class Card(_Strict):
    """A validated card. `load_card` makes one; ``name`` is its file's."""

    description: str
    cluster: ClusterCard
    workload: WorkloadConfig
    slo: SloCard = SloCard()
    classes: tuple[ClassCard, ...] = ()  # without, slo holds for all requests alike
    telemetry: TelemetryCard | None = None  # reported features are fresh without
    episode: EpisodeCard
    defaults: DefaultsCard = DefaultsCard()

    @field_validator("classes")
    @classmethod
    def _no_twins(cls, classes: tuple[ClassCard, ...]) -> tuple[ClassCard, ...]:
        names = [kind.name for kind in classes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two are called {name!r}; give each a name of its own")
        return classes

    _path: Path = PrivateAttr(default=Path())
    _shown: str = PrivateAttr(default="card")

    @property
    def name(self) -> str:
        """``SplitwiseHH`` for ``envs/SplitwiseHH.yaml``."""
        return self._path.stem

    @property
    def folder(self) -> Path:
        """Where the card lies, from which its relative paths are taken."""
        return self._path.parent

    @cached_property
    def default_cluster(self) -> Cluster:
        """The cluster as the card describes it."""
        return self.build_cluster()

    def build_cluster(self, machines: str | None = None, model: str | None = None) -> Cluster:
        """The cluster, with other machines (as in `parse_machines`) or another model than the card's.

        Raises:
            SplitgymError: for machines that cannot be had, or a model without a profile.
        """
        groups = self.cluster.machines if machines is None else parse_machines(machines)
        telemetry = None if self.telemetry is None else self.telemetry.build()
        classes = tuple(kind.build() for kind in self.classes)
        built = self.cluster.build(groups, model)
        return replace(built, slo=self.slo.build(), telemetry=telemetry, classes=classes)

    def scenario(
        self,
        seed: int,
        split: str = "test",
        *,
        rate_rps: float | None = None,
        horizon_s: float | None = None,
        requests: Requests | None = None,
        machines: str | None = None,
        model: str | None = None,
    ) -> Scenario:
        """One run of this card.

        Args:
            seed: of everything random, ≥ 0.
            split: ``train``, ``val`` or ``test``; no draw of one is a draw of another.
            rate_rps: mean arrival rate in place of the workload's.
            horizon_s: end of the run in place of the card's, warm-up included.
            requests: what arrives instead of the workload; the run then has no warm-up and lasts until all
                are done, and ``rate_rps`` compresses or stretches the time between them.
            machines: other machines, as in `parse_machines`.
            model: another model.

        Raises:
            SplitgymError: for a rate or horizon that is out of range, a trace that cannot be read, machines
                or a model that cannot be had.
        """
        if rate_rps is not None and not 0 < rate_rps < float("inf"):
            raise SplitgymError(f"rate: {rate_rps:g} requests per second; give a number above 0")
        episode = self.episode
        plain = machines is None and model is None
        cluster = self.default_cluster if plain else self.build_cluster(machines, model)
        streams = Streams(seed, split)
        if requests is not None:
            requests = self.workload.predict_again(streams, requests)
            if self.classes:
                requests = with_classes(self.classes, requests, streams, self.workload.prediction, None)
            given = _at_rate(requests, rate_rps)
            return Scenario(
                cluster,
                given,
                tick_s=episode.tick_s,
                seed=streams.key("decisions"),
                faults=self._faults(streams, cluster, float(given.arrival_s.max(initial=0.0)) + FOLLOWED_S),
            )
        if horizon_s is not None and not episode.warmup_s < horizon_s < float("inf"):
            raise SplitgymError(f"horizon: {horizon_s:g} s; give more than the warm-up's {episode.warmup_s:g} s")
        end_s = horizon_s or episode.horizon_s
        try:
            drawn = self._draw(streams, rate_rps, end_s)
            if self.classes:
                drawn = with_classes(self.classes, drawn, streams, self.workload.prediction, self.folder)
        except SplitgymError as error:
            raise SplitgymError(f"{self._shown}: {error}") from None
        last_s = float(drawn.arrival_s[-1]) if end_s is None else end_s
        return Scenario(
            cluster=cluster,
            requests=drawn,
            warmup_s=episode.warmup_s,
            horizon_s=last_s,
            drain_s=episode.drain_s,
            tick_s=episode.tick_s,
            seed=streams.key("decisions"),
            faults=self._faults(streams, cluster, last_s),
        )

    def _faults(self, streams: Streams, cluster: Cluster, until_s: float) -> Faults:
        try:
            return self.cluster.faults.plan(streams, cluster.num_machines, until_s)
        except SplitgymError as error:
            raise SplitgymError(f"{self._shown}: {error}") from None

    def _draw(self, streams: Streams, rate_rps: float | None, end_s: float | None) -> Requests:
        def draw(duration_s: float | None, num_requests: int | None = None) -> Requests:
            return self.workload.draw(
                streams,
                duration_s=duration_s,
                num_requests=num_requests,
                rate_rps=rate_rps,
                offset=self.episode.offset,
                base_dir=self.folder,
            )

        if end_s is not None:
            return draw(end_s)
        warmup_s, arrivals = self.episode.warmup_s, self.episode.arrivals
        assert arrivals is not None
        uncounted = len(draw(warmup_s)) if warmup_s > 0 else 0  # a longer draw begins as a shorter one
        return draw(None, uncounted + arrivals)


def load_card(name_or_path: str | Path) -> Card:
    """A shipped card by its name, in any case, or any card by its path.

    Raises:
        SplitgymError: if there is none, or for each mistake in it, in one line.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return read_card(Path(name_or_path))
    names = {name.lower(): name for name in list_cards()}
    if text.lower() not in names:
        raise SplitgymError(f"no card {text!r}{did_you_mean(text, names.values())}")
    name = names[text.lower()]
    return read_card(shipped_folder("envs") / f"{name}.yaml", shown=f"envs/{name}.yaml")


def read_card(path: Path, *, shown: str | None = None) -> Card:
    """The card in the file at ``path``; messages call it ``shown``.

    Raises:
        SplitgymError: see `load_card`.
    """
    card = read_model(path, Card, shown=shown, base_key=BASE_KEY)
    card._path = path
    card._shown = shown or str(path)
    return card


def list_cards() -> list[str]:
    """The names of the shipped cards, which are those of their files."""
    return sorted(path.stem for path in shipped_folder("envs").glob("*.yaml"))


def _at_rate(requests: Requests, rate_rps: float | None) -> Requests:
    if rate_rps is None or len(requests) < 2:
        return requests
    span_s = float(requests.arrival_s[-1] - requests.arrival_s[0])
    if span_s == 0:
        raise SplitgymError("rate: all requests of the trace arrive at once; leave the rate out")
    scale = (len(requests) - 1) / span_s / rate_rps
    return replace(requests, arrival_s=(requests.arrival_s - requests.arrival_s[0]) * scale)
