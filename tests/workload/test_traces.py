"""Readers: every format, exactly; every mistake, in one line that names its place."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitgym.errors import SplitgymError
from splitgym.workload import Requests, predict_output, read_trace, write_trace

PLAIN = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("text", "arrival_s", "prompt", "output"),
    [
        (PLAIN + "0.1,3,4\n0.1,5,6\n", [0.1, 0.1], [3, 5], [4, 6]),
        ("\ufeff" + PLAIN.replace("\n", "\r\n") + " 7.25 , 3,4\r\n\r\n", [7.25], [3], [4]),
        ("request_id," + PLAIN + "9,0.3,1,2", [0.3], [1], [2]),
        (AZURE + "2023-11-16 18:17:03.979960,8,9\n2023-11-16 18:17:04.03196,3,7", [0, 0.052], [8, 3], [9, 7]),
        (AZURE + "2024-05-10 23:59:59.5Z,1,2\n2024-05-11 00:00:01+00:00,3,4\n", [0, 1.5], [1, 3], [2, 4]),
        (
            "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
            "0,2,0,0.125,1,5,6\n",
            [0.125], [5], [6],
        ),
        ('{"timestamp": 27482, "input_length": 9, "output_length": 5, "hash_ids": []}\n', [27.482], [9], [5]),
    ],
    ids=["plain", "bom-crlf-blanks", "more-columns", "azure-2023", "azure-2024", "published", "mooncake"],
)  # fmt: skip
@pytest.mark.parametrize("compressed", [False, True])
def test_formats_are_told_from_contents(
    tmp_path: Path, text: str, arrival_s: list[float], prompt: list[int], output: list[int], compressed: bool
) -> None:
    path = tmp_path / "any-name"
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    requests = read_trace(path)
    assert requests.arrival_s.tolist() == arrival_s
    assert requests.prompt_tokens.tolist() == prompt
    assert requests.output_tokens.tolist() == output


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        (PLAIN, ["no requests"]),
        ("a,b,c\n1,2,3\n", ["line 1", "'a,b,c'", "arrival_s,prompt_tokens,output_tokens", "ContextTokens"]),
        ("arrival_s," + PLAIN + "0,0,1,1\n", ["line 1", "two columns 'arrival_s'"]),
        (PLAIN + "0,1,1\n1,-5,3\n", ["line 3", "prompt_tokens", "'-5'", "below 1"]),
        (PLAIN + "0,1,0\n", ["line 2", "output_tokens", "'0'", "below 1"]),
        (PLAIN + "0,1,2\n\n1,abc,3\n", ["line 4", "prompt_tokens", "'abc'", "not a number"]),
        (PLAIN + "0,1_0,2\n", ["line 2", "'1_0'", "not a number"]),
        (PLAIN + "0,,2\n", ["line 2", "prompt_tokens", "nothing", "not a number"]),
        (PLAIN + "0,1.5,2\n", ["line 2", "'1.5'", "not a whole number"]),
        (PLAIN + "0,1e300,2\n", ["line 2", "'1e300'", "too large"]),
        (PLAIN + "nan,1,2\n", ["line 2", "arrival_s", "'nan'", "finite"]),
        (PLAIN + "0,1,2\ninf,1,2\n", ["line 3", "arrival_s", "'inf'", "finite"]),
        (PLAIN + "-1,1,2\n", ["line 2", "arrival_s", "'-1'", "negative"]),
        (PLAIN + "1,1,2\n0.5,1,2\n", ["line 3", "arrival_s", "'0.5'", "sort"]),
        (PLAIN + "0,1,2\n0,1\n", ["line 3", "2 columns", "3"]),
        (AZURE + "2023-11-16 18:17:03,1,1\nnow,1,1\n", ["line 3", "TIMESTAMP", "'now'", "not a time"]),
        (AZURE + "2023-11-16 18:17:03,1,1\n2023-11-16 18:17:02,1,1\n", ["line 3", "TIMESTAMP", "sort"]),
        ('{"timestamp": 0, "input_length": 1, "output_length": 2}\n{bad\n', ["line 2", "JSON"]),
        ('{"timestamp": 0, "output_length": 2}\n', ["line 1", "'input_length'"]),
        ('{"timestamp": 0, "input_length": "x", "output_length": 2}\n', ["line 1", "input_length", "'x'"]),
        ('{"timestamp": 0, "input_length": true, "output_length": 2}\n', ["line 1", "input_length", "True"]),
        ('{"timestamp": 0, "input_length": 1, "output_length": -2}\n', ["line 1", "output_length", "below"]),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 2}\n', ["line 1", "timestamp", "finite"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_its_place(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(SplitgymError) as error:
        read_trace(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    for expected in parts:
        assert expected in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    damaged = {
        "cut.csv.gz": (gzip.compress((PLAIN + "0,1,2\n" * 99).encode())[:40], "gzip"),
        "cut.parquet": (b"PAR1 and no more", "Parquet"),
        "latin.csv": (PLAIN.encode() + b"0,\xff\xfe,2\n", "UTF-8"),
    }
    for name, (data, word) in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SplitgymError, match=f"{name}: .*{word}"):
            read_trace(tmp_path / name)
    with pytest.raises(SplitgymError, match=r"absent.csv: no such trace file; check the path"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(SplitgymError, match="a folder"):
        read_trace(tmp_path)


def test_parquet_mistakes_name_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    pq.write_table(pa.table({"arrival_s": [0.0, 1.0], "prompt_tokens": [5, None], "output_tokens": [1, 1]}), path)
    with pytest.raises(SplitgymError, match="row 2: prompt_tokens: nothing"):
        read_trace(path)
    pq.write_table(pa.table({"arrival_s": [0.0], "prompt_tokens": [5]}), path)
    with pytest.raises(SplitgymError, match="no column 'output_tokens'"):
        read_trace(path)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 1e9), st.integers(1, 2**31), st.integers(1, 2**31)), min_size=1, max_size=30),
    suffix=st.sampled_from([".csv", ".csv.gz", ".parquet"]),
)
def test_what_is_written_is_read_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, int]], suffix: str
) -> None:
    arrival_s = np.sort(np.array([row[0] for row in rows]))
    prompt, output = (np.array([row[i] for row in rows], dtype=np.int64) for i in (1, 2))
    path = tmp_path_factory.mktemp("round-trip") / f"trace{suffix}"
    write_trace(Requests(arrival_s, prompt, output, np.ones(len(rows))), path)
    read = read_trace(path)
    assert np.array_equal(read.arrival_s, arrival_s)
    assert np.array_equal(read.prompt_tokens, prompt)
    assert np.array_equal(read.output_tokens, output)


def test_prediction_is_the_mean_output_by_prompt_decile() -> None:
    prompt = np.arange(1, 101)
    output = prompt * 3
    predicted = predict_output(prompt, prompt, output)
    assert predicted[0] == pytest.approx(3 * 5.5)  # prompts 1 to 10
    assert predicted[9] == predicted[0]
    assert predicted[10] == pytest.approx(3 * 15.5)
    assert predict_output(np.array([10**6]), prompt, output)[0] == pytest.approx(3 * 95.5)
    constant = np.full(7, 64)
    assert predict_output(constant, constant, np.arange(1, 8)).tolist() == [4.0] * 7


@pytest.mark.parametrize(
    ("file", "requests", "mean_prompt"),
    [
        ("data/azure/AzureLLMInferenceTrace_code.csv", 8819, 2048),
        ("data/azure/AzureLLMInferenceTrace_conv.csv", 19366, 1155),
        ("data/mooncake/conversation_trace.jsonl", 12031, 12035),
        ("reference/splitwise-sim/traces/conv70.csv.gz", 8362, 1155),
    ],
)
def test_real_traces(shared: Path, file: str, requests: int, mean_prompt: float) -> None:
    trace = read_trace(shared / file)
    assert len(trace) == requests
    assert trace.prompt_tokens.mean() == pytest.approx(mean_prompt, rel=0.05)
    # deciles leave the overall mean where it is
    assert trace.predicted_output_tokens.mean() == pytest.approx(trace.output_tokens.mean(), rel=1e-9)
