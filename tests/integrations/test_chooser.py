"""What the plugins share, without a host."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from splitgym.integrations.chooser import UNKNOWN_PROMPT_TOKENS, Chooser
from splitgym.sim import books as b
from splitgym.view import Decision
from tests.export.conftest import Bundles
from tests.integrations.conftest import SPLIT_ENGINES, ConfigFile

LENGTHS = (100, 256.0)


def test_names(config_file: ConfigFile) -> None:
    chooser = Chooser(config_file())
    names = ("one", "10.0.0.2:8000", "http://10.0.0.3:8000/", "four")
    assert [chooser.machine_of(name) for name in names] == [0, 1, 2, None]


def test_lengths_are_the_routers(config_file: ConfigFile) -> None:
    """Four bytes a token and 256 tokens of output unless the request says fewer: the configuration's defaults."""
    chooser = Chooser(config_file())
    assert chooser.lengths({"prompt": [1, 2, 3], "max_tokens": 7, "model": "x"}) == (3, 7.0)
    assert chooser.lengths("12345678") == (2, 256.0)
    assert (
        chooser.lengths({"messages": [{"role": "user", "content": "hello"}]})[0] == len('[["user", "hello"]]') // 4 + 1
    )
    for unknown in (None, 5, {}, {"prompt": object()}, {"prompt": "x", "max_tokens": -1}):
        assert chooser.lengths(unknown) == (UNKNOWN_PROMPT_TOKENS, 256.0)


def test_chooses_among_what_is_offered_and_counts_what_it_sent(config_file: ConfigFile) -> None:
    chooser = Chooser(config_file())
    chosen = []
    for _ in range(4):
        decision = chooser.choose(LENGTHS, {1, 2}, {1, 2})
        assert decision is not None
        chosen.append(decision.prompt_machine)
        chooser.book(LENGTHS, decision.prompt_machine, decision.prompt_machine)
    assert sorted(chosen) == [1, 1, 2, 2]
    assert chooser.choose(LENGTHS, (), ()) is None


def test_ends_are_entered_once_and_from_any_thread(config_file: ConfigFile) -> None:
    chooser = Chooser(config_file())
    bookings = [chooser.book(LENGTHS, 0, 0) for _ in range(50)]

    def end() -> None:
        for booking in bookings:
            chooser.prompt_ended(booking)
            chooser.finished(booking)

    threads = [threading.Thread(target=end) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chooser.choose(LENGTHS, {0}, {0})
    assert chooser.books.in_flight(0) == 0
    assert abs(chooser.books.rows[0, [b.PENDING_TOKENS, b.CONTEXT, b.REMAINING, b.BOOKED_KV]]).max() == 0


def test_keep_ends_the_oldest(config_file: ConfigFile) -> None:
    chooser = Chooser(config_file())
    bookings = [chooser.book((tokens, 10.0), 0, 0) for tokens in (1, 10, 100, 1000)]
    chooser.keep(0, prompts=1, requests=3)
    row = chooser.books.rows[0]
    assert (row[b.PENDING_TOKENS], row[b.DECODES], row[b.CONTEXT]) == (1000, 2, 112)  # 10 + 1 + 100 + 1
    chooser.finished(bookings[0])  # again: nothing
    chooser.hear(0, running=1, waiting=0, kv_share=0.5)
    assert (row[b.PENDING_PROMPTS], row[b.RUNNING]) == (2 - 1, 1)
    assert row[b.KV_HELD] == pytest.approx(0.5 * chooser.books.capacities[0])


def test_replicas_take_free_rows(config_file: ConfigFile) -> None:
    chooser = Chooser(config_file())
    assert chooser.seated(["a", "b"]) == {0: "a", 1: "b"}
    assert chooser.seated(["b", "c"]) == {1: "b", 2: "c"}
    assert chooser.seated(["b", "c", "d"]) == {1: "b", 2: "c", 0: "d"}  # a is gone, and no other row is free
    assert chooser.seated(["b", "c", "d", "e"]) == {1: "b", 2: "c", 0: "d"}


BAD = """
from splitgym.view import Decision

class Raises:
    def decide(self, view):
        raise RuntimeError("no")

class Outside:
    def decide(self, view):
        return Decision(-1, 99)
"""


@pytest.mark.parametrize("name", ["Raises", "Outside"])
def test_fallback(config_file: ConfigFile, tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.py").write_text(BAD, "utf-8")
    chooser = Chooser(config_file(f"{tmp_path / 'bad.py'}:{name}"))
    assert chooser.choose(LENGTHS, {2}, {2}) == Decision(2, 2)
    assert chooser.fallbacks == 1


def test_a_bundle_decides(config_file: ConfigFile, bundle_of: Bundles) -> None:
    """A network, trained for a moment, names machines of both phases in all of 50 decisions; no fallback."""
    chooser = Chooser(config_file(str(bundle_of("routing", "sample")), SPLIT_ENGINES))
    for _ in range(50):
        decision = chooser.choose(LENGTHS, {0, 1}, {3})
        assert decision is not None and decision.prompt_machine in (0, 1) and decision.token_machine == 3
        chooser.book(LENGTHS, decision.prompt_machine, decision.token_machine)
    assert chooser.fallbacks == 0
