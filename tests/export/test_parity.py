"""A bundle decides as its run does: on golden views, against torch, and over whole simulations."""

from __future__ import annotations

import io
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from splitgym.cards import load_card
from splitgym.errors import SplitgymError
from splitgym.export import Bundle, bundle_policy, export_policy
from splitgym.export.container import GOLDEN, read_files
from splitgym.export.golden import NUM_VIEWS, Golden
from splitgym.export.observation import INPUTS, observe
from splitgym.learn import load, load_policy
from splitgym.learn.agents import network_of
from splitgym.policies import BUILTINS, CompiledPolicy, make_policy
from splitgym.sim.run import run
from splitgym.view import ARRIVAL, TICK
from tests.export.conftest import RUNS, Bundles, Runs

MODES = ("argmax", "sample")


def golden_of(path: Path) -> Golden:
    return Golden.of(read_files(path)[GOLDEN], str(path))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RUNS)
def test_golden_scores_are_torchs_and_decisions_are_repeated(
    name: str, mode: str, run_of: Runs, bundle_of: Bundles
) -> None:
    """Torch's network, NumPy's (which wrote the golden scores) and ONNX's agree within 1e-4 on all views."""
    bundle, golden = Bundle.load(bundle_of(name, mode)), golden_of(bundle_of(name, mode))
    settings = RUNS[name]
    card = settings["card"]
    kind = settings.get("kind", "routing").capitalize()
    environment = gymnasium.make(f"splitgym/{card}-{kind}-v0", **settings.get("environment", {}))
    network = network_of(load(run_of(name), environment))
    assert len(golden) == NUM_VIEWS
    rows = environment.observation_space["machines"].shape[0]  # type: ignore[index]
    seen = [observe(golden.view(number), rows) for number in range(NUM_VIEWS)]
    with torch.no_grad():
        batch = {key: torch.from_numpy(np.stack([one[key] for one in seen])) for key in INPUTS}
        of_torch = network.scores(batch).numpy()
    np.testing.assert_allclose(golden.scores, of_torch, atol=1e-4, rtol=0)
    for number in range(NUM_VIEWS):
        view = golden.view(number)
        np.testing.assert_allclose(bundle.scores(view), of_torch[number], atol=1e-4, rtol=0)
        draws = golden.draws[number] if mode == "sample" else ()
        decision = bundle.decide(view, draws, golden.suggestion(number), golden.hardware)
        assert decision == golden.decision(number)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RUNS)
def test_a_simulation_with_the_bundle_is_that_with_the_run(
    name: str, mode: str, run_of: Runs, bundle_of: Bundles
) -> None:
    card = load_card(RUNS[name]["card"])
    scenario = card.scenario(11, horizon_s=None if card.name == "Toy" else 60.0)
    with_run = run(scenario, load_policy(run_of(name), mode))  # type: ignore[arg-type]
    with_bundle = run(scenario, bundle_policy(bundle_of(name, mode)))
    np.testing.assert_array_equal(with_run.rows.prompt_machine, with_bundle.rows.prompt_machine)
    np.testing.assert_array_equal(with_run.rows.token_machine, with_bundle.rows.token_machine)
    assert with_run.meters == with_bundle.meters


def test_another_cluster_is_served_as_by_the_run(run_of: Runs, bundle_of: Bundles) -> None:
    """Trained on 8 machines, asked about 40: the machine axis is free."""
    scenario = load_card("SplitwiseHH").scenario(0, horizon_s=21.0)
    rows = [
        run(scenario, policy).rows
        for policy in (load_policy(run_of("routing"), "sample"), make_policy(str(bundle_of("routing", "sample"))))
    ]
    np.testing.assert_array_equal(rows[0].prompt_machine, rows[1].prompt_machine)
    np.testing.assert_array_equal(rows[0].token_machine, rows[1].token_machine)
    assert len(np.unique(rows[0].prompt_machine)) > 10


def test_golden_views_are_of_the_kinds_that_are_decided(bundle_of: Bundles) -> None:
    kinds = {name: set(golden_of(bundle_of(name, "sample")).kind) for name in ("routing", "repurposing", "joint")}
    assert kinds == {"routing": {ARRIVAL}, "repurposing": {TICK}, "joint": {ARRIVAL, TICK}}


def test_equal_runs_give_equal_bytes(run_of: Runs, bundle_of: Bundles, tmp_path: Path) -> None:
    export_policy(run_of("routing"), tmp_path / "again.zip", decision="sample")
    assert (tmp_path / "again.zip").read_bytes() == bundle_of("routing", "sample").read_bytes()
    export_policy("splitwise", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == bundle_of("splitwise").read_bytes()


def test_a_directory_is_as_good_as_a_zip(run_of: Runs, bundle_of: Bundles, tmp_path: Path) -> None:
    export_policy(run_of("routing"), tmp_path / "bundle", decision="sample")
    assert read_files(tmp_path / "bundle") == read_files(bundle_of("routing", "sample"))
    assert make_policy(str(tmp_path / "bundle")).name == "routing"


def test_no_file_is_a_pickle(bundle_of: Bundles) -> None:
    files = read_files(bundle_of("routing", "sample"))
    json.loads(files["manifest.json"])
    with np.load(io.BytesIO(files[GOLDEN]), allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_every_heuristic_comes_back_as_it_was(name: str, bundle_of: Bundles) -> None:
    scenario = load_card("Quickstart").scenario(5, horizon_s=40.0)
    rows = [run(scenario, policy).rows for policy in (make_policy(name), make_policy(str(bundle_of(name))))]
    np.testing.assert_array_equal(rows[0].prompt_machine, rows[1].prompt_machine)
    np.testing.assert_array_equal(rows[0].token_machine, rows[1].token_machine)


def test_parameters_and_both_halves_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "tuned.zip"
    manifest = export_policy("size-interval", path, params={"cutoff_tokens": 77})
    assert manifest.heuristic is not None and manifest.heuristic.routing.params == {"cutoff_tokens": 77.0}
    policy = make_policy(str(path))
    assert isinstance(policy, CompiledPolicy) and policy.params == {"cutoff_tokens": 77.0}
    export_policy("splitwise", path)
    policy = make_policy(str(path))
    assert isinstance(policy, CompiledPolicy) and policy.params["tbt_slowdown"] == float("inf")
    export_policy("random+threshold", path)
    assert make_policy(str(path)).name == "random+threshold"


def test_what_cannot_be_exported_is_told(run_of: Runs, bundle_of: Bundles, tmp_path: Path) -> None:
    out = tmp_path / "x.zip"
    for spec, arguments, message in (
        ("oracle-length", {}, "neither a trained run nor made of built-in heuristics"),
        (bundle_of("splitwise"), {}, "is a bundle already"),
        (run_of("routing"), {"fallback": "oracle-length"}, "fallback: 'oracle-length'"),
        (run_of("routing"), {"params": {"x": 1.0}}, "is a trained run and has none"),
        (run_of("joint"), {"other": "splitwise"}, "leaves nothing to decide"),
        (run_of("mlp"), {"largest_cluster": 4}, "knows 8 only"),
        (run_of("mlp"), {"card": "Toy"}, "trained on 8 machines, here are 2"),
        (run_of("routing"), {"largest_cluster": 0}, "give 1 to 10000"),
        (run_of("routing"), {"decision": "guess"}, "one of: argmax, sample"),
        ("splitwise", {"decision": "argmax"}, "is no trained run"),
        ("random+static", {"params": {"x": 1.0}}, "not one heuristic"),
        ("splitwise", {"params": {"tbt_slowdwn": 1.0}}, "did you mean 'tbt_slowdown'"),
    ):
        with pytest.raises(SplitgymError, match=message):
            export_policy(spec, out, **arguments)  # type: ignore[arg-type]
    assert not out.exists()


def test_a_run_beside_another_run_needs_a_heuristic(run_of: Runs, tmp_path: Path) -> None:
    text = (run_of("repurposing") / "run.yaml").read_text()
    run_folder = tmp_path / "paired"
    run_folder.mkdir()
    (run_folder / "run.yaml").write_text(text.replace("other: static", f"other: {run_of('routing')}"))
    (run_folder / "policy.npz").write_bytes((run_of("repurposing") / "policy.npz").read_bytes())
    with pytest.raises(SplitgymError, match="name a heuristic in its place with other"):
        export_policy(run_folder, tmp_path / "x.zip")
    manifest = export_policy(run_folder, tmp_path / "x.zip", other="lmetric")
    assert manifest.other is not None and manifest.other.text == "lmetric"
