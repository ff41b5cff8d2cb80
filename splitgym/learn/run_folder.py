"""The folder of a training run: what it was trained on, its weights, its checkpoint, its charts."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import yaml

from splitgym.cards import Card
from splitgym.errors import SplitgymError
from splitgym.source import source_commit

Weights = Mapping[str, npt.NDArray[np.float32]]

CONFIG_FILE, WEIGHTS_FILE, CHECKPOINT_FILE, BOARD_FOLDER = "run.yaml", "policy.npz", "checkpoint.pt", "tb"

_PACKAGES = ("splitgym", "numpy", "torch", "stable-baselines3", "sb3-contrib", "gymnasium")


@dataclass(frozen=True)
class RunConfig:
    """What a run was trained on and how; ``run.yaml``.

    Attributes:
        card: name of a shipped card, or path of another.
        card_digest: of what the card says.
        kind: ``routing``, ``repurposing`` or ``joint``.
        algorithm: ``maskable-ppo``, ``ppo`` or ``dqn``.
        network: ``equivariant`` or ``mlp``.
        seed: of the training.
        reward: what was trained on.
        other: the policy of the other half; ``None`` for ``joint``.
        environment: further arguments of the environment.
        num_machines: rows of the observation's machines.
        num_envs: environments side by side.
        reward_scale: multiplied the reward.
        discounting: by ``decision`` or by ``time``.
        settings: of the algorithm.
        versions: of the packages used.
        decision: ``argmax`` or ``sample``, chosen on validation seeds after training.
        decisions_taken: in training.
        validation: mean slowdown on the validation seeds, by kind of decision.
    """

    card: str
    card_digest: str
    kind: str
    algorithm: str
    network: str
    seed: int
    reward: str
    other: str | None
    environment: dict[str, Any]
    num_machines: int
    num_envs: int
    reward_scale: float
    discounting: str
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    decision: str = "sample"
    decisions_taken: int = 0
    validation: dict[str, float] = field(default_factory=dict)


_OUTCOMES = ("versions", "decision", "decisions_taken", "validation")  # may differ when a run is resumed


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie. Every file is replaced as a whole: none is ever half-written."""

    path: Path

    @property
    def board(self) -> Path:
        """TensorBoard's folder."""
        return self.path / BOARD_FOLDER

    @property
    def checkpoint(self) -> Path:
        """What `splitgym.learn.checkpoint` writes."""
        return self.path / CHECKPOINT_FILE

    def write_config(self, config: RunConfig) -> None:
        """Write ``run.yaml``."""
        text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
        write_whole(self.path / CONFIG_FILE, lambda file: file.write(text.encode()))

    def config(self) -> RunConfig:
        """Read ``run.yaml``.

        Raises:
            SplitgymError: if it is missing or not one of ours.
        """
        place = self.path / CONFIG_FILE
        try:
            content = yaml.safe_load(place.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SplitgymError(f"{self.path}: no {CONFIG_FILE} there; give the folder of a training run") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SplitgymError(f"{place}: {' '.join(str(error).split())}; restore the file") from None
        known = {part.name for part in fields(RunConfig)}
        if not isinstance(content, dict) or set(content) != known:
            wrong = sorted(known ^ set(content)) if isinstance(content, dict) else ["everything"]
            raise SplitgymError(f"{place}: {', '.join(map(str, wrong))}: missing or unknown; train the run anew")
        return RunConfig(**content)

    def write_weights(self, weights: Weights) -> None:
        """Write ``policy.npz``."""
        write_whole(self.path / WEIGHTS_FILE, lambda file: np.savez(file, allow_pickle=False, **dict(weights)))

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Read ``policy.npz``, by parameter name.

        Raises:
            SplitgymError: if it is missing or damaged.
        """
        place = self.path / WEIGHTS_FILE
        try:
            with np.load(place, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            raise SplitgymError(f"{place}: missing; train the run to its first checkpoint") from None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise SplitgymError(f"{place}: {' '.join(str(error).split())}; train the run anew") from None


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside ``path``, then put it in its place in one step."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def card_digest(card: Card) -> str:
    """Sixteen hexadecimal digits of what the card says."""
    return hashlib.sha256(card.model_dump_json().encode()).hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Of the packages that training stands on, and the commit of this one's source."""
    versions = {"commit": source_commit()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def check_same(folder: RunFolder, stored: RunConfig, asked: RunConfig) -> None:
    """A run goes on as it began.

    Raises:
        SplitgymError: naming the first thing that differs.
    """
    for part in fields(RunConfig):
        if part.name in _OUTCOMES:
            continue
        before, now = getattr(stored, part.name), getattr(asked, part.name)
        if before == now:
            continue
        if part.name == "card_digest":
            before, now = "another version of the card", f"{asked.card!r} as it is now"
        else:
            before, now = repr(before), repr(now)
        raise SplitgymError(
            f"{folder.path}: {part.name}: the run was trained with {before}, asked for is {now}; "
            "resume it as it began, or give another out"
        )
