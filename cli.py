"""The command line. Heavy imports live inside the commands, so that `facemix --help` is immediate."""

import importlib
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shardgen.errors import DataError, UsageError

if TYPE_CHECKING:
    from shardgen.sources import Source
    from shardgen.tags import Tags

Function = TypeVar("Function", bound=Callable[..., Any])
INTERRUPTED = 130  # what shells use for Ctrl-C
_PATH = click.Path(path_type=Path)


def _options(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _json_option(function: Function) -> Function:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(function)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=1, default=str))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="facemix")
def cli(debug: bool) -> None:
    """Train face encoders on exact mixes of authentic and synthetic faces, and measure what comes out."""


@cli.group()
def shard() -> None:
    """Turn raw faces into a shard set."""


_SHARD_OPTIONS = _options(
    click.argument("src", type=_PATH),
    click.argument("out", type=_PATH),
    click.option("--name", help="Name of the data set.  [default: the name of OUT]"),
    click.option(
        "--origin",
        type=click.Choice(["authentic", "synthetic"]),
        default="authentic",
        show_default=True,
        help="Photographs of people, or a generator's.",
    ),
    click.option("--tags", type=_PATH, help="CSV of tags, with a column named identity or path."),
    click.option("--ignore-extra-tags", is_flag=True, help="Accept a CSV with rows that the source does not have."),
    click.option("--shard-samples", default=10_000, show_default=True, help="Input records of one shard."),
    click.option("--order", type=click.Choice(["shuffled", "source"]), default="shuffled", show_default=True),
    click.option("--seed", default=0, show_default=True, help="Seed of the shuffle."),
    click.option("--workers", type=int, help="Processes that convert.  [default: one a core]"),
    click.option(
        "--max-rejected",
        default=0.01,
        show_default=True,
        help="Largest share (0 to 1) of records that may fail.",
    ),
    _json_option,
)


@shard.command()
@_SHARD_OPTIONS
def recordio(src: Path, tags: Path | None, ignore_extra_tags: bool, **options: Any) -> None:
    """MXNet RecordIO: SRC is a .rec file or the folder that holds it."""
    from shardgen.sources import open_recordio

    source = open_recordio(src)
    _convert(source, _table_tags(source, tags, ignore_extra_tags), **options)


@shard.command()
@_SHARD_OPTIONS
@click.option("--tag-pattern", help="Regular expression over the path; its named groups are tags.")
def folder(src: Path, tags: Path | None, ignore_extra_tags: bool, tag_pattern: str | None, **options: Any) -> None:
    """Image files: SRC is a folder with a folder of images per identity."""
    from shardgen.sources import open_folder
    from shardgen.tags import join_pattern, merge

    source, ignored = open_folder(src)
    if ignored:
        click.echo(f"{len(ignored)} files are no images and stay out, such as {ignored[0]}", err=True)
    joined = _table_tags(source, tags, ignore_extra_tags)
    if tag_pattern is not None:
        joined = merge(joined, join_pattern(tag_pattern, source.names()))
    _convert(source, joined, **options)


def _table_tags(source: "Source", table: Path | None, ignore_extra: bool) -> "Tags":
    from shardgen.tags import join_table, no_tags, read_table

    if table is None:
        return no_tags(len(source))
    return join_table(read_table(table), source.names(), source.identities, source.labels, ignore_extra)


def _convert(source: "Source", tags: "Tags", out: Path, name: str | None, as_json: bool, **options: Any) -> None:
    from pydantic import ValidationError

    from shardgen.config import ShardConfig
    from shardgen.convert import convert
    from shardgen.summary import lines_of_conversion

    options["workers"] = options["workers"] or os.cpu_count() or 1
    try:
        config = ShardConfig(name=name or out.resolve().name, **options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} {first['input']}: {first['msg']}") from None
    manifest = convert(source, tags, out, config)
    if as_json:
        _print_json(manifest.model_dump(mode="json", exclude={"identities", "shards"}) | {"out": str(out)})
        return
    click.echo("\n".join(lines_of_conversion(manifest, out)))


@cli.command()
@click.argument("path", metavar="SET", type=_PATH)
@click.option("--deep", is_flag=True, help="Also decode every image and compare tars, indexes and tables.")
@_json_option
def verify(path: Path, deep: bool, as_json: bool) -> None:
    """Check that a shard set is what its manifest says."""
    from shardgen.verify import faults

    try:
        found = list(faults(path, deep))
    except DataError as error:  # the manifest itself
        found = [str(error)]
    if as_json:
        _print_json({"set": str(path), "intact": not found, "faults": found})
    else:
        click.echo("\n".join(found) if found else f"{path}: intact, as its manifest says")
    if found:
        sys.exit(1)


@cli.command()
@click.argument("sets", metavar="SET...", nargs=-1, required=True, type=_PATH)
@click.option("--sheet", type=_PATH, help="Write a PNG with a row of faces for each group.")
@_json_option
def inspect(sets: Sequence[Path], sheet: Path | None, as_json: bool) -> None:
    """Show what shard sets hold."""
    from shardgen.summary import contact_sheet, summarise, write_png

    summaries = [summarise(one) for one in sets]
    if sheet is not None:
        write_png(sheet, contact_sheet(sets))
        click.echo(f"contact sheet: {sheet}", err=True)
    if as_json:
        _print_json([asdict(one) for one in summaries])
        return
    click.echo("\n".join(line for one in summaries for line in one.lines()))


_RECIPE = _options(
    click.argument("recipe", type=_PATH),
    click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1),
)


@cli.command()
@_RECIPE
@_json_option
def plan(recipe: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Show what every stratum gives to a batch and an epoch, before anything runs."""
    from pipeline.plan import open_plan
    from train.config import load_recipe

    loaded = load_recipe(recipe, overrides)
    planned = open_plan(loaded.mix, loaded.seed, loaded.loader.batch_size)
    if as_json:
        _print_json(planned.to_json())
        return
    click.echo("\n".join(planned.lines()))


@cli.command()
@_RECIPE
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint.")
@click.option("--stop-at", type=click.IntRange(min=0), metavar="STEP", help="Save and stop after this step.")
def train(recipe: Path, overrides: Sequence[str], resume: bool, stop_at: int | None) -> None:
    """Train an encoder as a recipe says; also under torchrun."""
    from train.config import load_recipe
    from train.loop import train as train_run

    result = train_run(load_recipe(recipe, overrides), resume=resume, stop_at=stop_at)
    if result.is_main and result.finished:
        click.echo(f"{result.folder}: {result.num_steps} steps done")
        click.echo(f"next: facemix eval {result.folder} --bin NAME=FILE")
    elif result.is_main:
        click.echo(f"{result.folder}: stopped at step {result.step} of {result.num_steps}; go on with --resume")
    if not result.finished and (stop_at is None or result.step < stop_at):
        sys.exit(INTERRUPTED)


@cli.command(name="eval")
@click.argument("encoder", metavar="RUN|CHECKPOINT", type=_PATH)
@click.option("--bin", "bins", multiple=True, metavar="NAME=FILE", help="A verification set; repeatable.")
@click.option("--gallery", type=_PATH, help="Shard set of enrolled faces.")
@click.option("--probes", type=_PATH, help="Shard set of faces to search in the gallery.")
@click.option("--out", type=_PATH, help="Folder of results.json and report.html.  [default: the run]")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@_json_option
def evaluate(
    encoder: Path,
    bins: Sequence[str],
    gallery: Path | None,
    probes: Path | None,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure an encoder: verification, identification, by group."""
    from eval.evaluate import evaluate as measure
    from eval.protocols import read_bin
    from eval.report import write_report
    from pipeline.loader import resolve_device
    from train.encoder import load_encoder

    if (gallery is None) != (probes is None):
        raise UsageError("--gallery and --probes go together; give both or neither")
    for one in bins:
        if "=" not in one:
            raise UsageError(f"--bin {one}: write NAME=FILE, such as --bin lfw=lfw.bin")
    where = resolve_device(device)
    trained = load_encoder(encoder, where)
    named = [read_bin(name, Path(file)) for name, _, file in (one.partition("=") for one in bins)]
    pair = (gallery, probes) if gallery is not None and probes is not None else None
    result = measure(trained.description, trained.network, trained.loader, where, named, pair)
    page = write_report(result, out or trained.run)
    if as_json:
        _print_json(result.to_json())
        return
    click.echo("\n".join([*result.lines(), f"report: {page}"]))


@cli.command()
@click.argument("name", type=click.Choice(["convert", "loader"]))
@click.option("--smoke", is_flag=True, help="Only show that it runs.")
def bench(name: str, smoke: bool) -> None:
    """Run one of the scripts of benchmarks/ and print its table."""
    importlib.import_module(f"benchmarks.{name}").main(smoke)


@cli.command()
@click.option("--out", type=_PATH, default=Path("runs/demo"), show_default=True, help="Folder for everything.")
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
