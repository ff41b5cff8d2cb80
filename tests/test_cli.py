"""The command line: what it writes, what it prints, and that a mistake is one line and exit code 2."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from splitgym import __version__
from splitgym.cli import main
from splitgym.shipped import shipped_folder

COLUMNS = [
    "request_id",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "prompt_machine",
    "token_machine",
    "prompt_start_s",
    "first_token_s",
    "transfer_end_s",
    "finish_s",
    "ttft_s",
    "tbt_mean_s",
    "tbt_max_s",
    "e2e_s",
    "status",
]
MACHINES = "prompt=2:h100-80gb,token=1:a100-80gb"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Ran:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        code = exit_.value.code
        assert code is None or isinstance(code, int)
        return Ran(code or 0, *self._capsys.readouterr())


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,1\n0.5,900,20\n0.5,300,5\n2,50,3\n")
    return path


# --- simulate ----------------------------------------------------------------------------------------------------


def test_simulate_writes_three_files_and_nothing_else(cli: Cli, tmp_path: Path, trace: Path) -> None:
    out = tmp_path / "out"
    ran = cli("simulate", "Quickstart", "--policy", "lmetric", "--machines", MACHINES, "--trace", trace, "--out", out)
    assert ran.code == 0
    assert "4 requests: 4 completed" in ran.out
    assert sorted(path.name for path in out.iterdir()) == ["requests.parquet", "summary.json", "timeline.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "trace.csv"]
    table = pq.read_table(out / "requests.parquet")
    assert table.column_names == COLUMNS
    assert table["status"].to_pylist() == ["completed"] * 4
    assert table["tbt_mean_s"].to_pylist()[0] is None
    assert set(table["token_machine"].to_pylist()) == {2}
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary)[-1] == "wall_s"
    assert summary["requests"]["completed"] == 4
    assert json.loads((out / "timeline.json").read_text())["traceEvents"]


def test_simulate_prints_json(cli: Cli, tmp_path: Path) -> None:
    ran = cli("simulate", "toy", "--out", tmp_path / "out", "--json", "--seed", 7)
    assert json.loads(ran.out) == json.loads((tmp_path / "out" / "summary.json").read_text())


@pytest.mark.parametrize("setting", ["calibrated", "published"])
def test_classes_are_told_apart(cli: Cli, tmp_path: Path, setting: str) -> None:
    card = tmp_path / "classes.yaml"
    shutil.copy(shipped_folder("envs") / "Quickstart.yaml", tmp_path)
    kinds = "{name: chat, share: 1, slo_s: {ttft: 1, tbt: 0.1}}, {name: bulk, share: 3, slo: {ttft: [9, 30, 60]}}"
    card.write_text(f"extends: Quickstart\nepisode: {{arrivals: 100}}\nclasses: [{kinds}]\n")
    ran = cli("simulate", card, "--setting", setting, "--out", tmp_path / "out")
    assert ran.code == 0
    assert "bulk: TTFT (s)" in ran.out
    assert re.search(r"chat: [0-9.]+% of \d+ requests keep their SLO; goodput", ran.out)
    table = pq.read_table(tmp_path / "out" / "requests.parquet")
    assert set(table["slo_class"].to_pylist()) == {"chat", "bulk"}


def test_same_seed_same_files(cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cli("simulate", "Quickstart", "--policy", "random", "--rate", 5, "--out", tmp_path / name)
    first, second = (pq.read_table(tmp_path / name / "requests.parquet") for name in ("a", "b"))
    assert first.equals(second)


def test_simulate_replaces_its_own_files_and_no_others(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        assert cli("simulate", "Toy", "--out", tmp_path).code == 0
    assert len(list(tmp_path.iterdir())) == 4
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_published_setting(cli: Cli, tmp_path: Path, trace: Path) -> None:
    arguments = ("simulate", "SplitwiseHH", "--trace", trace, "--setting", "published", "--out", tmp_path / "out")
    assert cli(*arguments, "--machines", MACHINES, "--json").code == 0
    assert cli(*arguments, "--machines", "mixed=3:h100-80gb", "--policy", "jsq-tokens").code == 0
    wrong = cli(*arguments, "--policy", "lmetric")
    assert (wrong.code, wrong.err) == (2, "error: policy: unknown 'lmetric'; one of: jsq-tokens, splitwise\n")


def test_migration_and_a_late_choice(cli: Cli, tmp_path: Path) -> None:
    """Overloaded pools change roles; what decides at arrivals alone refuses the card in one line."""
    card = tmp_path / "late.yaml"
    card.write_text(
        "description: Roles change under load.\n"
        "cluster: {model: llama2-70b, token_choice: prompt_end, migrate: true, machines:"
        " [{role: prompt, hardware: h100-80gb, count: 3}, {role: token, hardware: h100-80gb, count: 3}]}\n"
        "workload: {source: synthetic, arrivals: azure-conversation, lengths: azure-conversation, rate_rps: 30}\n"
        "episode: {horizon_s: 40, tick_s: 2}\n"
    )
    ran = cli("simulate", card, "--policy", "jsq-tokens+threshold", "--out", tmp_path / "out")
    assert ran.code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["migrations"] > 0
    assert f"{summary['migrations']} moves of requests" in ran.out
    refused = "decides at arrivals and ticks alone; leave cluster.token_choice: prompt_end out"
    oracle = cli("simulate", card, "--policy", "oracle-length", "--out", tmp_path / "oracle")
    assert (oracle.code, oracle.err) == (2, f"error: policy 'oracle-length' {refused}\n")
    bundle = cli("export", "splitwise", "--card", card, "--out", tmp_path / "bundle.zip")
    assert (bundle.code, bundle.err) == (2, f"error: card 'late': a bundle {refused}\n")


def test_preemptions_are_noted(cli: Cli, tmp_path: Path) -> None:
    """Requests of 84,000 tokens in all on a machine whose cache holds half of them."""
    card, trace = tmp_path / "small.yaml", tmp_path / "trace.csv"
    card.write_text(
        "description: A small machine.\n"
        "cluster: {model: llama3.1-8b, tensor_parallel: 1, baseline: rtx4090, batching: {discipline: vllm},"
        " machines: [{role: mixed, hardware: rtx4090}]}\n"
        "workload: {source: synthetic, arrivals: {process: poisson}, lengths: azure-conversation, rate_rps: 1}\n"
        "episode: {horizon_s: 10}\n"
    )
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + 60 * "0,1000,400\n")
    ran = cli("simulate", card, "--trace", trace, "--out", tmp_path / "out")
    preemptions = json.loads((tmp_path / "out" / "summary.json").read_text())["preemptions"]
    assert preemptions > 0
    assert f"{preemptions} decodes preempted" in ran.out
    assert "kWh by phase: prompt" in ran.out


def test_extrapolation_is_noted(cli: Cli, tmp_path: Path) -> None:
    trace = tmp_path / "long.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100000,2\n")
    ran = cli("simulate", "SplitwiseHH", "--trace", trace, "--out", tmp_path / "out")
    assert ran.code == 0
    assert "note: llama2-70b.h100-80gb.tp8 was extrapolated: up to 100000 batch tokens (measured to " in ran.err


# --- mistakes ----------------------------------------------------------------------------------------------------

BAD_POLICY = "from splitgym.policies import Decision\n\nclass Mine:\n    def decide(self, view):\n        return {}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["Quikstart"], "no card 'Quikstart'; did you mean 'Quickstart'?"),
        (["none.yaml"], "none.yaml: no such file; check the path"),
        (["Toy", "--policy", "splitwize"], "unknown policy 'splitwize'; did you mean 'splitwise'?"),
        (["Toy", "--model", "llama2-70B"], "model: unknown 'llama2-70B'; did you mean 'llama2-70b'?"),
        (["Toy", "--machines", "mixed=0:h100-80gb"], "--machines: 'mixed=0:h100-80gb': '0' machines; give a whole"),
        (["Toy", "--rate", "0"], "rate: 0 requests per second; give a number above 0"),
        (["Toy", "--setting", "publishd"], "--setting: unknown 'publishd'; did you mean 'published'?"),
        (["Toy", "--engine", "referense"], "--engine: unknown 'referense'; did you mean 'reference'?"),
        (["Toy", "--trace", "none.csv"], "none.csv: no such trace file; check the path"),
        (["Toy", "--trace", "negative.csv"], "negative.csv: line 3"),
        (["Toy", "--trace", "text.csv"], "text.csv: line 2"),
        (["Toy", "--policy", "./mine.py:Mine"], "mine.py: Mine.decide() returned {}; return a Decision"),
        (["Toy", "--policy", "./far.py:Far"], "policy 'Far', request 0 at 0 s: prompt machine 99 does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("negative.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,-5,5\n")
    Path("text.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,five,5\n")
    Path("mine.py").write_text(BAD_POLICY)
    Path("far.py").write_text(BAD_POLICY.replace("Mine", "Far").replace("{}", "Decision(99, 0)"))
    before = {path.name for path in tmp_path.iterdir()} | {"__pycache__"}
    ran = cli("simulate", *arguments, "--out", tmp_path / "out")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("error: ")
    assert expected in ran.err
    assert ran.out == ""
    assert {path.name for path in tmp_path.iterdir()} <= before


def test_an_output_folder_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    in_the_way = cli("simulate", "Toy", "--out", tmp_path / "file")
    assert (in_the_way.code, in_the_way.err) == (
        2,
        f"error: --out {tmp_path / 'file'}: a file is in the way; name a folder\n",
    )
    nowhere = cli("simulate", "Toy", "--out", tmp_path / "file" / "out")
    assert nowhere.code == 2
    assert nowhere.err.startswith(f"error: --out {tmp_path / 'file' / 'out'}: cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_above_the_output_are_made_and_taken_back(cli: Cli, tmp_path: Path) -> None:
    assert cli("simulate", "Toy", "--out", tmp_path / "a" / "b" / "out").code == 0
    assert (tmp_path / "a" / "b" / "out" / "summary.json").exists()
    assert cli("simulate", "Toy", "--policy", "none", "--out", tmp_path / "c" / "d" / "out").code == 2
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "Toy"),
        ("simulate", "Toy", "--out", "o", "--seed", "-1"),
        ("simulate", "Toy", "--rate", "x"),
        ("nix",),
    ],
)
def test_usage_errors_are_one_line(cli: Cli, arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("command", [("train", "Toy", "--steps", "1"), ("compare", "Toy", "--seeds", "1")])
def test_folders_are_tried_before_the_work(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    ran = cli(*command, "--out", tmp_path / "file" / "run")
    assert ran.code == 2
    assert ran.err == f"error: {tmp_path / 'file' / 'run'}: {tmp_path / 'file'} is a file; name a folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_does_not_hide_a_shipped_card(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Toy").mkdir()
    assert cli("simulate", "Toy", "--out", "out").code == 0


def test_a_trace_that_counts_from_another_day_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "epoch.csv").write_text("arrival_s,prompt_tokens,output_tokens\n1700000000,10,5\n")
    ran = cli("simulate", "Toy", "--trace", tmp_path / "epoch.csv", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "the first request arrives at 1700000000 s" in ran.err


# --- the rest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "some"),
    [("envs", "Quickstart"), ("policies", "splitwise-tuned"), ("hardware", "h100-80gb"), ("traces", "azure-coding")],
)
def test_list(cli: Cli, what: str, some: str) -> None:
    assert some in cli("list", what).out
    records = json.loads(cli("list", what, "--json").out)
    assert some in {record.get("name", record.get("hardware")) for record in records}


def test_calibrate_fit(cli: Cli, shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.yaml"
    which = ("--model", "llama2-70b", "--hardware", "h100-80gb", "--tensor-parallel", 8)
    csv = shared / "data" / "splitwise" / "perf_model.csv"
    ran = cli("calibrate", "fit", csv, "--out", out, *which, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)[0]["profile"] == "llama2-70b.h100-80gb.tp8"
    assert out.is_file()
    missing = cli("calibrate", "fit", tmp_path / "none.csv", "--out", out)
    assert missing.code == 2
    assert missing.err.count("\n") == 1


def test_compare(cli: Cli, tmp_path: Path) -> None:
    policies = ("--policy", "round-robin", "--policy", "lmetric")
    ran = cli("compare", "Toy", *policies, "--seeds", 2, "--rates", "8,10", "--out", tmp_path / "out", "--json")
    assert ran.code == 0
    assert {"round-robin", "lmetric"} <= {result["policy"] for result in json.loads(ran.out)["results"]}
    wrong = cli("compare", "Toy", *policies, "--rates", "8,ten")
    assert (wrong.code, wrong.err) == (2, "error: --rates: 'ten' is no rate; give numbers above 0, as 40,60,80\n")


def test_train_without_the_extra(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("torch", "splitgym.learn"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = cli("train", "Toy", "--out", tmp_path / "run")
    assert (ran.code, ran.err) == (2, "error: torch is not installed: needs pip install 'splitgym[learn]'\n")


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"splitgym {__version__}\n"
    assert "simulate" in cli("--help").out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from splitgym.cli.app import app; print({'torch', 'numba', 'pyarrow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
