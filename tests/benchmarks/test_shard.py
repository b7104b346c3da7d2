"""The tables of the conversion benchmark say what was measured."""

from pathlib import Path

import pytest

from benchmarks import environments, shard
from benchmarks.timing import Run
from shardgen.inputs.records import open_recordio
from shardgen.procedural import draw_face, encode

MEBIBYTE = 1 << 20


def fake_run(_: object, peer: str, records: int, python: str = "") -> Run:
    """Let facemix cost 20 us a record, ShardWriter eight times that, decoding on all cores 100 us after 1.5 s."""
    seconds = {"copy": 2e-6, "facemix, headers": 20e-6, "facemix, decoding": 100e-6, "decode": 80e-6}
    start = 1.5 if peer == "facemix, decoding" else 0.0
    spent = start + seconds.get(peer, 160e-6) * records
    peak_bytes = 100 * MEBIBYTE + MEBIBYTE // 2 * records
    return Run(records, cpu_seconds=spent, system_seconds=spent / 4, wall_seconds=spent / 2, peak_bytes=peak_bytes)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(shard, "_run", fake_run)
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    shard.main(smoke=True)
    return capsys.readouterr().out


def test_ratios_are_of_cpu_time(printed: str) -> None:
    assert "| facemix shard --check header | 20.0 | 10.0 | 50,000 | 8.00 | 0.10 |" in printed


def test_a_peer_without_its_environment_is_left_out_in_one_line(printed: str) -> None:
    assert "MosaicML MDSWriter is left out: the environment mds is not built yet\n" in printed
    assert "| MosaicML MDSWriter |" not in printed


def test_starting_is_told_apart_from_what_each_record_costs(printed: str) -> None:
    assert "| facemix shard --check decode, each record from 100 to 200 | 100 | 50 | 0.80 | 0.80 |" in printed
    assert "Starting and ending, workers included: 0.8 s, 1.5 s of CPU time." in printed


def test_growth_is_from_the_smallest_to_the_largest_set(printed: str) -> None:
    assert "| 100 | 20.0 | 15.0 | 10.0 | 150.0 | 2.0 |\n| 200 | 20.0 | 15.0 | 10.0 | 200.0 | 2.0 |" in printed
    assert "| last by first | 1.00 | 1.00 | 1.00 | 1.33 | 1.00 |" in printed


def test_a_run_too_short_to_show_time_outside_of_the_kernel_has_no_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def all_in_kernel(_: object, peer: str, records: int, python: str = "") -> Run:
        spent = 1e-6 * records
        return Run(records, cpu_seconds=spent, system_seconds=spent, wall_seconds=spent, peak_bytes=MEBIBYTE)

    monkeypatch.setattr(shard, "_run", all_in_kernel)
    shard.main(smoke=True)
    assert "| last by first | 1.00 | - | 1.00 | 1.00 | 1.00 |" in capsys.readouterr().out


def test_sizes_that_the_disk_has_no_room_for_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shard, "_run", fake_run)
    monkeypatch.setattr("shutil.disk_usage", lambda _: (0, 0, 3_000_000))
    shard.main(smoke=True)
    printed = capsys.readouterr().out
    assert "\n200 records are left out: the disk has 3000000 bytes free, 4000000 are needed\n" in printed
    assert "\n| 100 | 20.0 |" in printed
    assert "\n| 200 |" not in printed


def test_the_input_is_insightface_s_layout_of_repeated_faces(tmp_path: Path) -> None:
    faces = [encode(draw_face(0, 0, image)) for image in range(15)]
    source = open_recordio(shard._Inputs(tmp_path, faces).rec(30))
    assert [source.read(record) for record in range(30)] == faces * 2
    assert source.labels.tolist() == [record // 10 for record in range(30)]
