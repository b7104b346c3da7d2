"""`facemix eval` as people call it: runs, ONNX files, functions, embeddings, several at once, several processes."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from shardgen.procedural import draw_bin
from tests.support import ROOT, facemix, make_set
from tests.train.runs import copy_of
from train.encoder import load_encoder
from train.loop import train
from train.onnx import export_onnx
from train.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options: pairs, and probes of whom one in four is nobody's."""
    folder = tmp_path_factory.mktemp("data")
    draw_bin(folder / "some.bin", 0, range(20, 32), 4, 40)
    gallery, probes = make_set(folder / "gallery", range(16), 2), make_set(folder / "probes", range(4, 20), 4)
    return ["--bin", f"some={folder / 'some.bin'}", "--gallery", str(gallery), "--probes", str(probes), "--fmr", "0.05"]


def evaluated(*arguments: object) -> dict[str, dict[str, float]]:
    done = facemix("eval", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, dict[str, float]] = json.loads(done.stdout)
    return document


def test_a_run_is_measured_by_every_protocol(uninterrupted: Path, data: list[str], tmp_path: Path) -> None:
    found = evaluated(uninterrupted, *data, "--out", tmp_path)
    assert found["identification"]["num_probes"] == 48
    fairness = json.loads((tmp_path / "results.json").read_text())["identification"]["fairness"]["group"]
    assert {one["group"] for one in fairness["groups"]} == {"north", "east", "south", "west"}
    page = (tmp_path / "report.html").read_text()
    for heading in ("Verification", "Hardest impostor pairs", "Identification", "Open set", "Fairness by group"):
        assert f">{heading}<" in page
    assert list((tmp_path / "report-tables").glob("*fairness*.tex"))
    assert len(list((uninterrupted / "embeddings").iterdir())) >= 3


def test_what_was_embedded_once_is_not_embedded_again(uninterrupted: Path, data: list[str], tmp_path: Path) -> None:
    first = evaluated(uninterrupted, *data, "--out", tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (uninterrupted / "embeddings").rglob("*.npy")}
    assert len(kept) >= 3
    assert evaluated(uninterrupted, *data, "--out", tmp_path / "again") == first
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / "embeddings").rglob("*.npy")} == kept


def test_an_onnx_file_gives_the_figures_of_the_run_it_came_from(
    recipe: Recipe, data: list[str], tmp_path: Path
) -> None:
    mine = copy_of(recipe, run=str(tmp_path / "run"), loader__image_size=112)
    train(mine, stop_at=1)
    export_onnx(load_encoder(tmp_path / "run", torch.device("cpu")).network, tmp_path / "x.onnx", 112)
    ours = evaluated(tmp_path / "run", *data, "--out", tmp_path / "a")
    theirs = evaluated(tmp_path / "x.onnx", *data, "--out", tmp_path / "b")
    for figure in ("rank_1", "rank_5"):
        assert theirs["identification"][figure] == pytest.approx(ours["identification"][figure], abs=0.05)


def test_embeddings_of_others_need_no_encoder(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8))
    for name, noise in (("gallery", 0.0), ("probes", 0.1)):
        shaken = rows + noise * np.random.default_rng(1).normal(size=rows.shape)
        np.savez(tmp_path / f"{name}.npz", embeddings=shaken, identity=np.array([f"p{row}" for row in range(20)]))
    sides = ["--gallery", tmp_path / "gallery.npz", "--probes", tmp_path / "probes.npz"]
    found = evaluated(*sides, "--out", tmp_path / "out")
    assert found["identification"]["rank_1"] == 1


def test_lists_all_pairs_and_distractors_are_measured_too(uninterrupted: Path, data: list[str], tmp_path: Path) -> None:
    _, _, _, gallery, *_ = data
    keys = [row for table in sorted(Path(gallery).glob("*.parquet")) for row in pq.read_table(table).to_pylist()]
    of_person = sorted(keys, key=lambda row: str(row["source"]))
    lines = [f"{one['key']},{other['key']}" for one, other in pairwise(of_person)]
    (tmp_path / "pairs.csv").write_text(
        "\n".join(["first,second,fold", *(f"{x},{n % 2}" for n, x in enumerate(lines))])
    )
    others = make_set(tmp_path / "others", range(40, 48), 2)
    options = ["--pairs", f"{gallery}={tmp_path / 'pairs.csv'}", "--all-pairs", others, "--distractors", others]
    found = evaluated(uninterrupted, *data, *options, "--out", tmp_path / "out")["protocols"]
    assert [title.partition(" of")[0] for title in found] == ["Pairs", "All pairs", "Gallery size", "Distractors"]


def test_a_grid_without_a_finished_cell_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nmix: {sets: {a: {path: nowhere}}}\n")
    (tmp_path / "grid.yaml").write_text(f"name: g\nrecipe: base.yaml\nrun: {tmp_path}/runs\naxes: {{a: {{x: {{}}}}}}\n")
    draw_bin(tmp_path / "some.bin", 0, range(20, 32), 4, 40)
    done = facemix("eval", "--grid", tmp_path / "grid.yaml", "--bin", f"some={tmp_path / 'some.bin'}")
    assert done.returncode == 2
    assert "no cell of" in done.stderr


def test_runs_are_compared_on_one_page(uninterrupted: Path, recipe: Recipe, data: list[str], tmp_path: Path) -> None:
    other = copy_of(recipe, run=str(tmp_path / "other"), seed=1)
    train(other, stop_at=0)
    done = facemix("eval", uninterrupted, tmp_path / "other", *data, "--out", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert f"comparison: {tmp_path / 'both' / 'comparison.html'}" in done.stdout
    page = (tmp_path / "both" / "comparison.html").read_text()
    assert str(uninterrupted) in page
    assert "interval" in page
    assert len(list((tmp_path / "both").glob("*/report.html"))) == 2


def test_processes_share_the_work_and_agree(uninterrupted: Path, data: list[str], tmp_path: Path) -> None:
    alone = evaluated(uninterrupted, *data, "--out", tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [
        *map(str, launch),
        str(ROOT / "cli.py"),
        "eval",
        str(uninterrupted),
        *data,
        "--out",
        str(tmp_path / "two"),
    ]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("identification:") == 1
    together = json.loads((tmp_path / "two" / "results.json").read_text())
    assert together["identification"]["rank_1"] == alone["identification"]["rank_1"]


def test_a_run_with_nothing_to_measure_keeps_its_report(uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.glob("*.html")}
    done = facemix("eval", uninterrupted)
    assert done.returncode == 2
    assert "nothing to evaluate" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.glob("*.html")} == before


def test_embeddings_and_an_encoder_do_not_mix(uninterrupted: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", embeddings=np.eye(4), identity=np.array(list("abcd")))
    done = facemix("eval", uninterrupted, "--all-pairs", tmp_path / "some.npz", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "holds embeddings, which" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bin", "x=y.bin"], "give an encoder"),
        (["somewhere", "--gallery", "x"], "go together"),
        (["somewhere", "--grid", "x.yaml"], "not both"),
        (["--gallery", "a", "--probes", "b", "--out", "nowhere"], "a is no shard set and no file"),
        (["x.npz", "--fmr", "2", "--all-pairs", "x"], "--fmr"),
    ],
)
def test_wrong_use_is_said_in_a_line(arguments: list[str], message: str) -> None:
    done = facemix("eval", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
