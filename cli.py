"""The command line. Heavy imports live inside the commands, so that `facemix --help` is immediate."""

import importlib
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from shardgen import commands
from shardgen.commands import PATH, json_option, options, print_json
from shardgen.errors import DataError, UsageError

_SHEET_PAIRS = 20  # of each kind of finding
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
INTERRUPTED = 130  # what shells use for Ctrl-C


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="facemix")
def cli(debug: bool) -> None:
    """Train face encoders on exact mixes of authentic and synthetic faces, and measure what comes out."""


for _command in (commands.shard, commands.tag, commands.verify, commands.inspect, commands.export):
    cli.add_command(_command)


@cli.command()
@click.argument("sets", metavar="SET...", nargs=-1, required=True, type=PATH)
@click.option("--near/--no-near", default=True, show_default=True, help="Also look for altered copies.")
@click.option("--max-distance", type=int, help="Bits of the perceptual hash in which copies may differ.")
@click.option("--encoder", metavar="RUN|CHECKPOINT", type=PATH, help="Also look for one person under two names.")
@click.option("--threshold", type=float, help="Cosine above which identities are alike.  [default: from the data]")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@click.option("--sheet", type=PATH, help="Write a PNG of the pairs found.")
@click.option("--workers", type=int, help="Processes that hash.  [default: one a core]")
@json_option
def audit(
    sets: Sequence[Path],
    *,
    near: bool,
    max_distance: int | None,
    encoder: Path | None,
    threshold: float | None,
    device: str,
    sheet: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Look for copies of images and for shared people, in a set and across sets."""
    from shardgen.audit import audit as look
    from shardgen.audit_sheet import pair_sheet
    from shardgen.perceptual import MAX_DISTANCE
    from shardgen.sheet import write_png

    found = look(
        sets,
        near=near,
        max_distance=MAX_DISTANCE if max_distance is None else max_distance,
        workers=workers or os.cpu_count() or 1,
        embeddings=None if encoder is None else _embeddings(sets, encoder, device),
        threshold=threshold,
    )
    pairs = found.pairs(_SHEET_PAIRS)
    if sheet is not None and pairs:
        write_png(sheet, pair_sheet(sets, pairs))
        click.echo(f"pairs: {sheet}", err=True)
    if as_json:
        print_json(found.to_json())
        return
    click.echo("\n".join(found.lines()))


def _embeddings(sets: Sequence[Path], encoder: Path, device: str) -> list[Any]:
    from eval.embed import embed_set
    from pipeline.catalog import open_catalog
    from pipeline.loader import resolve_device
    from train.encoder import load_encoder

    where = resolve_device(device)
    trained = load_encoder(encoder, where)
    return [embed_set(trained.network, open_catalog({"set": one}), trained.loader, where) for one in sets]


_RECIPE = options(
    click.argument("recipe", type=PATH),
    click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1),
)


@cli.command()
@_RECIPE
@click.option("--real-only", type=PATH, metavar="FILE", help="Write a recipe of the authentic sets on the same budget.")
@click.option("--sheet", type=PATH, metavar="FILE", help="Write a PNG of what happens to each set's images.")
@json_option
def plan(recipe: Path, overrides: Sequence[str], *, real_only: Path | None, sheet: Path | None, as_json: bool) -> None:
    """Show what every stratum gives to a batch and an epoch, before anything runs."""
    import yaml

    from pipeline import plan_report, twin
    from pipeline.plan import open_plan
    from train.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    planned = open_plan(loaded.mix, loaded.seed, loaded.loader.batch_size)
    if real_only is not None:
        mix = twin.real_only(loaded.mix, planned)
        head = loaded.head.model_copy(
            update={"weights": {k: v for k, v in loaded.head.weights.items() if k in mix.sets}}
        )
        changes = {"name": f"{loaded.name}_real_only", "mix": mix, **({"head": head} if loaded.head.weights else {})}
        fields = loaded.model_copy(update=changes).model_dump(mode="json", exclude_unset=True, exclude={"run"})
        real_only.write_text(yaml.safe_dump(fields, sort_keys=False))
        click.echo(f"real-only twin: {real_only}; see it with `facemix plan {real_only}`", err=True)
    if sheet is not None:
        from pipeline.mix_sheet import mix_sheet
        from shardgen.sheet import write_png

        write_png(sheet, mix_sheet(planned, loaded.augment, loaded.loader))
        click.echo(f"what happens to images: {sheet}", err=True)
    if as_json:
        print_json(plan_report.to_json(planned))
        return
    click.echo("\n".join(plan_report.lines(planned)))


@cli.command()
@_RECIPE
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint.")
@click.option("--stop-at", type=click.IntRange(min=0), metavar="STEP", help="Save and stop after this step.")
@click.option("--check", is_flag=True, help="Only look whether the data, the budget and the plan allow the run.")
def train(recipe: Path, overrides: Sequence[str], resume: bool, stop_at: int | None, check: bool) -> None:
    """Train an encoder as a recipe says, or the cells of a grid, which go on where they stand; also under torchrun."""
    from train.grid import is_grid
    from train.loop import train as train_run
    from train.recipe import load_recipe

    if check:
        _check_training(recipe, overrides)
        return
    if is_grid(recipe):
        _train_grid(recipe, overrides, stop_at)
        return
    result = train_run(load_recipe(recipe, overrides), resume=resume, stop_at=stop_at)
    if result.is_main and result.finished:
        click.echo(f"{result.folder}: {result.num_steps} steps done")
        click.echo(f"next: facemix eval {result.folder} --bin NAME=FILE")
    elif result.is_main:
        click.echo(f"{result.folder}: stopped at step {result.step} of {result.num_steps}; go on with --resume")
    if result.interrupted and not result.finished:
        sys.exit(INTERRUPTED)


def _check_training(path: Path, overrides: Sequence[str]) -> None:
    from train.check import check
    from train.grid import is_grid, load_grid
    from train.recipe import load_recipe

    cells = load_grid(path, overrides).cells if is_grid(path) else {"": load_recipe(path, overrides)}
    for cell, recipe in cells.items():
        if cell:
            click.echo(f"\ncell {cell}")
        for line in check(recipe):
            click.echo(line)


def _train_grid(path: Path, overrides: Sequence[str], stop_at: int | None) -> None:
    from train.grid import load_grid, train_grid
    from train.loop import train as train_run

    grid = load_grid(path, overrides)
    result = train_grid(grid, partial(train_run, resume=True, stop_at=stop_at))
    if _is_main():
        click.echo("\n".join([*result.lines(), f"next: facemix eval --grid {path} --bin NAME=FILE"]))
    if result.interrupted or result.faults:
        sys.exit(INTERRUPTED if result.interrupted else 1)


@cli.command(name="eval")
@click.argument("encoders", metavar="[RUN|CHECKPOINT|MODEL.onnx|MODULE:FUNCTION]...", nargs=-1)
@click.option("--grid", type=PATH, help="Measure the runs of a grid instead, and write its table beside them.")
@click.option("--bin", "bins", multiple=True, metavar="NAME=FILE", help="A verification set; repeatable.")
@click.option("--gallery", type=PATH, help="Shard set, .npz or .parquet of embeddings, of enrolled faces.")
@click.option("--probes", type=PATH, help="The same of faces to search in the gallery.")
@click.option("--distractors", type=PATH, help="A set of others, to search the probes among.")
@click.option("--pairs", multiple=True, metavar="SET=FILE", help="A list of pairs (CSV, pairs.txt) of a set's faces.")
@click.option("--all-pairs", multiple=True, type=PATH, metavar="SET", help="Compare all faces of a set.")
@click.option("--ijb", multiple=True, metavar="SET=META", help="IJB-B or IJB-C: all images, and the folder meta.")
@click.option(
    "--fmr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=1e-3,
    show_default=True,
    help="Errors by group are where so many match.",
)
@click.option("--out", type=PATH, help="Folder of results.json and report.html.  [default: the run, or one in runs/]")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@json_option
def evaluate(
    encoders: Sequence[str],
    *,
    grid: Path | None,
    bins: Sequence[str],
    gallery: Path | None,
    probes: Path | None,
    distractors: Path | None,
    pairs: Sequence[str],
    all_pairs: Sequence[Path],
    ijb: Sequence[str],
    fmr: float,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure an encoder, several to compare, or all of a grid: verification, identification, fairness."""
    from eval.evaluate import Protocols
    from eval.protocols import read_bin
    from train.measure import compare_all, measure, together

    if encoders and grid is not None:
        raise UsageError("give encoders or --grid FILE, and not both")
    if (gallery is None) != (probes is None):
        raise UsageError("--gallery and --probes go together; give both or neither")
    if not encoders and grid is None and (bins or not (gallery or all_pairs or pairs)):
        raise UsageError("give an encoder: a run, a checkpoint, MODEL.onnx, MODULE:FUNCTION, or --grid FILE")
    if distractors is not None and probes is None:
        raise UsageError("--distractors are what probes are searched among; give --gallery and --probes, too")
    protocols = Protocols(
        bins=[read_bin(name, Path(file)) for name, file in _named("--bin", bins, "lfw=lfw.bin")],
        gallery_and_probes=(gallery, probes) if gallery is not None and probes is not None else None,
        distractors=distractors,
        pairs=[(Path(one), Path(file)) for one, file in _named("--pairs", pairs, "data/lfw=pairs.txt")],
        all_pairs=all_pairs,
        ijb=[(Path(one), Path(meta)) for one, meta in _named("--ijb", ijb, "data/ijbc=IJBC/meta")],
        fmr=fmr,
    )
    with together(device) as where:
        if grid is not None:
            lines, answer = _evaluate_grid(grid, protocols, out, where)
        elif len(encoders) > 1:
            lines, page = compare_all(encoders, protocols, out or Path("runs/comparison"), where)
            lines, answer = [*lines, f"comparison: {page}"], {"comparison": str(page)}
        else:
            result, page = measure(encoders[0] if encoders else None, protocols, out, where)
            lines, answer = [*result.lines(), f"report: {page}"], result.to_json()
    if _is_main():
        print_json(answer) if as_json else click.echo("\n".join(lines))


def _named(option: str, values: Sequence[str], example: str) -> list[tuple[str, str]]:
    """Return both sides of each NAME=VALUE."""
    for one in values:
        if "=" not in one:
            raise UsageError(f"{option} {one}: write it as {option} {example}")
    return [(name, value) for name, _, value in (one.partition("=") for one in values)]


def _is_main() -> bool:
    from train.distributed import this_world

    return this_world().rank == 0


def _evaluate_grid(path: Path, protocols: Any, out: Path | None, where: Any) -> tuple[list[str], dict[str, Any]]:
    from eval.grid_table import grid_table
    from train.grid import load_grid, measure_grid
    from train.measure import measure

    grid = load_grid(path)
    results = measure_grid(grid, lambda run: measure(str(run), protocols, None, where)[0])
    if not any(results.values()):
        raise UsageError(
            f"no cell of {path} is trained to its end in {grid.run}; train it, or say run: FOLDER in the grid"
        )
    table = grid_table(grid.name, results)
    folder = out or grid.run
    if _is_main():
        table.write(folder)
    return (
        [table.markdown(), f"table: {folder / 'table.md'}, table.csv, table.tex"],
        {cell: result and result.to_json() for cell, result in results.items()},
    )


@commands.export.command(name="onnx")
@click.argument("encoder", metavar="RUN|CHECKPOINT", type=PATH)
@click.argument("out", metavar="FILE.onnx", type=PATH)
def export_to_onnx(encoder: Path, out: Path) -> None:
    """Write a trained encoder for whatever runs faces without PyTorch."""
    import torch

    from train.encoder import load_encoder
    from train.onnx import export_onnx

    trained = load_encoder(encoder, torch.device("cpu"))
    export_onnx(trained.network, out, trained.loader.image_size)
    click.echo(f"{out}: {trained.description}; input [batch, 3, size, size] in [-1, 1], RGB")


@cli.command()
@click.argument("name", type=click.Choice(["eval", "loader", "plan", "shard", "train"]))
@click.option("--smoke", is_flag=True, help="Only show that it runs.")
def bench(name: str, smoke: bool) -> None:
    """Run one of the scripts of benchmarks/ and print its table."""
    importlib.import_module(f"benchmarks.{name}").main(smoke)


@cli.command()
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Folder for everything.")
def demo(out: Path) -> None:
    """Everything on drawn faces, in minutes on two cores."""
    from shardgen.procedural import draw_demo

    _begin_demo(out)
    click.echo("Drawing 40 people as photographs, 80 as a generator would, and 32 whom training never sees.")
    raw, sets = out / "raw", out / "sets"
    draw_demo(raw)
    for story, command in _demo_steps(raw, sets, out):
        click.echo(f"\n{story}\n$ facemix {' '.join(command)}")
        cli.main(command, standalone_mode=False)
    click.echo(f"\nOpen {out / 'report.html'} in a browser.")


def _begin_demo(out: Path) -> None:
    """Make room: a folder that an earlier demo filled is cleared, anybody else's is refused."""
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise UsageError(f"{out} holds something that is no earlier demo; choose another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.write_text("{}")


def _demo_steps(raw: Path, sets: Path, out: Path) -> list[tuple[str, list[str]]]:
    recipe = str(Path(__file__).parent / "recipes" / "demo.yaml")
    overrides = [f"run={out}", *(f"mix.sets.{one}.path={sets / one}" for one in ("authentic", "synthetic"))]

    def sharded(kind: str, name: str, source: str, origin: str) -> list[str]:
        tags = str(raw / name / "identities.csv")
        return ["shard", kind, str(raw / name / source), str(sets / name), "--origin", origin, "--tags", tags]

    pairs, gallery, probes = f"unseen={raw / 'unseen.bin'}", str(sets / "gallery"), str(sets / "probes")
    return [
        ("The photographs come as MXNet RecordIO:", sharded("recordio", "authentic", "", "authentic")),
        ("the generated faces as a folder of images:", sharded("folder", "synthetic", "images", "synthetic")),
        ("Of each unseen person, one face is enrolled", sharded("folder", "gallery", "images", "authentic")),
        ("and the others will be searched for.", sharded("folder", "probes", "images", "authentic")),
        ("Every byte of a set is under a hash:", ["verify", str(sets / "authentic")]),
        ("What a batch of the mix holds, exactly:", ["plan", recipe, *overrides]),
        ("Train on it (this is the long part):", ["train", recipe, *overrides]),
        (
            "Measure it on people it has never seen:",
            ["eval", str(out), "--bin", pairs, "--gallery", gallery, "--probes", probes],
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0 when done, 1 when the data is at fault, 2 for wrong use."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("facemix").setLevel(logging.INFO)  # ours; libraries speak up only to warn
    try:
        cli.main(given or ["--help"], prog_name="facemix", standalone_mode=False)
    except Exception as error:  # every failure ends as one line; --debug shows the rest
        if "--debug" in given:
            traceback.print_exc()
        message, code = _explain(error)
        click.echo(f"facemix: {message}", err=True)
        sys.exit(code)


def _explain(error: Exception) -> tuple[str, int]:
    """Return the line and the exit code for an error."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            line, code = error.format_message(), 2
        case click.ClickException():
            line, code = f"{' '.join(error.format_message().split())} See facemix --help.", 2
        case click.Abort():
            line, code = "interrupted", INTERRUPTED
        case UsageError():
            line, code = str(error), 2
        case DataError():
            line, code = str(error), 1
        case OSError():
            line, code = f"{error.filename or 'the system'}: {error.strerror or error}", 1
        case _:
            text = " ".join(str(error).split())
            line, code = f"unexpected {type(error).__name__}: {text}; `facemix --debug ...` shows where", 1
    return line, code


if __name__ == "__main__":
    main()
