"""``golden.npz``: views with the scores, draws and decisions that the policy had for them when it was exported.

A bundle replays them when it is loaded: equal decisions, scores within 1e-4. Views are rounded to float32, which
halves the file; the policy was asked about the rounded ones.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from splitgym.errors import SplitgymError
from splitgym.export.container import GOLDEN, LARGEST_BYTES
from splitgym.features import NUM_CLUSTER_FEATURES, NUM_MACHINE_FEATURES, NUM_REQUEST_FEATURES
from splitgym.view import ClusterView, Decision

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NUM_VIEWS = 256

_FLOATS = ("time_s", "machines", "request", "cluster", "draws", "scores")


@dataclass(frozen=True)
class Golden:
    """n views of one cluster of M machines, in the order in which the policy was asked, and its answers."""

    seed: IntArray  # (1,) of the run, for a policy that draws itself
    roles: IntArray  # (M,) the machines' homes
    hardware: IntArray  # (M,) number of the hardware type, in the order in which machines bring them
    kind: IntArray  # (n,)
    time_s: FloatArray  # (n,)
    machines: Float32Array  # (n, M, NUM_MACHINE_FEATURES)
    request: Float32Array  # (n, NUM_REQUEST_FEATURES)
    cluster: Float32Array  # (n, NUM_CLUSTER_FEATURES)
    prompt_mask: BoolArray  # (n, M)
    token_mask: BoolArray  # (n, M)
    role_mask: BoolArray  # (n, M, 3)
    suggested: IntArray  # (n, 2) machines that the other policy names
    draws: FloatArray  # (n, number of heads) uniform; used where the policy samples
    scores: Float32Array  # (n, number of scores)
    chosen: IntArray  # (n, 2) machines decided for, -1 for none
    new_roles: IntArray  # (n, M), -1 for unchanged

    def __len__(self) -> int:
        return len(self.kind)

    def view(self, number: int) -> ClusterView:
        """A view in fresh arrays."""
        return ClusterView(
            int(self.kind[number]),
            float(self.time_s[number]),
            self.machines[number].astype(np.float64),
            self.request[number].astype(np.float64),
            self.cluster[number].astype(np.float64),
            self.prompt_mask[number].copy(),
            self.token_mask[number].copy(),
            self.role_mask[number].copy(),
        )

    def suggestion(self, number: int) -> Decision:
        """What the other policy said."""
        prompt_machine, token_machine = self.suggested[number]
        return Decision(int(prompt_machine), int(token_machine))

    def decision(self, number: int) -> Decision:
        """What the policy decided."""
        prompt_machine, token_machine = self.chosen[number]
        return Decision(int(prompt_machine), int(token_machine), changes_of(self.new_roles[number]))

    def to_bytes(self) -> bytes:
        """``golden.npz``; equal contents give equal bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **asdict(self))
        return buffer.getvalue()

    @classmethod
    def of(cls, content: bytes, place: str) -> Golden:
        """Read ``golden.npz``.

        Raises:
            SplitgymError: if it is not of that form.
        """
        names = [part.name for part in fields(cls)]
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = archive.infolist()
                if sum(member.file_size for member in members) > LARGEST_BYTES:
                    raise ValueError(f"unpacks to more than {LARGEST_BYTES} bytes")
                if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in names):
                    raise ValueError("other arrays than a bundle's")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                golden = cls(**{name: arrays[name] for name in names})
            golden._check()
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, TypeError, EOFError, MemoryError) as error:
            raise SplitgymError(f"{place}: {GOLDEN}: {' '.join(str(error).split())}; export it again") from None
        return golden

    def _check(self) -> None:
        count, machines = len(self.kind), len(self.roles)
        shapes = {
            "seed": (1,),
            "roles": (machines,),
            "hardware": (machines,),
            "kind": (count,),
            "time_s": (count,),
            "machines": (count, machines, NUM_MACHINE_FEATURES),
            "request": (count, NUM_REQUEST_FEATURES),
            "cluster": (count, NUM_CLUSTER_FEATURES),
            "prompt_mask": (count, machines),
            "token_mask": (count, machines),
            "role_mask": (count, machines, 3),
            "suggested": (count, 2),
            "draws": (count, *self.draws.shape[1:2]),
            "scores": (count, *self.scores.shape[1:2]),
            "chosen": (count, 2),
            "new_roles": (count, machines),
        }
        if count < NUM_VIEWS or machines == 0:
            raise ValueError(f"{count} views of {machines} machines; a bundle has {NUM_VIEWS}, of one machine or more")
        for name, shape in shapes.items():
            values = getattr(self, name)
            kind = "f" if name in _FLOATS else "b" if name.endswith("_mask") else "i"
            if values.shape != shape or values.dtype.kind != kind:
                raise ValueError(f"{name} is {values.dtype} {values.shape}, not {kind} {shape}")


def changes_of(new_roles: IntArray) -> tuple[tuple[int, int], ...]:
    """(machine, role) for each machine whose new role is not -1."""
    return tuple((int(machine), int(new_roles[machine])) for machine in np.flatnonzero(new_roles >= 0))


def mismatch(place: str, number: int, decided: Decision, meant: Decision) -> SplitgymError:
    """The error for a golden decision that came out otherwise."""
    return SplitgymError(
        f"{place}: {GOLDEN}: view {number}: decided {_text(decided)}, was {_text(meant)} at export; "
        "do not serve with it: export the policy again with this version"
    )


def stacked(decisions: Sequence[Decision], num_machines: int) -> tuple[IntArray, IntArray]:
    """`Golden.chosen` and `Golden.new_roles`."""
    chosen = np.array([(decision.prompt_machine, decision.token_machine) for decision in decisions])
    new_roles = np.full((len(decisions), num_machines), -1)
    for number, decision in enumerate(decisions):
        for machine, role in decision.role_changes:
            new_roles[number, machine] = role
    return chosen, new_roles


def _text(decision: Decision) -> str:
    changes = "".join(f" {machine}:{role}" for machine, role in decision.role_changes)
    return f"({decision.prompt_machine}, {decision.token_machine}){changes}"
