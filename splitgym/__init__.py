"""splitgym: learning to schedule LLM inference on phase-split clusters."""

from splitgym.registration import register_envs

__version__ = "0.1.0"

register_envs()
