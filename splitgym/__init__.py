"""splitgym: learning to schedule LLM inference on phase-split clusters."""

__version__ = "0.1.0"

try:
    from splitgym.registration import register_envs
except ModuleNotFoundError as error:
    if error.name != "gymnasium":  # a bundle's runtime does without
        raise
else:
    register_envs()
