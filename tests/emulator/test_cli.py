"""``splitgym emulate`` as a process, and what it says of mistakes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from splitgym.cli import main

MACHINES = "prompt=1:h100-80gb,token=1:h100-80gb"


def test_it_says_where_its_engines_are_and_ends_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ports = ["--first-port", str(port + 1), "--control-port", str(port)]
    command = [sys.executable, "-m", "splitgym.cli", "emulate", "--machines", MACHINES, "--time-scale", "50", *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().split() for _ in range(3)]
            assert [line[0] for line in lines] == ["prompt-0", "token-1", "control"]
            body = json.dumps({"prompt": "Once", "max_tokens": 3}).encode()
            asked = urllib.request.Request(f"{lines[1][1]}/v1/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=30) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 3
            with urllib.request.urlopen(f"{lines[2][1]}/engines", timeout=30) as answer:
                assert [engine["running"] for engine in json.load(answer)] == [True, True]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--machines", "prompt=1:h1OO-80gb,token=1:h100-80gb"], "did you mean 'h100-80gb'?"),
        (["--machines", "prompt=1:h100-80gb"], "no machine serves the token phase"),
        (["--machines", MACHINES, "--time-scale", "0"], "--time-scale 0: give a number above 0"),
        (["--machines", MACHINES, "--lease-s", "-1"], "--lease-s -1: give a number above 0"),
        (["--machines", MACHINES, "--model", "llama9"], "model: unknown 'llama9'"),
        (["--machines", MACHINES, "--first-port", "9000"], "--first-port 9000: engines would take the ports to 9001"),
    ],
)
def test_mistakes_are_lines(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["emulate", *options])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1
    assert message in said


def test_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["emulate", "--machines", MACHINES, "--first-port", str(port), "--control-port", str(port - 1)])
    assert (ended.value.code, capsys.readouterr().err.count("\n")) == (2, 1)
