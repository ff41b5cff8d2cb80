"""``splitgym export``, and bundles wherever a policy is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from splitgym import __version__
from splitgym.cli import main
from splitgym.export import Manifest
from splitgym.export.container import read_files
from splitgym.learn import NO_EVALUATION, compare, train
from splitgym.source import source_commit
from tests.export.conftest import PPO, Bundles, Runs


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_a_run_is_exported_and_says_how_it_is_used(
    run_of: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "bundle.zip"
    assert cli("export", str(run_of("routing")), "--out", str(out), "--fallback", "lmetric") == 0
    assert f"--policy {out}" in capsys.readouterr().out
    manifest = Manifest.of(read_files(out), str(out))
    assert manifest.fallback.text == "lmetric"
    assert manifest.network is not None and manifest.network.decision == "sample"
    assert manifest.trained["card"] == "Quickstart" and manifest.trained["seed"] == 0
    assert manifest.exported_by == {"splitgym": __version__, "commit": source_commit()}
    assert manifest.trained["versions"]["commit"] == source_commit()
    card = read_files(out)["CARD.md"].decode()
    assert "`lmetric` with `static`" in card and "| algorithm | maskable-ppo |" in card


def test_json_and_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    assert cli("export", "splitwise", "--out", str(out), "--param", "tbt_slowdown=2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"bundle": str(out), "name": "splitwise", "decides": "both", "decision": None}
    manifest = Manifest.of(read_files(out), str(out))
    assert manifest.heuristic is not None and manifest.heuristic.routing.params["tbt_slowdown"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("splitwise", "--param", "x"), "--param: 'x' is not NAME=NUMBER"),
        (("splitwis",), "did you mean 'splitwise'?"),
        (("oracle-length",), "cannot be exported"),
        (("splitwise", "--largest-cluster", "0"), "give 1 to 10000"),
        (("splitwise", "--card", "Nowhere"), "no card 'Nowhere'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("export", *arguments, "--out", str(tmp_path / "x.zip")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "x.zip").exists()


def test_a_bundle_simulates_and_a_damaged_one_is_one_line(
    bundle_of: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle_of("mlp-padded", "sample")
    assert cli("simulate", "Toy", "--policy", str(path), "--out", str(tmp_path / "out"), "--json") == 0
    json.loads(capsys.readouterr().out)
    damaged = tmp_path / "damaged.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    assert cli("simulate", "Toy", "--policy", str(damaged), "--out", str(tmp_path / "other")) == 2
    assert "damaged: its bytes do not match its SHA-256" in capsys.readouterr().err


def test_bundles_compare_with_their_runs(run_of: Runs, bundle_of: Bundles) -> None:
    run, bundle = run_of("mlp-padded"), bundle_of("mlp-padded", "sample")
    comparison = compare("Toy", [f"run={run}", f"bundle={bundle}"], seeds=2)
    for by_policy in comparison.scores.values():
        np.testing.assert_array_equal(by_policy["run"], by_policy["bundle"])
    assert {entrant.name: entrant.kind for entrant in comparison.entrants}["bundle"] == "candidate"


def test_a_bundle_is_the_other_half_of_a_training(bundle_of: Bundles, tmp_path: Path) -> None:
    folder = train(
        "Quickstart",
        "repurposing",
        steps=32,
        out=tmp_path / "run",
        other=str(bundle_of("routing", "sample")),
        num_envs=2,
        settings=PPO,
        evaluation=NO_EVALUATION,
        progress=False,
    )
    assert (folder / "policy.npz").is_file()


def test_the_program_knows_the_command() -> None:
    command = [sys.executable, "-m", "splitgym.cli", "export", "--help"]
    assert "BUNDLE" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
