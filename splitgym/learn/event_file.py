"""TensorBoard's event files, under names that do not change from run to run.

TensorBoard's own writers put host, process and time into file names, so every run adds a file and its charts show
both. Here a run's folder holds one file, replaced as a whole.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from splitgym.errors import SplitgymError
from splitgym.learn.run_folder import write_whole

FILE_NAME = "events.out.tfevents.splitgym"  # TensorBoard looks for "tfevents"
LEARN_MODULES = ("tensorboard", "matplotlib")


def require_tensorboard() -> None:
    """Check that what charts need is installed.

    Raises:
        SplitgymError: if it is not.
    """
    missing = [name for name in LEARN_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise SplitgymError(
            f"logdir: charts need {' and '.join(missing)}; pip install 'splitgym[learn]', or leave the logdir out"
        )


class EventFile:
    """One run of TensorBoard: collect scalars, images, texts, then `write` them.

    Steps are whole numbers, as TensorBoard wants them.

    Args:
        wall_time_s: when, since 1970; TensorBoard shows it beside pictures. Equal contents and times give equal bytes.
    """

    def __init__(self, wall_time_s: float) -> None:
        self._wall_time_s = wall_time_s
        self._summaries: list[tuple[int, Any]] = []
        self._charts: set[str] = set()

    def scalar(self, tag: str, step: int, value: float, description: str = "") -> None:
        """Add a point of a chart; the description of its first point is the chart's."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        self._summaries.append((step, scalar_pb(tag, value, "" if tag in self._charts else description)))
        self._charts.add(tag)

    def image(self, tag: str, png: bytes, width: int, height: int, description: str = "") -> None:
        """Add a picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.image.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        summary = Summary()
        summary.value.add(
            tag=tag,
            metadata=create_summary_metadata(display_name=None, description=description),
            tensor=make_tensor_proto([str(width).encode(), str(height).encode(), png]),
        )
        self._summaries.append((0, summary))

    def text(self, tag: str, markdown: str) -> None:
        """Add a text."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._summaries.append((0, text_pb(tag, markdown)))

    def margin_charts(self, title: str, charts: Mapping[str, tuple[str, str, str]]) -> None:
        """Add charts of a line with its interval.

        Args:
            title: of the group of charts.
            charts: chart title → tags of the value, the lower and the upper bound.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        chart_protos = []
        for name, (value, lower, upper) in reversed(list(charts.items())):  # the page shows the last first
            series = layout_pb2.MarginChartContent.Series(value=value, lower=lower, upper=upper)
            chart_protos.append(layout_pb2.Chart(title=name, margin=layout_pb2.MarginChartContent(series=[series])))
        layout = layout_pb2.Layout(category=[layout_pb2.Category(title=title, chart=chart_protos)])
        summary = Summary()
        summary.value.add(
            tag=metadata.CONFIG_SUMMARY_TAG,
            metadata=metadata.create_summary_metadata(),
            tensor=make_tensor_proto(layout.SerializeToString()),
        )
        self._summaries.append((0, summary))

    def hparams(self, settings: Mapping[str, str | float], metrics: Mapping[str, str]) -> None:
        """Add a line of the HParams table: ``settings`` of this run, and metrics (tag → shown name)."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        text, number = api_pb2.DATA_TYPE_STRING, api_pb2.DATA_TYPE_FLOAT64
        experiment, start = api_pb2.Experiment(), plugin_data_pb2.SessionStartInfo()
        for name, value in settings.items():
            experiment.hparam_infos.add(name=name, type=text if isinstance(value, str) else number)
            if isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = value
        for tag, name in metrics.items():
            experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag), display_name=name)
        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
        for tag, data in (
            (metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment)),
            (metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)),
            (metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)),
        ):
            summary = Summary()
            summary.value.add(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
            self._summaries.append((0, summary))

    def write(self, folder: Path) -> None:
        """Write the run into ``folder``, in place of an earlier one."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = [Event(wall_time=self._wall_time_s, file_version="brain.Event:2")]
        events += [Event(wall_time=self._wall_time_s, step=step, summary=summary) for step, summary in self._summaries]

        def write(file: BinaryIO) -> None:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString(deterministic=True))

        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE_NAME, write)
