"""Every decision with its view, its propensity and its outcome."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from splitgym.features import CLUSTER_FEATURES, MACHINE_COLUMN, MACHINE_FEATURES, REQUEST_FEATURES
from tests.router.stack import in_loop, stack


def read(folder: Path) -> tuple[list[dict[str, object]], dict[str, list[str]]]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    metadata = {key.decode(): value.decode().split(",") for key, value in tables[0].schema.metadata.items()}
    return [row for table in tables for row in table.to_pylist()], metadata


@in_loop
async def _play(folder: Path) -> None:
    policy = {"name": "least-kv", "tick_s": 5.0, "shadow": "round-robin"}
    async with stack(log={"folder": folder, "rows_per_file": 4}, policy=policy) as s:
        for tokens in (1, 5, 9):
            await s.complete(tokens, prompt=[3] * 40)
        s.fleet.kill("token-2")
        await s.complete(5)
        s.fleet.kill("token-3")
        await s.complete(5)


def test_rows(tmp_path: Path) -> None:
    _play(tmp_path)
    rows, metadata = read(tmp_path)
    assert metadata["machine_features"] == [feature.name for feature in MACHINE_FEATURES]
    assert metadata["engines"] == ["prompt-0", "prompt-1", "token-2", "token-3"]
    arrivals = [row for row in rows if row["kind"] == "arrival"]
    for row in rows:
        machines = np.array(row["machines"]).reshape(4, len(MACHINE_FEATURES))
        assert len(row["request"]) == len(REQUEST_FEATURES) and len(row["cluster"]) == len(CLUSTER_FEATURES)
        assert (machines[:, MACHINE_COLUMN["kv_capacity_tokens"]] > 1e6).all()
        assert row["propensity"] == 1.0 and row["policy"] == "least-kv"
        if row["kind"] == "arrival":
            assert row["prompt_mask"][row["prompt_machine"]] and row["token_mask"][row["token_machine"]]
    first = arrivals[0]
    assert (first["status"], first["attempt"], first["request"][0], first["request"][1]) == (200, 0, 40.0, 1.0)
    assert [row["output_tokens"] for row in arrivals[:3]] == [1, 5, 9]
    assert 0 < first["ttft_s"] <= first["e2e_s"]
    assert {row["shadow_prompt_machine"] for row in arrivals} <= {0, 1, None}
    assert first["shadow_prompt_machine"] == 0
    failed = [row for row in arrivals if row["status"] == 599]
    assert failed and all(row["failure"] for row in failed)
    assert len({row["request_id"] for row in arrivals}) == 5
    assert len(list(tmp_path.glob("*.parquet"))) >= 2 and not list(tmp_path.glob("*.tmp"))


@in_loop
async def test_a_disk_that_fails_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    async with stack(log={"folder": folder, "rows_per_file": 2}) as s:
        folder.rmdir()
        folder.write_text("in the way", "utf-8")
        for _ in range(4):
            assert (await s.complete(2)).status == 200
        await s.router.log.flush()
        assert s.counted("decision_log_errors_total") == 4


OPENS_A_MACHINE = """
from splitgym.view import MIXED, TICK, Decision

class OpensAMachine:
    def decide(self, view):
        if view.kind == TICK:
            return Decision()
        return Decision(3, 2, ((3, MIXED),) if view.role_mask[3, MIXED] else ())
"""


@in_loop
async def _open_machines(folder: Path, policy: str) -> None:
    async with stack(log={"folder": folder}, policy={"name": policy, "tick_s": None, "timeout_ms": 1000.0}) as s:
        for _ in range(2):
            await s.complete(2, prompt=[3] * 40)


def test_the_view_is_the_one_that_was_decided_on(tmp_path: Path) -> None:
    """Carrying out a role change looks at the books, too; the logged view is of before, with the request."""
    policy = tmp_path / "opens.py"
    policy.write_text(OPENS_A_MACHINE, "utf-8")
    _open_machines(tmp_path / "log", f"{policy}:OpensAMachine")
    rows, _ = read(tmp_path / "log")
    assert [row["request"][0] for row in rows] == [40.0, 40.0]
    assert [row["role_changes"] for row in rows] == [[3, 2], []]
    assert [row["prompt_mask"] for row in rows] == [[True, True, False, False], [True, True, False, True]]
