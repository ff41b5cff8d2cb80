from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitgym.errors import SplitgymError
from splitgym.learn.compare import Comparison, compare
from splitgym.learn.comparison_board import folder_name, page
from splitgym.learn.event_file import FILE_NAME, EventFile

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

POLICIES = ["splitwise", "lmetric", "pair=random,round-robin"]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tb")


@pytest.fixture(scope="module")
def comparison(quick_card: Path, logdir: Path) -> Comparison:
    return compare(quick_card, POLICIES, [6, 10], seeds=3, logdir=logdir)


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE)
    return events.Reload()


def points(events: Any, tag: str) -> dict[int, float]:
    from tensorboard.util.tensor_util import make_ndarray

    return {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}


def tags_of(events: Any, plugin: str) -> set[str]:
    return set(events.PluginTagToContent(plugin))


def test_one_folder_and_one_file_for_each_policy(comparison: Comparison, logdir: Path):
    files = sorted(path.relative_to(logdir).as_posix() for path in logdir.rglob("*") if path.is_file())
    assert files == [f"{name}/{FILE_NAME}" for name in ("comparison", "lmetric", "pair", "splitwise")]


def test_charts_over_load(comparison: Comparison, logdir: Path):
    events = read(logdir / "lmetric")
    headlines = {"slowdown", "regret", "ttft_p90_s", "ttft_p99_s", "tbt_p90_s", "tbt_p99_s", "slo_met", "goodput_rps"}
    assert {tag for tag in tags_of(events, "scalars") if tag.startswith("load/")} == {f"load/{h}" for h in headlines}
    assert {"load_other/energy_kwh", "load_other/e2e_p50_s"} < tags_of(events, "scalars")
    for metric in ("slowdown", "goodput_rps"):
        values = comparison.scores[metric]["lmetric"].mean(axis=(1, 2))
        drawn = points(events, f"load/{metric}")
        assert list(drawn) == [6, 10]  # x is requests/s
        assert list(drawn.values()) == pytest.approx(values, rel=1e-6)  # float32
    low, high = (points(events, f"load_interval/slowdown_{bound}") for bound in ("low", "high"))
    middle = points(events, "load/slowdown")
    assert all(low[step] < middle[step] < high[step] for step in (6, 10))


def test_timelines_are_over_simulated_seconds(comparison: Comparison, logdir: Path):
    events = read(logdir / "splitwise")
    timelines = {tag for tag in tags_of(events, "scalars") if tag.startswith("timeline/")}
    assert {"timeline/prompt_machines", "timeline/pending_prompts", "timeline/kv_used_percent"} < timelines
    machines = points(events, "timeline/prompt_machines")
    steps = list(machines)
    assert steps == sorted(set(steps)) and steps[0] <= 1 and steps[-1] >= 10 and len(steps) >= 10  # 12 s
    pools = [points(events, f"timeline/{role}_machines") for role in ("prompt", "token", "mixed")]
    assert all(sum(pool[step] for pool in pools) == 4 for step in steps)


def test_pictures(comparison: Comparison, logdir: Path):
    from matplotlib.image import imread
    from tensorboard.util.tensor_util import make_ndarray

    for name, expected in (
        ("pair", {"pictures/latency", "pictures/machines"}),
        ("comparison", {"pictures/latency"}),
    ):
        events = read(logdir / name)
        assert tags_of(events, "images") == expected
        for tag in expected:
            width, height, png = make_ndarray(events.Tensors(tag)[0].tensor_proto)
            picture = imread(io.BytesIO(png))
            assert picture.shape[:2] == (int(height), int(width))
            assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20  # not an empty frame


def test_hparams(comparison: Comparison, logdir: Path):
    from tensorboard.plugins.hparams import metadata

    events = read(logdir / "pair")
    content = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    settings = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert settings == {
        "card": "Quick",
        "policy": "pair",
        "algorithm": "heuristic",
        "reward": "none",
        "rate": 10,
        "training seed": "none",
    }
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    shown = {info.name.tag for info in experiment.metric_infos}
    assert shown <= tags_of(events, "scalars") and "load/slowdown" in shown


def test_margin_charts_name_tags_that_exist(comparison: Comparison, logdir: Path):
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.util.tensor_util import make_ndarray

    tensor = read(logdir / "comparison").Tensors("custom_scalars__config__")[0].tensor_proto
    layout = layout_pb2.Layout.FromString(make_ndarray(tensor).item())
    charts = layout.category[0].chart
    assert {"slowdown", "TTFT P99, s"} <= {chart.title for chart in charts}
    scalars = tags_of(read(logdir / "lmetric"), "scalars")
    for chart in charts:
        series = chart.margin.series[0]
        assert {series.value, series.lower, series.upper} <= scalars


def test_verdict_as_text(comparison: Comparison, logdir: Path):
    from tensorboard.util.tensor_util import make_ndarray

    text = make_ndarray(read(logdir / "comparison").Tensors("comparison")[0].tensor_proto).item().decode()
    assert "## At 10 requests/s" in text and comparison.findings()[0] in text


def test_a_second_comparison_replaces_the_first(quick_card: Path, tmp_path: Path):
    for _ in range(2):
        compare(quick_card, ["splitwise"], [2.5, 4], seeds=1, logdir=tmp_path)
    assert len(list((tmp_path / "splitwise").iterdir())) == 1
    drawn = points(read(tmp_path / "splitwise"), "load/slowdown")
    assert list(drawn) == [25, 40]  # one of the rates is no whole number: requests per 10 s
    assert not any("interval" in tag for tag in tags_of(read(tmp_path / "splitwise"), "scalars"))  # one seed


def test_equal_contents_give_equal_bytes(tmp_path: Path):
    for name in ("a", "b"):
        file = EventFile(0.0)
        file.scalar("load/x", 3, 1.5, "about")
        file.hparams({"policy": name[:0], "rate": 2.0}, {"load/x": "x"})
        file.write(tmp_path / name)
    assert (tmp_path / "a" / FILE_NAME).read_bytes() == (tmp_path / "b" / FILE_NAME).read_bytes()


def test_names_of_folders():
    assert folder_name("lmetric+threshold") == "lmetric+threshold"
    assert folder_name("../x y") == "_x_y"
    assert folder_name("...") == "_"


def test_page_pins_the_headlines():
    assert page().startswith("http://localhost:6006/?pinnedCards=%5B%7B%22plugin%22")
    assert "load%2Fslowdown" in page() and page().endswith("smoothing=0#timeseries")


def test_without_the_extra_there_is_one_line(quick_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(SplitgymError, match=r"charts need tensorboard; pip install 'splitgym\[learn\]'"):
        compare(quick_card, ["splitwise"], logdir=tmp_path / "tb")
    assert not (tmp_path / "tb").exists()
