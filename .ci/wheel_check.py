"""Run where only the wheel is installed: imports, lists, makes and simulates what ships."""

import importlib.util
import json
import subprocess
import sys

import gymnasium

import splitgym  # noqa: F401


def seconds_to_import() -> float:
    """Time of `import splitgym` in a fresh interpreter, compiled files present; the best of three."""
    code = "import time; t = time.perf_counter(); import splitgym; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-P", "-c", code])) for _ in range(3))


assert importlib.util.find_spec("torch") is None, "torch came along with the core dependencies"
import_s = seconds_to_import()
assert import_s < 1.0, f"import splitgym takes {import_s:.2f} s"

listed = {}
for what in ("envs", "policies", "hardware", "traces"):
    listed[what] = json.loads(subprocess.check_output(["splitgym", "list", what, "--json"]))
    assert listed[what], f"splitgym list {what}: nothing"

ids = [name for name in gymnasium.registry if name.startswith("splitgym/") and name != "splitgym/Cluster-v0"]
cards = {card["name"] for card in listed["envs"]}
assert {name.split("/")[1].rsplit("-", 2)[0] for name in ids} == cards, (sorted(ids), sorted(cards))
for name in ids:
    env = gymnasium.make(name)
    env.reset(seed=0)
    env.close()

subprocess.run(["splitgym", "simulate", "Toy", "--out", "out"], check=True, stdout=subprocess.DEVNULL)
trained = subprocess.run(["splitgym", "train", "Toy", "--out", "run"], capture_output=True, text=True, check=False)
assert (trained.returncode, trained.stderr.count("\n")) == (2, 1), trained.stderr
assert "pip install 'splitgym[learn]'" in trained.stderr, trained.stderr
print(f"wheel-check: import {import_s:.2f} s; {len(ids)} environments of {len(cards)} cards made from the wheel alone")
