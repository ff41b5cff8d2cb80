from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from splitgym.cards import load_card
from splitgym.errors import SplitgymError
from splitgym.learn.compare import Comparison, compare
from splitgym.learn.entrants import parse_entrants
from splitgym.metrics import scorecard
from splitgym.policies import make_policy
from splitgym.sim.run import run

POLICY_FILE = """\
import numpy as np
from splitgym.policies import BasePolicy

class Shortest(BasePolicy):
    "Forgets nothing between runs, which must not matter."
    seen = 0
    def route(self, view):
        if view.time_s < 2:
            return 99, 99  # never asked: the card's warm-up policy decides
        self.seen += 1
        prompt = np.where(view.prompt_mask, view["pending_prompts"] + (self.seen == 1), np.inf)
        return int(prompt.argmin()), int(np.where(view.token_mask, view["decodes"], np.inf).argmin())

class Nonsense(BasePolicy):
    def route(self, view):
        return 99, 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies")
    (path / "mine.py").write_text(POLICY_FILE)
    return path


def play(quick_card: Path, folder: Path, jobs: int = 1, out: Path | None = None) -> Comparison:
    policies = ["random", "lmetric", "./mine.py:Shortest", "trained=freeness,least-kv"]
    return compare(quick_card, policies, [6, 12], seeds=3, jobs=jobs, out=out, base_dir=folder)


@pytest.fixture(scope="module")
def comparison(quick_card: Path, folder: Path) -> Comparison:
    return play(quick_card, folder)


def test_two_processes_give_what_one_gives(quick_card: Path, folder: Path, comparison: Comparison):
    assert play(quick_card, folder, jobs=2).table().equals(comparison.table())
    assert play(quick_card, folder, jobs=2).to_dict() == comparison.to_dict()


def test_figures_are_those_of_a_run_by_hand(quick_card: Path, comparison: Comparison):
    card = load_card(quick_card)
    scenario = card.scenario(2, "test", rate_rps=12)
    result = run(scenario, make_policy("lmetric"), warmup_policy=make_policy("jsq-tokens"))
    for metric, value in scorecard(result.rows, scenario, result.meters).items():
        assert comparison.scores[metric]["lmetric"][1, 0, 2] == value


def test_every_policy_meets_the_same_requests(comparison: Comparison):
    table = comparison.table()
    offered = set(zip(table["rate_rps"].to_pylist(), table["offered_rps"].to_pylist(), strict=True))
    assert len(offered) == 2
    assert all(0.5 < offered_rps / rate < 1.5 for rate, offered_rps in offered)  # 60 and 120 arrivals, 3 seeds


def test_parquet(quick_card: Path, folder: Path, comparison: Comparison, tmp_path: Path):
    play(quick_card, folder, out=tmp_path / "results")
    table = pq.read_table(tmp_path / "results" / "comparison.parquet")
    assert table.equals(comparison.table())
    keys = pa.schema(
        [
            ("card", pa.string()),
            ("policy", pa.string()),
            ("run", pa.string()),
            ("rate_rps", pa.float64()),
            ("offered_rps", pa.float64()),
            ("seed", pa.int64()),
        ]
    )
    assert pa.schema(list(table.schema)[:6]) == keys
    assert {"slowdown", "ttft_p99_s", "tbt_p90_s", "slo_met", "goodput_rps", "energy_kwh"} < set(table.column_names)
    assert all(field.type == pa.float64() for field in list(table.schema)[6:])
    assert table.num_rows == 2 * 3 * 6  # rates x seeds x (random, lmetric, Shortest, two runs of trained, splitwise)
    rows = [row for row in table.to_pylist() if row["policy"] == "trained" and row["run"] == "least-kv"]
    assert [(row["rate_rps"], row["seed"]) for row in rows] == [(6, 0), (6, 1), (6, 2), (12, 0), (12, 1), (12, 2)]
    stored = json.loads((tmp_path / "results" / "comparison.json").read_text())
    assert stored == comparison.to_dict()
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["comparison.json", "comparison.parquet"]


def test_verdicts(comparison: Comparison):
    at_12 = [verdict for verdict in comparison.verdicts if verdict.rate_rps == 12]
    assert [v.means["slowdown"].value for v in at_12] == sorted(v.means["slowdown"].value for v in at_12)
    by_name = {verdict.policy: verdict for verdict in at_12}
    assert {name: verdict.kind for name, verdict in by_name.items()} == {
        "random": "heuristic",
        "lmetric": "heuristic",
        "Shortest": "candidate",
        "trained": "heuristic",
        "splitwise": "heuristic",
    }
    best = by_name[at_12[0].best_heuristic]
    assert best.regret.value == 0 and best.kind == "heuristic"
    random = by_name["random"]
    slowdown = {name: scores[1].mean() for name, scores in comparison.scores["slowdown"].items()}
    assert random.regret.value == pytest.approx(slowdown["random"] - slowdown[best.policy])
    assert random.to_reference["slowdown"].value == pytest.approx(slowdown["random"] - slowdown["splitwise"])
    assert random.score is not None and random.score.value == 0
    assert best.score is not None and best.score.value == pytest.approx(1)
    assert random.wins + random.losses == 3


def test_what_is_said(comparison: Comparison):
    notes, findings = " ".join(comparison.notes()), comparison.findings()
    assert "3 seeds are few" in notes and "at least 10" in notes
    assert "trained has 2 training seeds" in notes
    assert findings[0].startswith("Best heuristic at 6 requests/s: ")
    assert [line.split(":")[0] for line in findings[2:]] == ["Shortest at 6 requests/s", "Shortest at 12 requests/s"]
    assert all("of 3 seeds" in line and line.endswith(".") for line in findings[2:])


def test_print_and_json(comparison: Comparison):
    output = io.StringIO()
    comparison.print(Console(file=output, width=140))
    text = output.getvalue()
    for part in ("Quick at 12 requests/s, 3 test seeds; best heuristic: ", "vs splitwise", "regret", "TTFT P99, s"):
        assert part in text
    content = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert content["seeds"] == [0, 1, 2] and len(content["results"]) == 10
    regret = content["results"][0]["regret"]
    assert set(regret) == {"value", "low", "high"}


def test_cards_own_rate_and_one_seed(quick_card: Path):
    alone = compare(quick_card, ["round-robin"], seeds=1)
    assert alone.table()["rate_rps"].null_count == 2
    assert alone.offered_rps[0] == pytest.approx(8, rel=0.3)  # 80 arrivals
    assert alone.verdicts[0].means["slowdown"].value > 0
    assert np.isnan(alone.verdicts[0].means["slowdown"].low)
    assert alone.to_dict()["results"][0]["means"]["slowdown"]["low"] is None
    assert "1 seed gives no interval" in " ".join(alone.notes())


def test_all_heuristics_stand_behind_one_name():
    every = parse_entrants([])
    assert {"splitwise", "splitwise-tuned", "lmetric", "random", "least-ttft"} <= {entrant.name for entrant in every}
    assert {entrant.kind for entrant in every} == {"heuristic"}
    assert [e.name for e in parse_entrants(["oracle-length", "heuristics"])][1:] == [e.name for e in every]
    assert parse_entrants(["oracle-length"])[0].kind == "oracle"
    assert parse_entrants(["lmetric+threshold"])[0].kind == "heuristic"
    assert parse_entrants(["lmetric"])[-1].name == "splitwise"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policies": ["splitwize"]}, "unknown policy 'splitwize'; did you mean 'splitwise'?"),
        ({"policies": ["lmetric", "lmetric"]}, "more than one is called 'lmetric'; name it"),
        ({"policies": ["a="]}, "'a=' names nothing"),
        ({"policies": ["lmetric"], "seeds": 0}, "0 seeds"),
        ({"policies": ["lmetric"], "split": "tests"}, "split: unknown 'tests'"),
        ({"policies": ["lmetric"], "rates": [4.0, -1.0]}, "rate: -1 requests per second"),
        ({"policies": ["./mine.py:Nonsense"]}, "Nonsense', request .* machine 99 does not exist.* 0 to 3"),
        ({"policies": ["./mine.py:Nonsense"], "jobs": 2}, "Nonsense', request .* machine 99 does not exist"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(
    quick_card: Path, folder: Path, tmp_path: Path, arguments: dict[str, object], message: str
):
    with pytest.raises(SplitgymError, match=message) as caught:
        compare(quick_card, **{"seeds": 1, "out": tmp_path / "out", "base_dir": folder, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argument", ["out", "logdir"])
def test_a_file_in_the_way_is_noticed_before_anything_is_played(quick_card: Path, tmp_path: Path, argument: str):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SplitgymError, match="taken is a file; name a folder"):
        compare(quick_card, ["lmetric"], **{argument: tmp_path / "taken" / "below"})  # type: ignore[arg-type]
