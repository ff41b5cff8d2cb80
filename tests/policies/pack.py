"""The README's example of a policy of one's own."""

import numpy as np

from splitgym.policies import BasePolicy


class Pack(BasePolicy):
    """Fill machines up to a number of decodes before the next one is opened; prompts go where they start first."""

    def __init__(self) -> None:
        self.most_decodes = 32

    def route(self, view):
        start_s = np.where(view.prompt_mask, view["pending_prompt_s"], np.inf)
        prompt_machine = int(start_s.argmin())

        decodes = view["decodes"] + view["coming_decodes"]
        open_machines = view.token_mask & (decodes < self.most_decodes)
        if open_machines.any():
            token_machine = int(np.where(open_machines, decodes, -1).argmax())
        else:
            token_machine = int(np.where(view.token_mask, decodes, np.inf).argmin())
        return prompt_machine, token_machine
