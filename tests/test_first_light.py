"""The first real mix: ORL photographs and a stand-in for synthetic faces, to a report."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xxhash

from shardgen.recordio import RecordFile, read_index, unpack
from tests.support import ROOT, facemix


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, real_faces: Path) -> Path:
    """A folder with data/orl and data/standin made by the command line, and the recipes."""
    folder = tmp_path_factory.mktemp("first_light")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    standin = real_faces / "standin"
    commands = (
        ("recordio", real_faces / "orl", "data/orl", "--origin", "authentic"),
        ("folder", standin / "images", "data/standin", "--origin", "synthetic", "--tags", standin / "identities.csv"),
    )
    for command, samples in zip(commands, (240, 2560), strict=True):
        done = facemix("shard", *command, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["num_samples"] == samples
    return folder


def test_both_sets_verify_to_the_last_byte(workshop: Path) -> None:
    for name in ("orl", "standin"):
        assert facemix("verify", f"data/{name}", "--deep", cwd=workshop).returncode == 0
    damaged = workshop / "damaged"
    for victim in sorted((workshop / "data" / "orl").iterdir()):
        shutil.copytree(workshop / "data" / "orl", damaged)
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / victim.name).write_bytes(content)
        assert facemix("verify", damaged, cwd=workshop).returncode == 1, victim.name
        shutil.rmtree(damaged)


def test_odd_records_keep_exactly_what_decodes(workshop: Path, real_faces: Path) -> None:
    source = real_faces / "odd_records"
    done = facemix("shard", "recordio", source, "data/odd", "--max-rejected", "1", cwd=workshop)
    assert done.returncode == 0, done.stderr
    rejected = (workshop / "data" / "odd" / "rejected.csv").read_text().splitlines()[1:]
    assert sorted(line.split(",")[1] for line in rejected) == ["7", "8", "9"]
    rows = pq.read_table(workshop / "data" / "odd" / "000000.parquet").to_pylist()
    assert sorted(int(row["source"]) for row in rows) == [0, 1, 2, 3, 4, 5, 6, 10]
    file = RecordFile(source / "train.rec")
    keys, offsets = read_index(source / "train.idx")
    offset_of = dict(zip(keys.tolist(), offsets.tolist(), strict=True))
    tar = (workshop / "data" / "odd" / "000000.tar").read_bytes()
    for row in rows:
        image = tar[row["offset"] : row["offset"] + row["size"]]
        assert image == unpack(file.payload(offset_of[int(row["source"])])).image
        assert row["content_hash"] == xxhash.xxh3_128_digest(image)


def test_the_recipe_reaches_its_accuracy(workshop: Path, real_faces: Path) -> None:
    assert facemix("train", "recipes/first_light.yaml", cwd=workshop).returncode == 0
    pairs = f"orl={real_faces / 'orl' / 'orl_val.bin'}"
    done = facemix("eval", "runs/first_light", "--bin", pairs, "--json", cwd=workshop)
    assert done.returncode == 0, done.stderr
    (verified,) = json.loads(done.stdout)["verification"]
    assert verified["accuracy"]["mean"] >= 0.88
    assert (workshop / "runs" / "first_light" / "report.html").exists()


def test_stopped_anywhere_and_resumed_it_sees_the_same_batches(workshop: Path) -> None:
    def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        short = ["training.epochs=0.3", "loader.batch_size=16", "training.log_every=1", f"run=runs/{name}"]
        done = facemix("train", "recipes/first_light.yaml", *short, *options, cwd=workshop)
        assert done.returncode == 0, done.stderr
        return done

    def seen(name: str) -> list[tuple[int, str, float]]:
        lines = map(json.loads, (workshop / "runs" / name / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["batch_crc32"], line["loss"]) for line in lines]

    run("whole")
    for stop in (1, 7, 20):
        run(f"stopped{stop}", "--stop-at", str(stop))
        run(f"stopped{stop}", "--resume")
        assert seen(f"stopped{stop}") == seen("whole")
