"""The peers do the same work: every record, the same bytes, the same members."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.environments import Unbuildable, environment_python
from benchmarks.peers import PEERS
from shardgen.inputs.records import open_recordio
from shardgen.procedural import draw_recordio
from tests.support import ROOT

NUM_RECORDS = 12
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's


@pytest.fixture(scope="module")
def rec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw_recordio(folder, 0, range(NUM_RECORDS // 3), images=3)
    return folder / "train.rec"


def members_of(folder: Path) -> dict[str, bytes]:
    """Return the members of all tars below a folder."""
    members: dict[str, bytes] = {}
    for tar in folder.rglob("*.tar"):
        with tarfile.open(tar) as archive:
            opened = {member.name: archive.extractfile(member) for member in archive}
            members |= {name: stream.read() for name, stream in opened.items() if stream}
    return members


def measure(python: Path, name: str, rec: Path, out: Path) -> dict[str, float]:
    command = [str(python), "-W", "ignore", "-m", "benchmarks.peers", name, str(rec), str(rec), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run: dict[str, float] = json.loads(done.stdout)
    return run


@pytest.fixture
def ours(rec: Path, tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "ours").mkdir()
    PEERS["facemix, headers"](rec)(tmp_path / "ours")
    members = members_of(tmp_path / "ours")
    assert len(members) == 2 * NUM_RECORDS
    return members


@pytest.mark.parametrize("name", ["tarfile", "webdataset jpg+json"])
def test_like_for_like_means_the_same_members(rec: Path, tmp_path: Path, ours: dict[str, bytes], name: str) -> None:
    (tmp_path / "theirs").mkdir()
    PEERS[name](rec)(tmp_path / "theirs")
    theirs = members_of(tmp_path / "theirs")
    assert theirs.keys() == ours.keys()
    for member, content in ours.items():
        if member.endswith(".json"):
            assert json.loads(theirs[member]) == json.loads(content)
        else:
            assert theirs[member] == content


def test_the_smallest_webdataset_has_image_and_label(rec: Path, tmp_path: Path) -> None:
    PEERS["webdataset jpg+cls"](rec)(tmp_path)
    members = members_of(tmp_path)
    source = open_recordio(rec)
    for record in range(NUM_RECORDS):
        assert members[f"{record:08x}.jpg"] == source.read(record)
        assert int(members[f"{record:08x}.cls"]) == source.labels[record]


@pytest.mark.parametrize("name", ["copy", "promises"])
def test_the_copy_is_one(name: str, rec: Path, tmp_path: Path) -> None:
    PEERS[name](rec)(tmp_path)
    assert (tmp_path / "copy.rec").read_bytes() == rec.read_bytes()


@pytest.mark.parametrize("name", ["mxnet", "mds"])
def test_a_peer_with_an_environment_of_its_own_writes_every_image(rec: Path, tmp_path: Path, name: str) -> None:
    try:
        python = environment_python(name, build=False)
    except Unbuildable as error:
        pytest.skip(str(error))
    assert measure(python, name, rec, tmp_path)["items"] == NUM_RECORDS
    written = b"".join(path.read_bytes() for path in (tmp_path / "measured").rglob("*") if path.is_file())
    source = open_recordio(rec)
    assert all(source.read(record) in written for record in range(NUM_RECORDS))


def test_a_peer_reports_one_run_as_json(rec: Path, tmp_path: Path) -> None:
    run = measure(Path(sys.executable), "decode", rec, tmp_path)
    assert run["items"] == NUM_RECORDS
    assert run["cpu_seconds"] > 0
    assert run["peak_bytes"] > 10 << 20
