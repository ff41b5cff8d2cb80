"""Engines that answer like vLLM, timed by the calibrated latency law: for trying a router without GPUs."""

from splitgym.emulator.control import control_app, run_fleet
from splitgym.emulator.fleet import Fleet, Place
from splitgym.emulator.text import chat_prompt, expected_text

__all__ = ["Fleet", "Place", "chat_prompt", "control_app", "expected_text", "run_fleet"]
