"""The proxy itself, started with the plugin, before emulated engines that hand caches over as vLLM's NIXL connector."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from splitgym.emulator import Fleet, expected_text
from splitgym.machines import build_machines, parse_machines
from tests.router.stack import in_loop

pytest.importorskip("xpyd", reason="pip install xpyd-proxy: see make test-integrations")

MODEL = "llama2-70b"
PROMPT = "the quick brown fox"
STARTS_WITHIN_S = 240.0  # on a busy machine: its imports alone take a while
LAST = """
from splitgym.view import Decision

class Last:
    def decide(self, view):
        return Decision(int(view.prompt_mask.nonzero()[0][-1]), int(view.token_mask.nonzero()[0][-1]))
"""


def tokenizer_in(folder: Path) -> None:
    """Words; the proxy insists on one, and else serves in turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder / MODEL)


def configured(folder: Path, fleet: Fleet, policy: str) -> tuple[Path, int]:
    """The proxy's file and its port; the router's file beside it."""
    addresses = [f"{place.host}:{place.port}" for place in fleet.places]
    engines = [
        {"name": place.name, "url": place.url, "role": place.machine.role_name, "hardware": "h100-80gb"}
        for place in fleet.places
    ]
    router = {"model": MODEL, "engines": engines, "policy": {"name": policy}}
    (folder / "router.yaml").write_text(yaml.safe_dump(router), "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxy: dict[str, Any] = {"model": MODEL, "prefill": addresses[:2], "decode": addresses[2:], "port": port}
    proxy |= {"disaggregated_mode": "nixl", "first_token_source": "decode", "tokenizer_path": str(folder)}
    proxy |= {"scheduling": "splitgym", "splitgym": {"config": str(folder / "router.yaml")}}
    (folder / "xpyd.yaml").write_text(yaml.safe_dump(proxy), "utf-8")
    return folder / "xpyd.yaml", port


@partial(in_loop, limit_s=STARTS_WITHIN_S + 60.0)
async def _serve(folder: Path) -> None:
    (folder / "last.py").write_text(LAST, "utf-8")
    tokenizer_in(folder)
    machines = build_machines(parse_machines("prompt=2:h100-80gb,token=2:h100-80gb"), MODEL, 8)
    async with Fleet(machines, MODEL, time_scale=50.0).running() as fleet:
        config, port = configured(folder, fleet, f"{folder / 'last.py'}:Last")
        command = (sys.executable, "-m", "splitgym.integrations.xpyd", "--config", str(config))
        log = (folder / "log").open("wb")
        offline = {"HF_HUB_OFFLINE": "1", **os.environ}
        proxy = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=offline)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
                body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "stream": False}
                texts = [await _completion(client, body) for _ in range(5)]
                async with client.get("/metrics") as answer:
                    page = await answer.text()
        finally:
            proxy.terminate()
            await proxy.wait()
            log.close()
        assert texts == [expected_text(PROMPT, 6)] * 5
        pairs: Counter[tuple[str, str]] = Counter()
        for labels, count in re.findall(r"^proxy_prefill_requests_total\{(.*)\} ([0-9.]+)$", page, re.MULTILINE):
            said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            pairs[said["prefill_instance"], said["decode_instance"]] += round(float(count))
        assert pairs == {tuple(f"{fleet[name].host}:{fleet[name].port}" for name in ("prompt-1", "token-3")): 5}


async def _completion(client: aiohttp.ClientSession, body: Any) -> str:
    """The text, once the proxy is up and has seen its instances."""
    for _ in range(round(STARTS_WITHIN_S / 0.25)):
        try:
            async with client.post("/v1/completions", json=body) as answer:
                if answer.status == 200:
                    return str((await answer.json(content_type=None))["choices"][0]["text"])
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.25)
    raise AssertionError("the proxy does not serve")


def test_the_proxy_sends_requests_where_the_policy_says(tmp_path: Path) -> None:
    """A policy that names the last prompt and the last token machine; the tokens are one engine's."""
    try:
        _serve(tmp_path)
    except BaseException:
        print((tmp_path / "log").read_text("utf-8", "replace")[-4000:])
        raise
