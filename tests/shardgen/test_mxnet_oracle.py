"""Our RecordIO against MXNet itself, in an environment of its own."""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.export import export_recordio
from shardgen.inputs.records import open_recordio
from shardgen.procedural import draw_face, encode
from shardgen.recordio import MAGIC, RecordFile, RecordWriter, pack, read_index, unpack, write_insightface
from shardgen.tags import no_tags
from tests.oracles import mxnet_python

SCRIPT = Path(__file__).parent / "mxnet_script.py"


@pytest.fixture(scope="module")
def oracle() -> Path:
    return mxnet_python()


def ask(oracle: Path, verb: str, stem: Path) -> str:
    done = subprocess.run([oracle, "-W", "ignore", SCRIPT, verb, stem], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_mxnet_sees(oracle: Path, stem: Path) -> dict[int, object]:
    records = map(json.loads, ask(oracle, "read", stem).splitlines())
    return {record.pop("key"): record for record in records}


def as_we_see(stem: Path) -> dict[int, object]:
    file = RecordFile(stem.with_suffix(".rec"))
    keys, offsets = read_index(stem.with_suffix(".idx"))
    seen: dict[int, object] = {}
    for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True):
        record = unpack(file.payload(offset))
        digest = hashlib.sha256(record.image).hexdigest()
        seen[key] = {"labels": list(record.labels), "id": record.id, "bytes": len(record.image), "sha256": digest}
    return seen


@pytest.mark.parametrize("name", ["orl", "odd_records"])
def test_mxnet_reads_the_same_records_from_real_files(oracle: Path, real_faces: Path, name: str) -> None:
    stem = real_faces / name / "train"
    assert as_we_see(stem) == as_mxnet_sees(oracle, stem)


def test_we_read_what_mxnet_wrote(oracle: Path, tmp_path: Path) -> None:
    ask(oracle, "write", tmp_path / "train")
    ours = as_we_see(tmp_path / "train")
    assert ours == as_mxnet_sees(oracle, tmp_path / "train")
    assert len(ours) == 200


def test_mxnet_reads_what_we_wrote(oracle: Path, tmp_path: Path) -> None:
    magic = MAGIC.to_bytes(4, "little")
    rng = np.random.default_rng(0)
    images = [magic * (size % 5) + rng.bytes(size) + magic + rng.bytes(size % 7) for size in range(0, 300, 3)]
    with RecordWriter(tmp_path / "train") as writer:
        for key, image in enumerate(images):
            writer.write(key, pack([float(key)] if key % 5 else [float(key), 2.0], key, image))
    seen = as_mxnet_sees(oracle, tmp_path / "train")
    assert seen == as_we_see(tmp_path / "train")
    assert [seen[key]["sha256"] for key in range(len(images))] == [  # type: ignore[index]
        hashlib.sha256(image).hexdigest() for image in images
    ]


def test_mxnet_and_we_write_the_same_bytes(oracle: Path, tmp_path: Path) -> None:
    ask(oracle, "write", tmp_path / "theirs")
    file = RecordFile(tmp_path / "theirs.rec")
    keys, offsets = read_index(tmp_path / "theirs.idx")
    with RecordWriter(tmp_path / "ours") as writer:
        for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True):
            writer.write(key, file.payload(offset))
    assert (tmp_path / "ours.rec").read_bytes() == (tmp_path / "theirs.rec").read_bytes()


def test_mxnet_reads_our_insightface_layout(oracle: Path, tmp_path: Path) -> None:
    faces = [[encode(draw_face(0, identity, image)) for image in range(3)] for identity in range(4)]
    write_insightface(tmp_path, faces)
    seen = as_mxnet_sees(oracle, tmp_path / "train")
    assert seen[0]["labels"] == [13.0, 17.0]  # type: ignore[index]
    assert [seen[key]["labels"] for key in range(13, 17)] == [  # type: ignore[index]
        [1.0, 4.0],
        [4.0, 7.0],
        [7.0, 10.0],
        [10.0, 13.0],
    ]
    assert seen[5]["sha256"] == hashlib.sha256(faces[1][1]).hexdigest()  # type: ignore[index]


def test_mxnet_reads_our_export(oracle: Path, tmp_path: Path) -> None:
    faces = [[encode(draw_face(0, identity, image)) for image in range(3)] for identity in range(4)]
    faces[2][1] += bytes(-len(faces[2][1]) % 4) + MAGIC.to_bytes(4, "little") * 2  # a record of three parts
    write_insightface(tmp_path / "raw", faces)
    source = open_recordio(tmp_path / "raw")
    config = ShardConfig(name="faces", origin="authentic", shard_samples=5)
    convert(source, no_tags(len(source)), tmp_path / "set", config)
    export_recordio(tmp_path / "set", tmp_path / "out")
    seen = as_mxnet_sees(oracle, tmp_path / "out" / "train")
    labels = {key: [(key - 1) // 3] for key in range(1, 13)}
    ranges = {13 + identity: [1 + 3 * identity, 4 + 3 * identity] for identity in range(4)}
    assert {key: record["labels"] for key, record in seen.items()} == labels | ranges | {0: [13, 17]}  # type: ignore[index]
    assert [seen[key]["sha256"] for key in range(1, 13)] == [  # type: ignore[index]
        hashlib.sha256(face).hexdigest() for images in faces for face in images
    ]
