"""The runtime: equal to what training used, quick, and content with numpy and onnxruntime."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym import features
from splitgym.envs import actions as compiled
from splitgym.envs.observations import Observer
from splitgym.errors import SplitgymError
from splitgym.export import Bundle, actions, bundle_policy, observation
from splitgym.export.policy import hardware_of
from splitgym.machines import cached_profile
from splitgym.policies import make_policy
from splitgym.sim.cluster import Cluster
from splitgym.view import ARRIVAL, PROMPT_END, TICK, ClusterView, Decision
from tests.export.conftest import Bundles
from tests.policies.views import view
from tests.sim.build import cluster

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = (
    "gymnasium torch numba stable_baselines3 sb3_contrib pydantic yaml pyarrow scipy simpy typer rich onnx matplotlib"
)


def crowd(count: int, seed: int, kind: int = ARRIVAL) -> ClusterView:
    """A view of ``count`` machines in drawn roles, all numbers drawn, some masked."""
    rng = np.random.default_rng(seed)
    roles = "".join(rng.choice(list("ptm"), count)) if count > 1 else "m"
    seen = view(roles, kind=kind)
    scales = np.array([feature.scale for feature in features.MACHINE_FEATURES[7:]])
    seen.machines[:, 7:] = rng.exponential(1.0, (count, len(scales))) * scales * (rng.random(len(scales)) < 0.8)
    seen.machines[0, 10] = -1e-12  # sums of predicted lengths may end a rounding below 0
    seen.request[:] = rng.exponential([2000, 300, 0.1, 0.04, 0.5, 0.08])
    seen.cluster[:] = rng.exponential(1e4, features.NUM_CLUSTER_FEATURES)
    for mask in (seen.prompt_mask, seen.token_mask, seen.role_mask):
        mask &= rng.random(mask.shape) < 0.8
    return seen


def two_kinds(count: int, seed: int) -> Cluster:
    """Machines of two hardware types, mixed up."""
    plain, other = cluster("m" * count), cached_profile("llama2-70b", "a100-80gb", 8)
    rng = np.random.default_rng(seed)
    machines = (dataclasses.replace(m, profile=other) if rng.random() < 0.5 else m for m in plain.machines)
    return dataclasses.replace(plain, machines=tuple(machines))


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 12),
    more=st.integers(0, 3),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from([ARRIVAL, PROMPT_END, TICK]),
)
def test_views_are_seen_as_in_training(count: int, more: int, seed: int, kind: int) -> None:
    """Equal to the last bit: the same operations in the same order."""
    seen = crowd(count, seed, kind)
    meant = Observer(count, count + more).observe(seen)
    found = observation.observe(seen, count + more)
    assert tuple(found) == observation.INPUTS == tuple(meant)
    for name, values in meant.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(
    form=st.sampled_from(range(len(actions.FORMS))),
    count=st.integers(1, 9),
    more=st.integers(0, 2),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from([ARRIVAL, TICK]),
)
def test_masks_and_decisions_are_as_in_training(form: int, count: int, more: int, seed: int, kind: int) -> None:
    homes, seen = two_kinds(count, seed), crowd(count, seed, kind)
    meant = compiled.Actions(form, homes, count + more)
    decoder, hardware = actions.Decoder(actions.FORMS[form]), hardware_of(homes)
    masks = decoder.masks(seen, count + more, hardware)
    for found, mask in zip(masks, meant.masks(seen), strict=True):
        np.testing.assert_array_equal(found, mask)
    if not decoder.is_due(seen):
        return
    rng = np.random.default_rng(seed)
    choice = [int(rng.choice(np.flatnonzero(mask))) if mask.any() else 0 for mask in masks]
    suggested = Decision(0, count - 1)
    decision = decoder.decision(choice, seen, suggested, hardware)
    assert decision == meant.decision(np.array(choice), seen, suggested)


def test_samples_follow_the_softmax() -> None:
    """20,000 evenly spaced draws hit each choice in proportion, within one draw."""
    scores, mask = np.log(np.array([1, 2, 3, 94], np.float32)), np.array([True, True, True, False])
    chosen = [actions.choose(scores, mask, (i + 0.5) / 20_000) for i in range(20_000)]
    np.testing.assert_allclose(np.bincount(chosen), 20_000 * np.array([1, 2, 3]) / 6, atol=1.001)


def test_the_table_of_features_has_a_hash_of_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = observation.table_digest()
    first = features.MACHINE_FEATURES[0]
    for change, differs in (({"text": "other words"}, False), ({"scale": 2.0}, True), ({"unit": "s"}, True)):
        changed = (dataclasses.replace(first, **change), *features.MACHINE_FEATURES[1:])  # type: ignore[arg-type]
        monkeypatch.setitem(observation._GROUPS, "machines", changed)
        assert (observation.table_digest() != before) is differs


@pytest.mark.parametrize("name", ["routing", "mlp"])
def test_a_decision_takes_less_than_a_millisecond(name: str, bundle_of: Bundles) -> None:
    """99 % of 2,000 decisions for 80 machines (the perceptron: its 8), features included; 0.2 ms is usual."""
    bundle = Bundle.load(bundle_of(name, "sample"))
    views = [crowd(80 if name == "routing" else 8, seed) for seed in range(20)]
    took_s = []
    for number in range(2_000):
        began_s = time.thread_time()
        bundle.decide(views[number % 20], (0.3, 0.8))
        took_s.append(time.thread_time() - began_s)
    assert np.quantile(took_s, 0.99) < 1e-3


def test_equal_machines_score_alike(bundle_of: Bundles) -> None:
    """So that argmax has one answer: of equals the first, whatever the cluster's size."""
    bundle = Bundle.load(bundle_of("routing", "argmax"))
    for count in range(1, 41):
        seen = crowd(count, count)
        seen.machines[:] = seen.machines[0]
        scores = bundle.scores(seen)
        assert len(np.unique(scores[:count])) == 1


def test_what_is_not_its_part_stays_as_suggested(bundle_of: Bundles) -> None:
    routing, repurposing = (Bundle.load(bundle_of(name, "argmax")) for name in ("routing", "repurposing"))
    suggested = Decision(1, 2, ((0, 2),))
    assert routing.decide(crowd(8, 0, TICK), suggested=suggested) == suggested
    assert repurposing.decide(crowd(8, 0, ARRIVAL), suggested=suggested) == suggested
    prompt = Bundle.load(bundle_of("prompt", "argmax"))
    assert prompt.decide(crowd(8, 0), suggested=suggested).token_machine == 2


def test_sizes_and_draws_that_do_not_fit_are_told(bundle_of: Bundles) -> None:
    with pytest.raises(SplitgymError, match="is for 8 machines, here are 9"):
        Bundle.load(bundle_of("mlp", "argmax")).decide(crowd(9, 0))
    with pytest.raises(SplitgymError, match="is for 1 to 5 machines, here are 6"):
        Bundle.load(bundle_of("mlp-padded", "argmax")).decide(crowd(6, 0))
    bundle = Bundle.load(bundle_of("routing", "sample"))
    assert bundle.num_draws == 2
    with pytest.raises(SplitgymError, match="0 draws; it takes 2"):
        bundle.decide(crowd(8, 0))
    with pytest.raises(SplitgymError, match="25 choices, its network scores 13; it knows other hardware types"):
        types = np.array([0, 1, 2, 3, 3, 3, 3, 3])
        Bundle.load(bundle_of("pool", "argmax")).decide(crowd(8, 0, TICK), hardware=types)
    with pytest.raises(SplitgymError, match="is for 8 machines, here are 4"):
        bundle_policy(bundle_of("mlp", "sample")).reset(cluster("pptt"), 0)
    assert make_policy(str(bundle_of("mlp-padded", "sample"))).name == "mlp-padded"


def test_numpy_and_onnxruntime_are_enough(bundle_of: Bundles) -> None:
    """In a process in which nothing else of what splitgym stands on can be imported, a bundle loads and decides."""
    script = f"""
import sys
for name in {FORBIDDEN!r}.split():
    sys.modules[name] = None  # import raises ModuleNotFoundError
from splitgym.export.runtime import Bundle
import numpy as np
from splitgym.view import ClusterView
bundle = Bundle.load(sys.argv[1])
ones = np.ones(3, bool)
from splitgym import features as f
sizes = (3, f.NUM_MACHINE_FEATURES), f.NUM_REQUEST_FEATURES, f.NUM_CLUSTER_FEATURES
view = ClusterView(0, 1.0, *map(np.ones, sizes), ones, ones, np.zeros((3, 3), bool))
print(bundle.decide(view, (0.0, 0.999)))
print(sorted(name for name in sys.modules if name.startswith("splitgym")))
"""
    command = [sys.executable, "-c", script, str(bundle_of("routing", "sample"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Decision(prompt_machine=0, token_machine=2" in done.stdout


def test_without_onnxruntime_it_is_told_what_to_install(bundle_of: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SplitgymError, match=r"needs pip install 'splitgym\[export\]'"):
        Bundle.load(bundle_of("routing", "sample"))


def test_the_documentations_example_runs(bundle_of: Bundles) -> None:
    page = (ROOT / "docs" / "export.md").read_text("utf-8")
    example = (
        page.partition("```python\n")[2].partition("```")[0].replace("mine.zip", str(bundle_of("routing", "sample")))
    )
    names: dict[str, object] = {"view": crowd(8, 0)}
    exec(example, names)
    assert isinstance(names["decision"], Decision)
