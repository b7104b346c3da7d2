"""The training benchmark: every way takes the same steps, and the table says what was measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
import torch

from benchmarks import train, train_peers
from benchmarks.train_peers import OURS, Job, Way, faces, flops_per_image, start, take
from pipeline.loader import normalised
from pipeline.stats import Throughput
from shardgen.shardset import ShardSet

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's


def job(shards: Path, way: Way) -> Job:
    return Job("iresnet_mini", way, str(shards), batch=8, identities=20, threads=1, seconds=0)


@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        (Way(), 1e-3),
        (Way(channels_last=True, fused=True), 1e-3),
        (Way("bf16"), 0.05),
        (Way("bf16", channels_last=True, facemix=True), 0.05),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_every_way_takes_the_same_steps(way: Way, tolerance: float, small_set: Path) -> None:
    ours, loader = start(job(small_set, Way(facemix=True)), CPU)
    theirs, _ = start(job(small_set, way), CPU)
    batches = [next(loader) for _ in range(4)]
    loader.close()  # type: ignore[attr-defined]
    expected = [ours(batch).item() for batch in batches]
    assert expected[0] != pytest.approx(expected[3], rel=0.05)
    given = batches if way.facemix else [(normalised(batch.images), batch.labels) for batch in batches]
    assert [theirs(batch).item() for batch in given] == pytest.approx(expected, rel=tolerance)


def test_the_usual_loader_makes_the_same_of_a_face(small_set: Path) -> None:
    shards = ShardSet(small_set)
    decoded = torch.stack([torch.from_numpy(simplejpeg.decode_jpeg(shards.image(row))) for row in range(len(shards))])
    known = normalised(decoded.permute(0, 3, 1, 2))
    identities = shards.table(["identity"]).column("identity").to_pylist()
    flipped = 0
    for image, label in (sample for sample, _ in zip(faces(str(small_set)), range(64), strict=False)):
        distances = torch.stack([(known - one).abs().amax((1, 2, 3)) for one in (image, image.flip(2))])
        assert distances.min() < 0.02
        flip, row = divmod(int(distances.argmin()), len(shards))
        assert label == int(identities[row])
        flipped += flip
    assert 10 < flipped < 54


def test_waiting_is_the_time_until_a_batch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    def batches() -> Iterator[int]:
        for batch in range(3):
            spend(2.0)
            yield batch

    monkeypatch.setattr(train_peers, "perf_counter", lambda: now)
    assert take(lambda _: spend(5.0), batches(), 32, CPU) == Throughput(images=96, seconds=21.0, waiting_seconds=6.0)


@pytest.mark.parametrize(
    ("backbone", "gigaflops"),
    [("mobilefacenet", 0.45), ("iresnet18", 2.6), ("iresnet50", 6.3), ("vit_t", 1.5)],
)
def test_a_step_is_three_times_the_published_cost(backbone: str, gigaflops: float) -> None:
    """As InsightFace's README has them, where a multiplication and an addition count as one; the head is small."""
    assert flops_per_image(backbone, 10) / 6e9 == pytest.approx(gigaflops, rel=0.04)


def test_the_head_counts_too() -> None:
    more = flops_per_image("iresnet_mini", 1010) - flops_per_image("iresnet_mini", 10)
    assert more == 3 * 2 * 512 * 1000


def fake_apart(module: str, text: str) -> dict[str, Any]:
    """Let ours do 40 images a second, 30 with a loader; the peer a quarter of them, and wait for half the time."""
    ours = '"facemix": true' in text
    return {
        "images_per_second": 40.0 if ours else 10.0,
        "loaded_images_per_second": 30.0 if ours else 7.5,
        "waiting_share": 0.01 if ours else 0.5,
        "peak_bytes": 3 << 20,
        "matmul_flops": 1e12,
    }


def test_the_table_sets_ours_against_the_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "apart", fake_apart)
    monkeypatch.setattr(train, "flops_per_image", lambda backbone, identities: 2e9)
    train.main(smoke=True)
    printed = capsys.readouterr().out
    assert "1,000 GFLOP/s" in printed
    assert "| iresnet_mini, facemix | 40.0 | 4.00 | 30.0 | 4.00 | 1.0% | 2.00 | 80.0 | 8.0% | 3 |" in printed
    assert "| mobilefacenet, InsightFace's way | 10.0 | 1.00 | 7.5 | 1.00 | 50.0% | 2.00 | 20.0 | 2.0% | 3 |" in printed


def test_figures_are_medians_over_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1.0, 9.0, 2.0])
    monkeypatch.setattr(train, "apart", lambda *_: {**fake_apart("", ""), "images_per_second": next(rates)})
    row = ("iresnet_mini", "facemix")
    measured = train.take_turns({row: job(Path("set"), OURS)}, rounds=3)
    assert measured[row].images_per_second == 2.0
