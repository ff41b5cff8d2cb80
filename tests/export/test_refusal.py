"""What is damaged, forged, of another version, or decides otherwise is refused, in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitgym.errors import SplitgymError
from splitgym.export import Bundle, bundle_policy, export_policy
from splitgym.export import manifest as manifests
from splitgym.export.container import (
    GOLDEN,
    MANIFEST,
    NETWORK,
    pack,
    read_files,
    sha256,
    unpack,
    write_files,
)
from splitgym.export.golden import Golden
from tests.export.conftest import Bundles

Files = dict[str, bytes]


def refused(load: Callable[[], object], match: str = ".") -> None:
    with pytest.raises(SplitgymError, match=match) as caught:
        load()
    assert "\n" not in str(caught.value)


def signed(files: Files, change: Callable[[dict[str, Any]], object] = lambda content: None) -> Files:
    """``files`` with a changed manifest whose digests are right: what somebody else's exporter might write."""
    content = json.loads(files[MANIFEST])
    del content["digest"]
    content["files"] = {name: sha256(file) for name, file in files.items() if name != MANIFEST}
    change(content)
    digest = sha256(manifests._text(content))
    return {**files, MANIFEST: manifests._text(content | {"digest": digest})}


@pytest.fixture(scope="module")
def files(bundle_of: Bundles) -> Files:
    return read_files(bundle_of("routing", "sample"))


def test_every_byte_of_a_small_zip_counts() -> None:
    """Headers, names, padding, directory, digest: each position, three ways to change it."""
    content = pack({"CARD.md": b"a card", MANIFEST: b"{}", GOLDEN: b"\0" * 9, NETWORK: b""})
    assert unpack(content, "x")["CARD.md"] == b"a card"
    for position in range(len(content)):
        for bits in (0x01, 0x20, 0xFF):
            changed = bytearray(content)
            changed[position] ^= bits
            refused(lambda changed=changed: unpack(bytes(changed), "x"))  # type: ignore[misc]
    for other in (content[:-1], content[1:], content + b"\0", b"\0" + content, content + content, b"", b"PK"):
        refused(lambda other=other: unpack(other, "x"))  # type: ignore[misc]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_a_bundle_is_refused(data: st.DataObject, bundle_of: Bundles, tmp_path: Path) -> None:
    content = bytearray(bundle_of("routing", "sample").read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.zip"
    path.write_bytes(bytes(content))
    refused(lambda: Bundle.load(path), "flipped.zip")


@pytest.mark.parametrize("name", ["routing", "splitwise"])
def test_a_flipped_byte_in_a_directory_is_refused(name: str, bundle_of: Bundles) -> None:
    """Every 11th byte of the manifest, and of each other file 60 in even steps."""
    files = read_files(bundle_of(name))
    for file, content in files.items():
        step = 11 if file == MANIFEST else max(len(content) // 60, 1)
        for position in range(0, len(content), step):
            changed = bytearray(content)
            changed[position] ^= 0x20  # in JSON: another case, or a blank for a NUL
            refused(lambda: manifests.Manifest.of({**files, file: bytes(changed)}, "x"), "x: ")  # noqa: B023
    for file in files:
        refused(lambda: manifests.Manifest.of({n: c for n, c in files.items() if n != file}, "x"), file)  # noqa: B023


def test_manifests_written_otherwise_are_refused(files: Files) -> None:
    content = json.loads(files[MANIFEST])
    twice = files[MANIFEST].replace(b'{\n  "format"', b'{\n  "format": "x",\n  "format"', 1)
    for text in (json.dumps(content).encode(), twice, b"[]", b"null", b"{", b"\xff", b"[" * 100_000):
        refused(lambda text=text: Bundle({**files, MANIFEST: text}, "x"), "damaged")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "splitgym-bundle 2; this splitgym reads splitgym-bundle 1"),
        (lambda c: c.update(format="other"), "other 1; this splitgym reads"),
        (lambda c: c["features"].update(sha256="0" * 64), "features: its table has hash 000000000000"),
        (lambda c: c.update(golden_tolerance=1.0), "features"),
        (lambda c: c["files"].pop(NETWORK), "policy.onnx: missing, or not what the manifest lists"),
        (lambda c: c.update(files=3), "files: missing"),
        (lambda c: c.pop("fallback"), "fallback"),
        (lambda c: c.update(fallback=None), "fallback"),
        (lambda c: c["network"].update(form="none"), "ill-typed"),
        (lambda c: c["network"].update(decision="guess"), "ill-typed"),
        (lambda c: c["network"].update(more=1), "ill-typed"),
        (lambda c: c["network"].update(rows=2), "largest_cluster"),
        (lambda c: c["network"].update(rows="10000"), "largest_cluster"),
        (lambda c: c.update(network=None), "ill-typed: heuristic"),
        (lambda c: c.update(largest_cluster=4), "its bundle is for 1 to 4 machines, here are 8"),
        (lambda c: c["network"].update(form="prompt_machine"), "view 0: .* 2 draws; it takes 1"),
        (lambda c: c["network"].update(form="token_machine", decision="argmax"), "8 choices, its network scores 16"),
        (lambda c: c["network"].update(form="machine_role"), "view 0"),
        (lambda c: c["network"].update(decision="argmax"), r"view \d+: decided"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    files: Files, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    refused(lambda: Bundle(signed(files, change), "x"), message)


@pytest.mark.parametrize("name", ["routing", "lmetric"])
def test_an_unknown_fallback_is_refused(bundle_of: Bundles, tmp_path: Path, name: str) -> None:
    """It is looked for when the policy is loaded, not when the policy has failed."""
    files = read_files(bundle_of(name))
    path = tmp_path / "bundle.zip"
    write_files(path, signed(files, lambda content: content["fallback"]["routing"].update(policy="lmetrik")))
    refused(lambda: bundle_policy(path), r"bundle\.zip: fallback: unknown heuristic 'lmetrik'; did you mean 'lmetric'")


def with_golden(files: Files, **changes: Any) -> Files:
    golden = dataclasses.replace(Golden.of(files[GOLDEN], "x"), **changes)
    return signed({**files, GOLDEN: golden.to_bytes()})


def test_golden_views_that_come_out_otherwise_are_refused(files: Files) -> None:
    golden = Golden.of(files[GOLDEN], "x")
    Bundle(with_golden(files, scores=golden.scores + np.float32(5e-5)), "x")  # within the tolerance
    refused(lambda: Bundle(with_golden(files, scores=golden.scores + np.float32(2e-4)), "x"), "view 0: scores differ")
    refused(lambda: Bundle(with_golden(files, scores=golden.scores * np.float32(np.nan)), "x"), "scores differ")
    chosen = golden.chosen.copy()
    chosen[200] = chosen[200, ::-1]
    refused(lambda: Bundle(with_golden(files, chosen=chosen), "x"), "view 200: decided")
    machines = golden.machines[:, :, ::-1].copy()
    refused(lambda: Bundle(with_golden(files, machines=machines), "x"), "view 0")
    refused(lambda: Bundle(with_golden(files, chosen=chosen[:, :1]), "x"), "chosen is")
    refused(lambda: Bundle(with_golden(files, role_mask=golden.role_mask * 1.0), "x"), "role_mask is float64")
    refused(lambda: Bundle(with_golden(files, kind=golden.kind + 9), "x"), "view 0")
    refused(lambda: Bundle(with_golden(files, kind=golden.kind[:9]), "x"), "9 views of 8 machines; a bundle has 256")
    refused(lambda: Bundle(with_golden(files, draws=golden.draws[:, :1]), "x"), "1 draws; it takes 2")


def test_a_heuristic_that_decides_otherwise_is_refused(bundle_of: Bundles, tmp_path: Path) -> None:
    for name in ("splitwise", "random"):
        files = read_files(bundle_of(name))
        golden = Golden.of(files[GOLDEN], "x")
        chosen = np.where(np.arange(256)[:, None] == 100, golden.chosen[:, ::-1], golden.chosen)
        path = tmp_path / "x.zip"
        path.write_bytes(pack(with_golden(files, chosen=chosen)))
        refused(lambda: bundle_policy(path), "view 100: decided")  # noqa: B023
        write_files(path, signed(files, lambda c: c["heuristic"]["routing"].update(policy="nobody")))
        refused(lambda: bundle_policy(path), "unknown heuristic 'nobody'")  # noqa: B023
        write_files(path, signed(files, lambda c: c["heuristic"]["routing"].update(params={"x": 1})))
        refused(lambda: bundle_policy(path), "unknown parameter 'x'")  # noqa: B023
    write_files(path, with_golden(files, seed=np.array([1])))
    refused(lambda: bundle_policy(path), "decided")  # a draw of another seed


def test_networks_that_are_none_are_refused(files: Files, bundle_of: Bundles) -> None:
    refused(lambda: Bundle(signed({**files, NETWORK: b"nonsense"}), "x"), "policy.onnx: ")
    padded = read_files(bundle_of("mlp-padded", "sample"))[NETWORK]
    refused(lambda: Bundle(signed({**files, NETWORK: padded}), "x"), "view 0")
    refused(lambda: Bundle(signed({n: c for n, c in files.items() if n != NETWORK}), "x"), "policy.onnx: missing")
    refused(lambda: Bundle(signed({n: c for n, c in files.items() if n != GOLDEN}), "x"), "golden.npz: missing")


def test_pickles_and_bombs_in_golden_are_refused(files: Files) -> None:
    arrays = dataclasses.asdict(Golden.of(files[GOLDEN], "x"))
    for changes, message in (
        ({"kind": np.array([{}] * 256, object)}, "pickle"),
        ({"kind": np.zeros(1 << 26)}, "unpacks to more than"),
        ({"more": np.zeros(1)}, "other arrays"),
    ):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{**arrays, **changes})
        refused(lambda b=buffer: Bundle(signed({**files, GOLDEN: b.getvalue()}), "x"), message)  # type: ignore[misc]


def forged(write: Callable[[zipfile.ZipFile], object]) -> bytes:
    """Some other zip with a right digest at its end."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        write(archive)
        archive.comment = b"sha256:" + b"0" * 64
    body = buffer.getvalue()[:-64]
    return body + sha256(body).encode()


def test_other_zips_are_refused_even_with_a_right_digest(files: Files) -> None:
    refused(lambda: unpack(forged(lambda z: z.writestr("../evil", "x")), "x"), "which no bundle does")
    refused(lambda: unpack(forged(lambda z: z.writestr(MANIFEST, "x", zipfile.ZIP_DEFLATED)), "x"), "no bundle does")
    refused(lambda: unpack(b"sha256:" + sha256(b"sha256:").encode(), "x"), "no zip")
    refused(lambda: manifests.Manifest.of(unpack(forged(lambda z: None), "x"), "x"), "no manifest.json")


def test_places_that_do_not_serve_are_told(bundle_of: Bundles, tmp_path: Path) -> None:
    refused(lambda: Bundle.load(tmp_path / "none.zip"), "No such file")
    refused(lambda: Bundle.load(tmp_path), "no manifest.json")
    refused(lambda: Bundle.load(bundle_of("splitwise")), "holds the heuristic 'splitwise', no network")
    (tmp_path / "text.zip").write_text("hello")
    refused(lambda: Bundle.load(tmp_path / "text.zip"), "no bundle, or its end is damaged")
    full = tmp_path / "full"
    full.mkdir()
    (full / "work.txt").write_text("mine")
    refused(lambda: export_policy("random", full), "a folder that is no bundle is in the way")
    refused(lambda: export_policy("random", tmp_path / "text.zip" / "x.zip"), "cannot be written")
    refused(lambda: export_policy("random", full / "work.txt"), "a file is in the way")


def test_a_bundle_is_replaced_whole(bundle_of: Bundles, tmp_path: Path) -> None:
    files, folder = read_files(bundle_of("routing", "sample")), tmp_path / "bundle"
    write_files(folder, files)
    export_policy("random", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["CARD.md", "golden.npz", "manifest.json"]
    assert bundle_policy(folder).name == "random"
