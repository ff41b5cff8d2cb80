"""The policy in xPyD-proxy's own scheduler; no proxy is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conftest import SPLIT_ENGINES, ConfigFile

pytest.importorskip("xpyd", reason="pip install xpyd-proxy: see make test-integrations")

from xpyd.config import ProxyConfig
from xpyd.proxy import _create_scheduling_policy
from xpyd.registry import InstanceRegistry
from xpyd.scheduler import Scheduler, SchedulingContext

from splitgym.integrations import xpyd as plugin

PREFILL, DECODE = ["10.0.0.1:8000", "10.0.0.2:8000"], ["10.0.0.3:8000", "10.0.0.4:8000"]


def request(role: str, prompt: str = "p", tokens: int = 100) -> SchedulingContext:
    return SchedulingContext(role=role, model="m", request_len=tokens, prompt=prompt)


def policy_in(tmp_path: Path, config: str, registry: Any = None) -> plugin.SplitgymPolicy:
    """As the proxy makes it from its own YAML file."""
    path = tmp_path / "xpyd.yaml"
    lines = (f"prefill: {PREFILL}", f"decode: {DECODE}", "scheduling: splitgym", f"splitgym: {{config: {config}}}")
    path.write_text("\n".join(("model: m", *lines)), "utf-8")
    policy = _create_scheduling_policy(ProxyConfig.from_yaml(str(path)), registry)
    assert isinstance(policy, plugin.SplitgymPolicy)
    return policy


def test_both_phases_as_decided_and_books_empty_at_the_end(config_file: ConfigFile, tmp_path: Path) -> None:
    policy = policy_in(tmp_path, config_file("jsq-requests", SPLIT_ENGINES))
    scheduler = Scheduler()
    held = []
    for number in range(4):
        prompt = scheduler.reserve(policy, request("prefill", str(number)), PREFILL)
        token = scheduler.reserve(policy, request("decode", str(number)), DECODE)
        assert prompt is not None and token is not None
        held.append((prompt, token))
    books = policy.chooser.books
    assert sorted(prompt.address for prompt, _ in held) == sorted(PREFILL * 2)
    assert sorted(token.address for _, token in held) == sorted(DECODE * 2)
    assert [books.in_flight(machine) for machine in range(4)] == [2] * 4
    for prompt, token in held:
        prompt.release()
        token.release()
        token.release()
    policy.chooser.choose((1, 1.0), (0,), (2,))
    assert [books.in_flight(machine) for machine in range(4)] == [0] * 4
    assert policy.chooser.fallbacks == 0 and not policy._bookings


def test_an_ended_prompt_frees_its_instance(config_file: ConfigFile, tmp_path: Path) -> None:
    """The decode goes on; the next prompt goes where none is pending."""
    policy = policy_in(tmp_path, config_file("least-ttft", SPLIT_ENGINES))
    scheduler = Scheduler()
    prompt = scheduler.reserve(policy, request("prefill"), PREFILL)
    assert prompt is not None and scheduler.reserve(policy, request("decode"), DECODE) is not None
    busy = scheduler.reserve(policy, request("prefill", "q"), PREFILL)
    assert busy is not None and busy.address != prompt.address
    assert scheduler.reserve(policy, request("decode", "q"), DECODE) is not None
    busy.release()  # of equals the first would be chosen, and this is the second
    third = scheduler.reserve(policy, request("prefill", "r"), PREFILL)
    assert third is not None and third.address == busy.address


def test_a_request_without_a_decode_instance_leaves_nothing(config_file: ConfigFile, tmp_path: Path) -> None:
    policy = policy_in(tmp_path, config_file("jsq-requests", SPLIT_ENGINES))
    scheduler = Scheduler()
    prompt = scheduler.reserve(policy, request("prefill"), PREFILL)
    assert prompt is not None and scheduler.reserve(policy, request("decode"), []) is None
    prompt.release()
    policy.chooser.choose((1, 1.0), (0,), (2,))
    assert sum(policy.chooser.books.in_flight(machine) for machine in range(4)) == 0


def test_only_instances_that_the_proxy_offers(config_file: ConfigFile, tmp_path: Path) -> None:
    """Decode instance 10.0.0.3 is not up in the proxy's registry: no decision names it."""
    registry = InstanceRegistry()
    for address in PREFILL + DECODE:
        registry.add("prefill" if address in PREFILL else "decode", address, "m")
        if address != DECODE[0]:
            registry.mark_healthy(address)
    policy = policy_in(tmp_path, config_file("round-robin", SPLIT_ENGINES), registry)
    scheduler = Scheduler(registry)
    for number in range(4):
        assert scheduler.reserve(policy, request("prefill", str(number)), PREFILL) is not None
        token = scheduler.reserve(policy, request("decode", str(number)), DECODE)
        assert token is not None and token.address == DECODE[1]


def test_instances_that_the_file_does_not_know(config_file: ConfigFile, tmp_path: Path) -> None:
    policy = policy_in(tmp_path, config_file("jsq-requests", SPLIT_ENGINES))
    taken = Scheduler().reserve(policy, request("prefill"), ["10.9.9.9:1"])
    assert taken is not None and taken.address == "10.9.9.9:1"
    taken.release()


def test_aggregated_instances(config_file: ConfigFile, tmp_path: Path) -> None:
    policy = policy_in(tmp_path, config_file())
    scheduler = Scheduler()
    held = [scheduler.reserve(policy, request("aggregated"), PREFILL) for _ in range(4)]
    assert sorted(each.address for each in held if each) == sorted(PREFILL * 2)
    for each in held:
        assert each is not None
        each.release()
    policy.chooser.choose((1, 1.0), (0,), (0,))
    assert policy.chooser.books.in_flight(0) == policy.chooser.books.in_flight(1) == 0


def test_the_module_starts_the_proxy(
    config_file: ConfigFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its configuration check accepts ``scheduling: splitgym``, which it does not without the plugin."""
    import runpy

    policy_in(tmp_path, config_file("jsq-requests", SPLIT_ENGINES))
    monkeypatch.setattr(sys, "argv", ["xpyd", "--validate-config", str(tmp_path / "xpyd.yaml")])
    with pytest.raises(SystemExit) as ended, pytest.warns(RuntimeWarning):
        runpy.run_module("splitgym.integrations.xpyd", run_name="__main__")
    assert ended.value.code == 0 and "Config is valid" in capsys.readouterr().out
