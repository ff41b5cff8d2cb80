"""splitgym: learning to schedule LLM inference on phase-split clusters."""

__version__ = "0.1.0"
