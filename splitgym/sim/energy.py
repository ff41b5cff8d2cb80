"""What an iteration's energy is spent on, for both engines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitgym.hardware.latency import iteration_s, power_w
from splitgym.jit import lean_njit

FloatArray = npt.NDArray[np.float64]


@lean_njit
def iteration_energy_j(
    law_row: FloatArray, duration_s: float, prompt_tokens: int, decodes: int, decode_context: int
) -> tuple[float, float]:
    """What the prompt phase and the token phase take of an iteration's energy, idling included.

    Of a mixed iteration the token phase has what its decodes would have taken alone; the prompts, which came on top,
    have the rest.

    Args:
        law_row: (LAW_SIZE,) of the machine.
        duration_s: how long the iteration takes.
        prompt_tokens: as for `iteration_s`, and so on.
        decodes: likewise.
        decode_context: likewise.
    """
    energy_j = duration_s * power_w(law_row, prompt_tokens, decodes)
    if prompt_tokens == 0:
        return 0.0, energy_j
    if decodes == 0:
        return energy_j, 0.0
    alone_j = iteration_s(law_row, 0, 0, 0, 0, decodes, decode_context) * power_w(law_row, 0, decodes)
    token_j = min(alone_j, energy_j)
    return energy_j - token_j, token_j
