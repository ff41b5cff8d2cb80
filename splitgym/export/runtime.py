"""The runtime: a bundle's network, asked about views. It needs numpy and onnxruntime, and nothing else.

bundle = Bundle.load("bundle.zip")
decision = bundle.decide(view, draws=random.random(bundle.num_draws))
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from splitgym.errors import SplitgymError
from splitgym.export.actions import Decoder, Draws
from splitgym.export.container import GOLDEN, NETWORK, Files, read_files
from splitgym.export.golden import Golden, mismatch
from splitgym.export.manifest import TOLERANCE, Manifest, Network
from splitgym.export.observation import INPUTS, observe
from splitgym.view import ClusterView, Decision

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_SCORES = "scores"


class Bundle:
    """A network that has been checked, ready to decide. It remembers nothing: threads may share it.

    Attributes:
        manifest: what the bundle says of itself.
        num_draws: uniform numbers that a decision takes; 0 where the best-scored choice is taken.
    """

    def __init__(self, files: Files, place: str) -> None:
        """Check the files of a bundle and replay its golden views.

        Raises:
            SplitgymError: if one is damaged, of another version, or decides otherwise than when it was exported.
        """
        self.manifest = Manifest.of(files, place)
        if self.manifest.network is None:
            name = "" if self.manifest.heuristic is None else self.manifest.heuristic.text
            raise SplitgymError(f"{place}: holds the heuristic {name!r}, no network; splitgym.export.bundle_policy")
        self.network: Network = self.manifest.network
        self._decoder = Decoder(self.network.form)
        self._samples = self.network.decision == "sample"
        self.num_draws = self._decoder.num_heads if self._samples else 0
        for name in (NETWORK, GOLDEN):
            if name not in files:
                raise SplitgymError(f"{place}: {name}: missing; export the policy again")
        self._session = _session(files[NETWORK], place)
        self._replay(Golden.of(files[GOLDEN], place), place)

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle, a zip or a directory.

        Raises:
            SplitgymError: if there is none, or it is refused: see `Bundle`.
        """
        return cls(read_files(Path(path)), str(path))

    def decide(
        self,
        view: ClusterView,
        draws: Draws = (),
        suggested: Decision | None = None,
        hardware: IntArray | None = None,
    ) -> Decision:
        """The network's decision; what is not its part stays as ``suggested``.

        Args:
            view: what is known.
            draws: (num_draws,) uniform in [0, 1), one for each head.
            suggested: what the other policy of `Manifest.other` says; nothing for ``None``.
            hardware: (num_machines,) the number of each machine's hardware type, in the order in which machines bring
                them; needed by ``pool_role`` alone.

        Raises:
            SplitgymError: if the cluster is too large or small, or draws or hardware do not fit.
        """
        return self._answer(view, draws, suggested or Decision(), hardware)[0]

    def decide_with_propensity(
        self, view: ClusterView, draws: Draws, suggested: Decision, hardware: IntArray | None
    ) -> tuple[Decision, float | None]:
        """`decide`, and the probability with which the network chooses so; ``None`` where it does not draw.

        Raises:
            SplitgymError: as `decide`.
        """
        decision, _, propensity = self._answer(view, draws, suggested, hardware)
        return decision, propensity

    def scores(self, view: ClusterView) -> Float32Array:
        """(num_scores,) the network's scores, head after head, of what is not permitted, too."""
        try:
            scores: Float32Array = self._session.run([_SCORES], observe(view, self._rows(view)))[0]
        except Exception as error:  # onnxruntime has an exception of its own for everything
            raise SplitgymError(f"policy {self.manifest.name!r}: its network fails: {_first_line(error)}") from error
        return scores

    def _answer(
        self,
        view: ClusterView,
        draws: Draws,
        suggested: Decision,
        hardware: IntArray | None,
    ) -> tuple[Decision, Float32Array | None, float | None]:
        self.manifest.check_size(view.num_machines)
        if not self._decoder.is_due(view):
            return suggested, None, None
        if self._samples and len(draws) != self.num_draws:
            raise SplitgymError(f"policy {self.manifest.name!r}: {len(draws)} draws; it takes {self.num_draws}")
        types = np.zeros(view.num_machines, np.int64) if hardware is None else hardware
        masks = self._decoder.masks(view, self._rows(view), types)
        scores = self.scores(view)
        if len(scores) != sum(map(len, masks)):
            choices = f"{sum(map(len, masks))} choices, its network scores {len(scores)}"
            raise SplitgymError(f"policy {self.manifest.name!r}: {choices}; it knows other hardware types")
        choice = self._decoder.choose(scores, masks, draws if self._samples else None)
        propensity = self._decoder.probability(scores, masks, choice) if self._samples else None
        return self._decoder.decision(choice, view, suggested, types), scores, propensity

    def _rows(self, view: ClusterView) -> int:
        return self.network.rows or view.num_machines

    def _replay(self, golden: Golden, place: str) -> None:
        for number in range(len(golden)):
            draws = golden.draws[number] if self._samples else ()
            suggested = golden.suggestion(number)
            try:
                decision, scores, _ = self._answer(golden.view(number), draws, suggested, golden.hardware)
            except (SplitgymError, IndexError, ValueError) as error:
                raise SplitgymError(f"{place}: {GOLDEN}: view {number}: {error}") from None
            meant = golden.scores[number]
            if scores is None or scores.shape != meant.shape or not np.abs(scores - meant).max() <= TOLERANCE:
                raise SplitgymError(
                    f"{place}: {GOLDEN}: view {number}: scores differ by more than {TOLERANCE:g} from those at export; "
                    "do not serve with it: export the policy again with this version"
                )
            if decision != golden.decision(number):
                raise mismatch(place, number, decision, golden.decision(number))


def _session(content: bytes, place: str) -> Any:
    """The network, on one thread."""
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise SplitgymError(f"{place}: {error}; needs pip install 'splitgym[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = {value.name for value in session.get_inputs()}, {value.name for value in session.get_outputs()}
    except Exception as error:
        raise SplitgymError(f"{place}: {NETWORK}: {_first_line(error)}; export the policy again") from None
    if names != (set(INPUTS), {_SCORES}):
        raise SplitgymError(f"{place}: {NETWORK}: other inputs than {', '.join(INPUTS)}; export the policy again")
    return session


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
