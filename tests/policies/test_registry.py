"""Policies by name, file, card and entry point, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitgym.errors import SplitgymError
from splitgym.policies import BUILTINS, Combined, CompiledPolicy, Decision, Policy, list_policies, make_policy
from splitgym.shipped import shipped_folder
from splitgym.sim.cluster import Scenario
from splitgym.sim.run import run
from splitgym.view import PROMPT
from tests.policies.views import view
from tests.sim.build import cluster, requests

HERE = Path(__file__).parent


def message(spec: str, base_dir: Path | None = None) -> str:
    with pytest.raises(SplitgymError) as caught:
        make_policy(spec, base_dir)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("info", list_policies(), ids=lambda info: info.name)
def test_whatever_is_listed_can_be_made(info):
    policy = make_policy(info.name)
    assert isinstance(policy, Policy)
    assert info.text


def test_listed_kinds():
    kinds = {info.name: info.kind for info in list_policies()}
    assert kinds["lmetric"] == "routing"
    assert kinds["splitwise"] == "both"
    assert kinds["threshold"] == "pool"
    assert kinds["oracle-length"] == "oracle"


def test_routing_and_pool_by_name():
    policy = make_policy("lmetric+threshold")
    assert isinstance(policy, Combined)
    assert policy.name == "lmetric+threshold"
    assert make_policy("forecast").name == "lmetric+forecast"


def test_shipped_card_wins_over_the_built_in_defaults():
    card_text = (shipped_folder("policies") / "splitwise-tuned.yaml").read_text()
    policy = make_policy("splitwise-tuned")
    assert isinstance(policy, CompiledPolicy)
    assert policy.name == "splitwise-tuned"
    assert f"tbt_slowdown: {policy.params['tbt_slowdown']:g}" in card_text.replace(".0\n", "\n")


def test_card_of_ones_own(tmp_path):
    write(tmp_path, "description: d\npolicy: splitwise\nparams: {prompt_threshold_tokens: 100}\n", "eager.yaml")
    policy = make_policy("eager.yaml", tmp_path)
    assert policy.name == "eager"
    assert policy.params["prompt_threshold_tokens"] == 100.0
    assert BUILTINS["splitwise"].params["prompt_threshold_tokens"] == 8192.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy: splitwize\n", "policy: unknown 'splitwize'; did you mean 'splitwise'?"),
        ("policy: lmetric\nparams: {x: 1}\n", "params: policy 'lmetric': unknown parameter 'x'; it has none"),
        ("policy: threshold\nparams: {dwel_s: 1}\n", "unknown parameter 'dwel_s'; did you mean 'dwell_s'?"),
        ("policy: threshold\nparams: {dwell_s: soon}\n", "dwell_s is 'soon'; it must be a number"),
        ("polcy: lmetric\n", "unknown field 'polcy'; did you mean 'policy'?"),
        ("description: d\n", "policy: None; name a built-in policy"),
        ("[1, 2]\n", "a policy card needs the fields"),
        ("a: [\n", "not YAML"),
    ],
)
def test_bad_cards(tmp_path, text, said):
    path = write(tmp_path, text, "bad.yaml")
    found = message(str(path))
    assert found.startswith(str(path))
    assert said in found


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lmetrik", "unknown policy 'lmetrik'; did you mean 'lmetric'?"),
        ("lmetric+thresh", "unknown policy 'thresh'"),
        ("lmetric+jsq-tokens", "policy 'jsq-tokens' moves no machines; after '+' name one of: static"),
        ("lmetric+", "give both halves, routing+pool"),
        ("./nowhere.py:Mine", "nowhere.py: no such file; give a policy as FILE.py:CLASS"),
        ("./nowhere.py", "name the class too, ./nowhere.py:ClassName"),
        ("./nowhere.yaml", "nowhere.yaml: No such file or directory"),
        ("runs/nowhere", "policy 'runs/nowhere': no such run directory"),
        ("", "unknown policy ''"),
    ],
)
def test_no_such_policy(spec, said, tmp_path):
    assert said in message(spec, tmp_path)


def test_a_class_in_a_file():
    policy = make_policy("./pack.py:Pack", HERE)
    assert policy.name == "Pack"
    policy.reset(cluster("pptt"), 0)
    assert policy.decide(view("pptt", decodes=[0, 0, 3, 5], pending_prompt_s=[0.2, 0.1, 0, 0])) == Decision(1, 3)
    full = view("pptt", decodes=[0, 0, 33, 32])
    assert policy.decide(full) == Decision(0, 3)


def test_a_class_in_a_file_runs_with_a_pool_policy():
    policy = make_policy(f"{HERE / 'pack.py'}:Pack+threshold")
    result = run(Scenario(cluster("pptt"), requests((0.0, 100, 5), (0.1, 100, 5))), policy)
    assert (result.rows.status == 1).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Mine:\n    pass\n", "Mine has no decide(view)"),
        ("class Main:\n    def decide(self, view): ...\n", "no class 'Mine'; did you mean 'Main'?"),
        ("x = 1\n", "no class 'Mine'"),
        ("import nothing_of_the_kind\n", "mine.py:1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("def f(:\n", "line 1: SyntaxError"),
        (
            "class Mine:\n    def __init__(self):\n        raise ValueError('no\\nluck')\n"
            "    def decide(self, view): ...\n",
            "mine.py:3: ValueError: no luck",
        ),
    ],
)
def test_bad_files(tmp_path, text, said):
    path = write(tmp_path, text)
    found = message(f"{path}:Mine")
    assert found.startswith(str(path))
    assert said in found


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 3", "Mine.decide() returned 3; return a Decision"),
        ("return view.nothing", "mine.py:3: AttributeError"),
    ],
)
def test_mistakes_in_decide_are_one_line(tmp_path, body, said):
    path = write(tmp_path, f"class Mine:\n    def decide(self, view):\n        {body}\n")
    policy = make_policy(f"{path}:Mine")
    policy.reset(cluster("pt"), 0)
    with pytest.raises(SplitgymError, match="Mine") as caught:
        policy.decide(view("pt"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_machine_that_does_not_exist_is_named(tmp_path):
    path = write(
        tmp_path,
        "from splitgym.policies import Decision\n\nclass Mine:\n"
        "    def decide(self, view):\n        return Decision(7, 1)\n",
    )
    with pytest.raises(SplitgymError, match=r"policy 'Mine', request 0 at .* machine 7 does not exist"):
        run(Scenario(cluster("pt"), requests((0.0, 100, 5))), make_policy(f"{path}:Mine"))


def test_entry_points(monkeypatch):
    from importlib.metadata import EntryPoint

    from splitgym.policies import registry

    found = [EntryPoint("theirs", "tests.policies.pack:Pack", registry.ENTRY_POINTS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.ENTRY_POINTS else [])
    assert make_policy("theirs").name == "Pack"
    assert "theirs" in [info.name for info in list_policies()]


def test_roles_in_a_decision_are_plain_integers(make):
    """A decision must survive JSON: no numpy numbers in it."""
    decision = make("splitwise").decide(
        view("pptt", pending_prompt_tokens=[9e3, 9e3, 0, 0], waiting_requests=[1, 1, 0, 0])
    )
    assert decision.role_changes
    numbers = [decision.prompt_machine, decision.token_machine, *decision.role_changes[0], PROMPT]
    assert {type(number) for number in numbers} == {int}


def test_a_dataclass_is_a_policy(tmp_path):
    """With annotations as text, dataclasses look for the module among those that are loaded."""
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Mine:\n    most: int = 3\n    def decide(self, view): ...\n"
    )
    assert make_policy(f"{tmp_path / 'mine.py'}:Mine").name == "Mine"
