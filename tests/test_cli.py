"""The command line as a user meets it: bad input, exit codes, JSON, and how fast it answers."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from PIL import Image

from shardgen.procedural import draw_bin, draw_folder, draw_recordio
from tests.support import ROOT, facemix, make_set
from train import checkpoint


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_set: Path) -> Path:
    """A recipe that trains in seconds."""
    folder = tmp_path_factory.mktemp("recipe")
    fields = {
        "name": "tiny",
        "run": str(folder / "run"),
        "mix": {"sets": {"one": {"path": str(small_set), "share": 1}}},
        "loader": {"batch_size": 8, "image_size": 32},
        "encoder": {"backbone": "iresnet_mini", "embedding_size": 16},
        "training": {"epochs": 1},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(fields))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    done = facemix("train", recipe)
    assert done.returncode == 0, done.stderr
    return recipe.parent / "run"


class Exploit:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.sentinel}",)


def error_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line that a failed command prints."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("facemix: ")
    return lines[0]


def test_a_trained_encoder_goes_to_onnx(trained: Path, tmp_path: Path) -> None:
    done = facemix("export", "onnx", trained, tmp_path / "encoder.onnx")
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    (embedding,) = session.run(None, {"input": np.zeros((3, 3, 32, 32), np.float32)})
    assert embedding.shape == (3, 16)
    assert "facemix: " in error_line(facemix("export", "onnx", tmp_path, tmp_path / "other.onnx"), 1)


def test_a_plan_can_show_its_images_and_leave_a_real_only_recipe(recipe: Path, tmp_path: Path) -> None:
    sheet, twin = tmp_path / "sheet.png", tmp_path / "twin.yaml"
    done = facemix("plan", recipe, "augment=adaface", "--sheet", sheet, "--real-only", twin)
    assert done.returncode == 0, done.stderr
    with Image.open(sheet) as picture:
        assert picture.height == 4 * 32
    planned = json.loads(facemix("plan", twin, "--json").stdout)
    assert [row["stratum"] for row in planned["phases"][0]["strata"]] == ["one"]
    assert yaml.safe_load(twin.read_text())["name"] == "tiny_real_only"


def test_a_missing_path_is_wrong_use(tmp_path: Path) -> None:
    for kind in ("recordio", "folder"):
        done = facemix("shard", kind, tmp_path / "nowhere", tmp_path / "out", "--origin", "authentic")
        assert "nowhere" in error_line(done, 2)
    assert "nowhere" in error_line(facemix("verify", tmp_path / "nowhere"), 2)
    assert "nowhere" in error_line(facemix("train", tmp_path / "nowhere.yaml"), 2)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for kind, missing in (("recordio", ".rec"), ("folder", "no image")):
        done = facemix("shard", kind, tmp_path / "empty", tmp_path / "out", "--origin", "authentic")
        assert missing in error_line(done, 1)
    assert not (tmp_path / "out").exists()


def test_a_rec_cut_in_the_middle_publishes_nothing(tmp_path: Path) -> None:
    draw_recordio(tmp_path / "raw", 0, range(4), images=5)
    rec = tmp_path / "raw" / "train.rec"
    rec.write_bytes(rec.read_bytes()[: rec.stat().st_size // 2])
    for index in (True, False):
        if not index:
            rec.with_suffix(".idx").unlink()
        done = facemix("shard", "recordio", tmp_path / "raw", tmp_path / "out", "--origin", "authentic")
        assert "cut" in error_line(done, 1)
        assert not (tmp_path / "out").exists()


def test_tags_of_identities_that_do_not_exist_are_refused_or_ignored_on_request(tmp_path: Path) -> None:
    draw_folder(tmp_path / "raw", 0, range(4), range(2))
    with (tmp_path / "raw" / "identities.csv").open("a") as table:
        table.write("nobody,north\n")
    command = ("shard", "folder", tmp_path / "raw" / "images", tmp_path / "out", "--origin", "synthetic")
    tags = ("--tags", tmp_path / "raw" / "identities.csv")
    assert "nobody" in error_line(facemix(*command, *tags), 1)
    assert not (tmp_path / "out").exists()
    assert facemix(*command, *tags, "--ignore-extra-tags").returncode == 0


def test_an_unknown_recipe_key_is_named_with_the_nearest_known_one(recipe: Path) -> None:
    line = error_line(facemix("train", recipe, "loader.batchsize=4"), 2)
    assert "loader.batchsize" in line
    assert "batch_size" in line


def test_shares_that_do_not_add_up_are_refused(recipe: Path) -> None:
    assert "0.7" in error_line(facemix("plan", recipe, "mix.sets.one.share=0.7"), 2)


def test_a_set_without_a_manifest_is_not_read(recipe: Path, tmp_path: Path) -> None:
    unfinished = make_set(tmp_path / "unfinished", range(2), 2)
    (unfinished / "manifest.json").unlink()
    for command in (("inspect", unfinished), ("plan", recipe, f"mix.sets.one.path={unfinished}")):
        assert "manifest.json" in error_line(facemix(*command), 1)


def test_a_bin_that_would_run_code_is_refused_before_it_does(trained: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(([Exploit(sentinel)], [True])))
    done = facemix("eval", trained, "--bin", f"evil={tmp_path / 'evil.bin'}", "--out", tmp_path / "report")
    assert "system" in error_line(done, 1)
    assert not sentinel.exists()
    assert not (tmp_path / "report").exists()


def test_wrong_options_are_one_line(tmp_path: Path) -> None:
    assert "bogus" in error_line(facemix("bogus"), 2)
    assert "robot" in error_line(facemix("shard", "folder", tmp_path, tmp_path / "out", "--origin", "robot"), 2)
    done = facemix("shard", "folder", ROOT / "tests", tmp_path / "out", "--origin", "authentic", "--max-rejected", "7")
    assert done.returncode != 0


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in facemix("--debug", "verify", tmp_path / "nowhere").stderr


def test_json_is_one_document_on_standard_output_and_nothing_else(
    trained: Path, small_set: Path, tmp_path: Path
) -> None:
    draw_folder(tmp_path / "raw", 0, range(4), range(3))
    draw_bin(tmp_path / "pairs.bin", 0, range(4), images=3, pairs=20)
    source = tmp_path / "raw" / "images"
    commands = (
        ("shard", "folder", source, tmp_path / "out", "--origin", "synthetic"),
        ("verify", small_set),
        ("inspect", small_set, "--sheet", tmp_path / "sheet.png"),
        ("plan", trained.parent / "tiny.yaml"),
        ("eval", trained, "--bin", f"pairs={tmp_path / 'pairs.bin'}", "--out", tmp_path / "report"),
    )
    for command in commands:
        done = facemix(*command, "--json")
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)


def test_verify_exits_1_with_a_line_a_fault(tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", range(3), 3)
    (shards / "000000.idx").write_bytes(b"v1.2 0\n")
    (shards / "rejected.csv").unlink()
    done = facemix("verify", shards)
    assert done.returncode == 1
    assert ["000000.idx" in done.stdout, "rejected.csv" in done.stdout] == [True, True]
    assert len(done.stdout.splitlines()) == 2


def test_every_command_has_help() -> None:
    for command in ((), ("shard",), ("shard", "recordio"), ("shard", "folder"), ("train",), ("eval",), ("demo",)):
        assert "Usage: facemix" in facemix(*command, "--help").stdout


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    heavy = "torch numpy cv2 pyarrow pydantic nvidia matplotlib faiss"
    code = f"import cli, sys; print(sorted(set('{heavy}'.split()) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_mended_image_gets_in_when_the_command_is_repeated(tmp_path: Path) -> None:
    draw_folder(tmp_path / "raw", 0, range(2), range(2))
    victim = tmp_path / "raw" / "images" / "00000" / "1.jpg"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-100])
    command = ("shard", "folder", tmp_path / "raw" / "images", tmp_path / "out", "--origin", "synthetic")
    assert "1 of 4" in error_line(facemix(*command), 1)
    victim.write_bytes(whole)
    assert "inputs" in error_line(facemix(*command), 2)  # half of it was made from other files
    shutil.rmtree(tmp_path / "out.unfinished")
    assert facemix(*command).returncode == 0


def test_a_rec_without_an_image_is_refused(tmp_path: Path) -> None:
    draw_recordio(tmp_path / "raw", 0, range(0), images=1)
    done = facemix("shard", "recordio", tmp_path / "raw", tmp_path / "out", "--origin", "authentic")
    assert "no image record" in error_line(done, 1)


def test_a_negative_seed_is_wrong_use_and_leaves_nothing(tmp_path: Path, small_set: Path) -> None:
    source = small_set.with_name("small.raw") / "images"
    done = facemix("shard", "folder", source, tmp_path / "out", "--origin", "authentic", "--seed", "-1")
    assert "--seed" in error_line(done, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("noticed", ["training.log_every=1", "training.checkpoint_every=1"])
def test_a_diverged_run_stops_and_is_not_saved(recipe: Path, tmp_path: Path, noticed: str) -> None:
    done = facemix("train", recipe, f"run={tmp_path / 'run'}", "optimizer.lr=1e30", noticed)
    assert done.returncode == 1
    assert "diverged" in done.stderr.splitlines()[-1]
    for saved in (tmp_path / "run").glob("checkpoints/*.pt"):  # the steps before it went wrong
        assert all(weights.isfinite().all() for weights in checkpoint.load(saved)["encoder"].values())


def test_a_stop_before_the_resumed_step_is_no_interruption(recipe: Path, tmp_path: Path) -> None:
    run = f"run={tmp_path / 'run'}"
    assert facemix("train", recipe, run, "--stop-at", "2").returncode == 0
    assert facemix("train", recipe, run, "--resume", "--stop-at", "1").returncode == 0


def test_a_checkpoint_s_report_goes_to_its_run(trained: Path, tmp_path: Path) -> None:
    draw_bin(tmp_path / "pairs.bin", 0, range(4), images=3, pairs=20)
    (newest,) = (trained / "checkpoints").glob("*.pt")
    assert facemix("eval", newest, "--bin", f"pairs={tmp_path / 'pairs.bin'}").returncode == 0
    assert (trained / "report.html").exists()


def test_an_audit_with_an_encoder_finds_the_people_of_a_set_in_a_copy_of_it(
    trained: Path, small_set: Path, tmp_path: Path
) -> None:
    for command in (
        ("export", "folder", small_set, tmp_path / "folder"),
        ("shard", "folder", tmp_path / "folder", tmp_path / "copy"),
    ):
        assert facemix(*command).returncode == 0
    done = facemix(
        "audit", small_set, tmp_path / "copy", "--no-near", "--encoder", trained, "--threshold", 0.999, "--json"
    )
    assert done.returncode == 0, done.stderr
    overlap = json.loads(done.stdout)["overlap"]
    assert overlap["num_across_sets"] >= 8  # each of the eight is at least like itself
    assert overlap["num_identities"] == 16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tag", "SET"], "nothing says which tags"),
        (["tag", "SET", "nowhere.csv"], "nowhere.csv is no file"),
        (["export", "bin", "SET", "OUT"], "either --pairs FILE or --draw N"),
        (["export", "bin", "SET", "OUT", "--draw", "20", "--within", "height"], "height"),
        (["export", "folder", "SET", "SET"], "already holds something"),
        (["audit", "SET", "SET"], "given twice"),
        (["shard", "auto", "nowhere", "OUT"], "nowhere does not exist"),
        (["shard", "zip", "nowhere", "OUT"], "nowhere does not exist"),
        (["shard", "webdataset", "SET", "OUT", "--identity-pattern", "x"], "has no group"),
        (["shard", "webdataset", "SET", "OUT", "--identity-column", "x"], "identity column x is for parquet inputs"),
        (["shard", "webdataset", "SET", "OUT", "--size", "3"], "--size 3: "),
        (["shard", "webdataset", "SET", "OUT", "--align", "nowhere.csv"], "nowhere.csv is no file"),
        (["shard", "webdataset", "SET", "OUT", "--tag-folder", "age=0"], "'0' is no level"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_data_command_cannot_do_is_said_in_one_line(
    small_set: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    places = {"SET": small_set, "OUT": tmp_path / "out"}
    assert says in error_line(facemix(*(places.get(one, one) for one in arguments)), 2)
    assert not (tmp_path / "out").exists()
