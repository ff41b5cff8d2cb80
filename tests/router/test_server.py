"""The router as a process: start, SIGTERM under load, and what it says of mistakes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pyarrow.parquet as pq
import pytest
import yaml

from splitgym.cli import main
from splitgym.emulator import Fleet
from splitgym.machines import build_machines, parse_machines
from tests.router.stack import HARDWARE, MODEL, Answer, in_loop, said_to


def write_config(path: Path, engines: list[dict[str, str]], **more: object) -> Path:
    path.write_text(yaml.safe_dump({"model": MODEL, "engines": engines} | more), "utf-8")
    return path


@contextmanager
def serving(config: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "splitgym.cli", "serve", "--config", str(config), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    line = await asyncio.to_thread(process.stderr.readline)
    return next(word for word in line.split() if word.startswith("http://"))


@in_loop
async def test_sigterm_under_load(tmp_path: Path) -> None:
    """What runs ends well, nothing new is taken, the decision log is written, the exit code is 0."""
    fleet = Fleet(build_machines(parse_machines("prompt=1:h100-80gb,token=1:h100-80gb"), MODEL, 8), MODEL, time_scale=5)
    async with fleet.running():
        engines = [
            {"name": place.name, "url": place.url, "role": place.machine.role_name, "hardware": HARDWARE}
            for place in fleet.places
        ]
        log = {"folder": str(tmp_path / "decisions")}
        config = write_config(tmp_path / "router.yaml", engines, time_scale=5.0, log=log)
        with serving(config) as process:
            url = await url_of(process)
            async with aiohttp.ClientSession() as client:

                async def ask(number: int) -> Answer:
                    body = {"model": MODEL, "prompt": [number] * 9, "max_tokens": 300, "stream": number % 2 == 0}
                    async with client.post(f"{url}/v1/completions", json=body) as answer:
                        return Answer(answer.status, await answer.text(), answer.headers)

                running = [asyncio.create_task(ask(number)) for number in range(20)]
                while len(fleet.engine("token-1").decodes) < 20:
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
                with pytest.raises(aiohttp.ClientError):
                    await ask(100)
                answers = await asyncio.gather(*running)
            assert [answer.said for answer in answers] == [said_to([number] * 9, 300) for number in range(20)]
            assert await asyncio.to_thread(process.wait, 20) == 0
    rows = [row for path in (tmp_path / "decisions").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [row["status"] for row in rows if row["kind"] == "arrival"] == [200] * 20


@in_loop
async def test_a_head_that_never_ends(tmp_path: Path) -> None:
    """The router breaks the connection and goes on, on a fresh connection and on one that has served before."""
    config = write_config(tmp_path / "router.yaml", ENGINES)
    with serving(config) as process:
        url = await url_of(process)
        for begun in (b"", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            if begun:
                writer.write(begun)
                assert b"200 OK" in await reader.readline()
            with pytest.raises(ConnectionError):
                writer.write(b"GET / HTTP/1.1\r\nX: ")
                for _ in range(1000):
                    writer.write(b"x" * 65_536)
                    await writer.drain()
        async with aiohttp.ClientSession() as client, client.get(f"{url}/v1/models") as answer:
            assert answer.status == 200


ENGINES = [
    {"name": "a", "url": "http://127.0.0.1:9", "role": "prompt", "hardware": HARDWARE},
    {"name": "b", "url": "http://127.0.0.1:10", "role": "token", "hardware": HARDWARE},
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engines": []}, "engines: "),
        ({"engines": ENGINES[:1]}, "none serves the token phase; give one the role token or mixed"),
        ({"engines": [*ENGINES, ENGINES[1]]}, "two engines have the name 'b'; give each its own"),
        (
            {"engines": [ENGINES[0], ENGINES[1] | {"url": "ftp://x"}]},
            "engines[1].url: 'ftp://x': not an engine's address",
        ),
        ({"engines": [ENGINES[0], ENGINES[1] | {"hardware": "h1OO-80gb"}]}, "did you mean 'h100-80gb'?"),
        ({"engines": [ENGINES[0], ENGINES[1] | {"role": "tokn"}]}, "did you mean 'token'?"),
        ({"engines": [ENGINES[0], ENGINES[1] | {"name": "a\nb"}]}, "not a name"),
        ({"protocol": "vllm"}, "protocol: unknown 'vllm'; did you mean 'vllm-nixl'?"),
        ({"protocol": "plain"}, "give every engine the role mixed"),
        ({"model": "llama3-70b"}, "unknown 'llama3-70b'"),
        ({"policy": {"name": "splitwize"}}, "unknown policy 'splitwize'; did you mean 'splitwise'?"),
        ({"policy": {"timeout": 3}}, "policy: unknown 'timeout'; did you mean 'timeout_ms'?"),
        ({"safety": {"lease_margin_s": 40.0}}, "lease_margin_s: 40; give less than lease_s, 30"),
        ({"admin_key": "env:SPLITGYM_NO_SUCH_KEY"}, "set the environment variable SPLITGYM_NO_SUCH_KEY"),
        ({"prediction": {"mean_output_tokens": [1.0, 2.0]}}, "give one more than edges"),
        ({"port": "many"}, "port: "),
        ({"log": {"folder": "/proc/decisions"}}, "log.folder: /proc/decisions: cannot be written"),
    ],
)
def test_mistakes_are_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    config = write_config(tmp_path / "router.yaml", **({"engines": ENGINES} | change))  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--config", str(config)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(line.startswith(f"error: {config}: ") for line in said.splitlines())
    assert message in said


def test_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--config", "nowhere.yaml"])
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: nowhere.yaml: no such file; check the path\n")


def test_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from splitgym.router.server import bind

    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        config = write_config(tmp_path / "router.yaml", ENGINES)
        with pytest.raises(SystemExit) as ended:
            main(["serve", "--config", str(config), "--port", str(port)])
    assert ended.value.code == 2
    assert f"127.0.0.1:{port}: cannot listen there" in capsys.readouterr().err
