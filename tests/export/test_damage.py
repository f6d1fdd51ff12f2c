"""A folder that is damaged or hostile is refused in one line, before memory is taken and inside the folder."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import build, video
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from resq_plugin.errors import ExportError
from resq_plugin.export import OrtStream, export_model, verify
from resq_plugin.export.manifest import Manifest
from resq_plugin.export.parts import read_parts

FRAMES = [frame.numpy() for frame in video(4)]
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEWER = settings(MANY, max_examples=60)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With memory in integers and in float, and a scene threshold."""
    folder = tmp_path_factory.mktemp("export") / "out"
    schedule = {"kind": "scene_change", "threshold": 5.0}
    model = build("plain", "W8A8->W4A4", reference="quantized", interval=3, schedule=schedule)
    export_model(model, video(4), folder, encodings=("1.0.0",))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "out"))


def use(folder: Path) -> bool:
    """Play and verify a folder. Whether it was accepted: then it is sane; else the refusal is one line."""
    try:
        player = OrtStream(folder, threads=1)
        outputs = [player(frame) for frame in FRAMES]
        assert all(isinstance(output, np.ndarray) and output.shape == (2, 4, 6, 8) for output in outputs)
        assert all(np.isfinite(output).all() for output in outputs)
        assert player.state_bytes() < 100_000
        found = verify(folder, threads=1)
        assert found.frames == 10
        assert found.parts
    except ExportError as error:
        refusal = str(error)
    else:
        return True
    assert "\n" not in refusal
    assert len(refusal) < 1000
    return False


# --- mutations ------------------------------------------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 20)
    | st.sampled_from([2**31, 10**10, 2**64, -(10**30), 10**400])
    | st.floats(allow_nan=True)
    | st.sampled_from(["", "frame", "0.z", "output", "float32", "int8", "object", "../../x", "/etc/passwd", "a\nb"])
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "shape", "x"]), inner),
    max_leaves=4,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    if isinstance(value, (dict, list)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from places(item)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[Any], None]:
    """Something that changes a JSON value in one to three places."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["delete", "replace", "add", "swap", "scale"]),
                st.integers(0, 10**6),
                st.integers(0, 10**6),
                JUNK,
            ),
            min_size=1,
            max_size=3,
        )
    )

    def mutate(value: Any) -> None:
        for kind, first, second, junk in steps:
            found = list(places(value))
            if not found:
                return
            (owner, key), (other, other_key) = found[first % len(found)], found[second % len(found)]
            if kind == "delete":
                del owner[key]
            elif kind == "replace":
                owner[key] = junk
            elif kind == "swap":
                owner[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(owner[key])
            elif kind == "scale" and type(owner[key]) in (int, float):
                owner[key] *= second % 7 - 1
            elif isinstance(owner, list):
                owner.insert(key, junk)
            else:
                owner["added"] = junk

    return mutate


@given(mutate=mutations())
@MANY
def test_a_mutated_manifest_is_refused_or_sane(original: Path, mutate: Callable[[Any], None]) -> None:
    path = original / "manifest.json"
    before = path.read_text()
    try:
        values = json.loads(before)
        mutate(values)
        path.write_text(json.dumps(values))
        event(f"accepted: {use(original)}")
    finally:
        path.write_text(before)


@given(where=st.integers(0, 10**6), what=st.binary(min_size=0, max_size=3), cut=st.booleans())
@FEWER
def test_a_manifest_with_other_bytes_is_refused_or_sane(original: Path, where: int, what: bytes, cut: bool) -> None:
    path = original / "manifest.json"
    before = path.read_bytes()
    try:
        start = where % len(before)
        path.write_bytes(before[:start] + what + (b"" if cut else before[start + len(what) :]))
        event(f"accepted: {use(original)}")
    finally:
        path.write_bytes(before)


def repack(folder: Path, name: str, arrays: dict[str, Any]) -> None:
    """Write an archive, and a manifest with its checksum."""
    np.savez_compressed(folder / name, **arrays)
    Manifest.read(folder).write(folder)


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def kept(original: Path) -> Iterator[Path]:
    """The folder, as it was again after the test."""
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    yield original
    for path, content in before.items():
        path.write_bytes(content)


def change(values: dict[str, Any], kind: str, key: str, other: str, shape: list[int], dtype: str) -> None:
    if kind == "delete":
        del values[key]
    elif kind == "swap":
        values[key], values[other] = values[other], values[key]
    elif kind == "rename":
        values[f"{key}x"] = values.pop(key)
    elif kind == "nan" and values[key].dtype.kind == "f":
        values[key] = np.full_like(values[key], np.nan)
    elif kind == "huge" and values[key].dtype.kind == "f":
        values[key] = np.full_like(values[key], 3e38)
    else:
        values[key] = np.zeros(shape, dtype)


@pytest.mark.parametrize("name", ["golden.npz", "parts.npz"])
@given(
    kind=st.sampled_from(["delete", "swap", "rename", "nan", "huge", "other"]),
    first=st.integers(0, 10**6),
    second=st.integers(0, 10**6),
    shape=st.lists(st.integers(0, 30), max_size=4),
    dtype=st.sampled_from(["float32", "int8", "float64", "complex64", "U3", "int64", "bool", "M8[s]"]),
)
@FEWER
def test_other_arrays_in_an_archive_are_refused_or_told(
    kept: Path, name: str, kind: str, first: int, second: int, shape: list[int], dtype: str
) -> None:
    path, manifest = kept / name, (kept / "manifest.json").read_bytes()
    before = path.read_bytes()
    values = arrays_of(path)
    keys = sorted(values)
    change(values, kind, keys[first % len(keys)], keys[second % len(keys)], shape, dtype)
    try:
        repack(kept, name, values)
        event(f"accepted: {use(kept)}")
    finally:
        path.write_bytes(before)
        (kept / "manifest.json").write_bytes(manifest)


@given(mutate=mutations())
@MANY
def test_other_facts_of_parts_are_refused_or_told(original: Path, mutate: Callable[[Any], None]) -> None:
    path, manifest = original / "parts.npz", (original / "manifest.json").read_bytes()
    before, values = path.read_bytes(), arrays_of(path)
    facts = json.loads(values["facts"].tobytes())
    mutate(facts)
    values["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    try:
        repack(original, "parts.npz", values)
        event(f"accepted: {use(original)}")
    finally:
        path.write_bytes(before)
        (original / "manifest.json").write_bytes(manifest)


@pytest.mark.parametrize("name", ["golden.npz", "parts.npz"])
@given(where=st.integers(0, 10**6), what=st.binary(min_size=1, max_size=4))
@FEWER
def test_an_archive_with_other_bytes_is_refused_or_told(original: Path, name: str, where: int, what: bytes) -> None:
    path, manifest = original / name, (original / "manifest.json").read_bytes()
    before = path.read_bytes()
    start = where % len(before)
    try:
        path.write_bytes(before[:start] + what + before[start + len(what) :])
        Manifest.read(original).write(original)
        event(f"accepted: {use(original)}")
    finally:
        path.write_bytes(before)
        (original / "manifest.json").write_bytes(manifest)


# --- one by one -----------------------------------------------------------------------------------------------------


def test_the_folder_itself_is_accepted(folder: Path) -> None:
    assert use(folder)
    assert verify(folder).passed


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def large(values: dict[str, Any]) -> None:
    """20 GB for one memory, in all places that tell its size."""
    shape = [2, 8, 12, 10**8]
    for graph, side in (("keyframe", "outputs"), ("residual", "inputs")):
        next(tensor for tensor in values["graphs"][graph][side] if tensor["name"] == "0.z")["shape"] = shape
    cache = next(cache for cache in values["caches"] if cache["name"] == "0.z")
    size = 4 * 2 * 8 * 12 * 10**8
    values["state_bytes"] += size - cache["bytes"]
    cache["shape"], cache["bytes"] = shape, size


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no files": (lambda v: v["files"].clear(), "files does not list 'golden.npz'"),
    "a graph without checksum": (lambda v: v["files"].pop("residual.onnx"), "files does not list 'residual.onnx'"),
    "a file above": (
        lambda v: v["files"].update({"../../x": v["files"]["golden.npz"]}),
        "'../../x' is no file of an export",
    ),
    "an absolute file": (
        lambda v: v["files"].update({"/etc/passwd": v["files"]["golden.npz"]}),
        "'/etc/passwd' is no file of an export",
    ),
    "no checksum": (lambda v: v["files"]["golden.npz"].update(sha256=""), "files.*has the checksum ''"),
    "20 GB": (large, r"residual\.onnx has .* where the manifest says|keyframe\.onnx has .* where the manifest says"),
    "another size": (lambda v: v["caches"][0].update(bytes=1), "has 1152 bytes, not 1"),
    "a negative side": (lambda v: v["caches"][0].update(shape=[2, -1]), "has the shape"),
    "an object": (lambda v: v["caches"][0].update(dtype="object"), "has the type 'object'"),
    "an unknown key": (lambda v: v.update(magic=1), "has an unknown 'magic'"),
    "no key": (lambda v: v.pop("interval"), "has no 'interval'"),
    "a number as text": (lambda v: v.update(interval="3"), "manifest.interval is '3'"),
    "true as a number": (lambda v: v.update(interval=True), "manifest.interval is True"),
    "interval 0": (lambda v: v.update(interval=0), "interval is 0"),
    "no threshold": (lambda v: v.update(scene_threshold=float("nan")), "manifest.scene_threshold is nan"),
    "no outputs": (lambda v: v.update(outputs=[]), "returns"),
    "a foreign graph": (
        lambda v: v["graphs"].update(other=v["graphs"]["keyframe"]),
        "files does not list 'other.onnx'",
    ),
    "no memory": (lambda v: v.update(caches=[], state_bytes=0), "memory and graphs do not fit"),
    "another format": (lambda v: v.update(format="webpack"), "has no format 'resq-plugin export'"),
}


@pytest.mark.parametrize("name", list(MANIFESTS))
def test_a_hostile_manifest_is_told(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, text = MANIFESTS[name]
    edit(folder, change)
    monkeypatch.setattr(OrtStream, "allocate", lambda _: pytest.fail("memory was taken"))
    for open_folder in (OrtStream, verify):
        with pytest.raises(ExportError, match=text) as caught:
            open_folder(folder)
        assert "\n" not in str(caught.value)


def test_a_manifest_that_is_too_deep_or_too_long_is_told(folder: Path) -> None:
    for content, text in (("[" * 10**5, "nested too deeply"), (" " * (2**26 + 1), "more than 67108864 bytes")):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(ExportError, match=rf"manifest\.json is damaged \(ValueError: it (is|has) {text}"):
            OrtStream(folder)


def test_a_graph_of_another_network_is_told(folder: Path, tmp_path: Path) -> None:
    export_model(build("residual", "W8A8->W4A4"), video(2), tmp_path / "other", encodings=())
    for name in ("keyframe.onnx", "residual.onnx"):
        before = (folder / name).read_bytes()
        for content in ((tmp_path / "other" / name).read_bytes(), before[: len(before) // 2], b"", b"no graph"):
            (folder / name).write_bytes(content)
            Manifest.read(folder).write(folder)
            assert not use(folder)
        (folder / name).write_bytes(before)


def test_a_graph_does_not_open_files_outside(folder: Path) -> None:
    model = onnx.load(folder / "keyframe.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "0.weight")
    (folder.parent / "secret").write_bytes(b"\1" * 10_000)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../secret"
    (folder / "keyframe.onnx").write_bytes(model.SerializeToString())
    Manifest.read(folder).write(folder)
    with pytest.raises(ExportError, match="ONNX Runtime cannot open"):
        OrtStream(folder)


def write_entry(path: Path, name: str, header: dict[str, Any], content: bytes) -> None:
    """Replace an array of an archive by a header of any kind and these bytes."""
    with zipfile.ZipFile(path) as archive:
        rest = {entry: archive.read(entry) for entry in archive.namelist() if entry != f"{name}.npy"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in rest.items():
            archive.writestr(entry, data)
        with archive.open(f"{name}.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(content)


@pytest.mark.parametrize(
    ("archive", "entry"), [("golden.npz", "frame/0"), ("golden.npz", "keyframe/0/output"), ("parts.npz", "facts")]
)
def test_an_array_of_20_GB_is_told_by_its_header(folder: Path, archive: str, entry: str) -> None:
    header = {"descr": "|u1" if entry == "facts" else "|i1", "fortran_order": False, "shape": (20 * 10**9,)}
    write_entry(folder / archive, entry, header, b"\0" * 1000)
    Manifest.read(folder).write(folder)
    with pytest.raises(ExportError, match=rf"{archive} is missing or damaged .*{entry}' is \(20000000000,\)"):
        verify(folder)


def test_a_part_of_20_GB_is_told_before_its_numbers_are_made_up(folder: Path) -> None:
    values = arrays_of(folder / "parts.npz")
    facts = json.loads(values["facts"].tobytes())
    part = next(part for part in facts["keyframe"]["parts"] if part["name"] == "0@0.z")
    part["shape"] = [2, 8, 12, 10**8]
    values["keyframe/0@0.z"] = np.zeros(512, np.float32)
    values["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    repack(folder, "parts.npz", values)
    with pytest.raises(ExportError, match=r"parts\.npz is not of keyframe\.onnx: '0@0\.z' does not fit"):
        verify(folder)


def test_a_check_cannot_be_taken_out_of_the_parts(folder: Path) -> None:
    values = arrays_of(folder / "parts.npz")
    facts = json.loads(values["facts"].tobytes())
    for what in ("parts", "cuts"):
        facts["residual"][what] = [entry for entry in facts["residual"][what] if entry["name"] != "3@0.z"]
    del values["residual/3@0.z"]
    values["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    repack(folder, "parts.npz", values)
    with pytest.raises(ExportError, match=r"parts\.npz is not of residual\.onnx: '3@0\.z' does not fit"):
        verify(folder)
    del facts["residual"]
    values = {key: value for key, value in values.items() if not key.startswith("residual/")}
    values["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    repack(folder, "parts.npz", values)
    with pytest.raises(ExportError, match=r"parts\.npz has parts of keyframe; export the model again"):
        verify(folder)


def test_numbers_that_are_none_do_not_pass(folder: Path) -> None:
    values = arrays_of(folder / "parts.npz")
    key = "residual/3@0.z"
    values[key] = np.full_like(values[key], np.nan)
    repack(folder, "parts.npz", values)
    found = verify(folder)
    assert not found.passed
    assert [part.name for part in found.wrong] == ["3@0.z"]
    assert read_parts(folder / "parts.npz")[0].keys() == {"keyframe", "residual"}


def test_no_file_is_executed(folder: Path) -> None:
    np.savez(folder / "golden.npz", x=np.array([object()], dtype=object))
    Manifest.read(folder).write(folder)
    with pytest.raises(ExportError, match=r"golden\.npz is missing or damaged"):
        verify(folder)
