"""The commands about data: shard, tag, verify, inspect, export. They open, call and print; the work is elsewhere.

Heavy imports live inside the commands, so that `facemix --help` is immediate.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from shardgen.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from shardgen.sources import Source
    from shardgen.tags import Records, Tags

Function = TypeVar("Function", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

_INPUTS = {
    "recordio": "MXNet RecordIO: .rec files or the folders that hold them.",
    "folder": "Image files: folders with a folder of images per identity.",
    "zip": "Zip archives of such folders.",
    "lmdb": "LMDB with msgpack values (HSFace, Vec2Face).",
    "webdataset": "WebDataset shards: our sets, tar files or folders of them.",
    "parquet": "Parquet tables with image bytes, in Hugging Face's layout.",
    "auto": "Any of the others, each recognised by what it holds.",
}


def options(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Join click's options and arguments, so that commands can share them."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def json_option(function: Function) -> Function:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(function)


def print_json(document: Any) -> None:
    """Print a document, and nothing else, to standard output."""
    click.echo(json.dumps(document, indent=1, default=str))


_TAG_OPTIONS = options(
    click.option("--tag-pattern", help="Regular expression over the path whose named groups are tags, or: utkface."),
    click.option(
        "--tag-folder", "tag_folders", multiple=True, metavar="AXIS[=LEVEL]", help="Tag by the path's LEVEL-th folder."
    ),
    click.option("--ignore-extra-tags", is_flag=True, help="Accept a table with rows that the data does not have."),
)

_SHARD_OPTIONS = options(
    click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=PATH),
    click.argument("out", type=PATH),
    click.option("--name", help="Name of the data set.  [default: the name of OUT]"),
    click.option(
        "--origin",
        type=click.Choice(["authentic", "synthetic"]),
        default="authentic",
        show_default=True,
        help="Photographs of people, or a generator's.",
    ),
    click.option("--identity-pattern", help="Regular expression over the path; its first group is the identity."),
    click.option(
        "--identities",
        type=click.Choice(["apart", "joined"]),
        default="apart",
        show_default=True,
        help="Whether an identity name in several inputs is several people or one.",
    ),
    click.option("--list", "list_file", type=PATH, help="A RecordIO file's .lst or list.txt.  [default: beside it]"),
    click.option("--identity-column", help="Column of a parquet table that names the identity."),
    click.option(
        "--tags",
        "tables",
        multiple=True,
        type=PATH,
        help="CSV or parquet of tags by identity, path or key; repeatable, the first named is believed.",
    ),
    _TAG_OPTIONS,
    click.option("--check", type=click.Choice(["decode", "header", "none"]), default="decode", show_default=True),
    click.option("--size", type=int, help="Scale every image to SIZE x SIZE pixels."),
    click.option("--align", type=PATH, help="CSV or parquet of five landmarks; warp faces to ArcFace's template."),
    click.option("--quality", default=95, show_default=True, help="JPEG quality of images that must be encoded again."),
    click.option("--exif", type=click.Choice(["apply", "refuse"]), default="apply", show_default=True),
    click.option("--max-pixels", default=1 << 26, show_default=True, help="Larger images are not even decoded."),
    click.option("--shard-samples", default=10_000, show_default=True, help="Input records of one shard."),
    click.option("--order", type=click.Choice(["shuffled", "source"]), default="shuffled", show_default=True),
    click.option("--seed", default=0, show_default=True, help="Seed of the shuffle."),
    click.option("--workers", type=int, help="Processes that convert.  [default: one a core]"),
    click.option(
        "--max-rejected", default=0.01, show_default=True, help="Largest share (0 to 1) of records that may fail."
    ),
    json_option,
)


@click.group()
def shard() -> None:
    """Turn raw faces into a shard set."""


def _add_input(kind: str, text: str) -> None:
    @_SHARD_OPTIONS
    def command(**arguments: Any) -> None:
        _shard(kind, **arguments)

    shard.command(kind, help=text)(command)


for _kind, _text in _INPUTS.items():
    _add_input(_kind, _text)


def _shard(
    kind: str,
    *,
    sources: Sequence[Path],
    out: Path,
    tables: Sequence[Path],
    tag_pattern: str | None,
    tag_folders: Sequence[str],
    ignore_extra_tags: bool,
    align: Path | None,
    as_json: bool,
    name: str | None,
    workers: int | None,
    **others: Any,
) -> None:
    from shardgen.convert import convert
    from shardgen.summary import lines_of_conversion
    from shardgen.tags import Records, combine, lines_of_sources

    opening = {one: others.pop(one) for one in ("identities", "identity_pattern", "list_file", "identity_column")}
    config = _config(name=name or out.resolve().name, workers=workers or os.cpu_count() or 1, **others)
    source = _open(kind, sources, out, **opening)
    records = Records(source.names, source.identities, source.labels)
    named = _named_tags(tables, tag_pattern, tag_folders, ignore_extra_tags, records)
    if source.tags is not None:
        named.append(("the input", source.tags))
    tags, tag_sources = combine(named, records)
    manifest = convert(source, tags, out, config, tag_sources, _landmarks(align, records))
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude={"identities", "shards"}) | {"out": str(out)})
        return
    click.echo("\n".join([*lines_of_conversion(manifest, out), *lines_of_sources(manifest.tag_sources)]))


def _config(**fields: Any) -> Any:
    from pydantic import ValidationError

    from shardgen.config import ShardConfig

    try:
        return ShardConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{option} {first['input']}: {first['msg']}") from None


def _open(
    kind: Any, paths: Sequence[Path], out: Path, identities: Literal["apart", "joined"], **opening: Any
) -> "Source":
    from shardgen.inputs import open_source
    from shardgen.inputs.joined import join

    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    opened = [open_source(kind, path, spool_folder=out.resolve().parent, **opening) for path in paths]
    source = join([(path.resolve().name, one) for path, one in zip(paths, opened, strict=True)], identities)
    if source.ignored:
        click.echo(f"{len(source.ignored)} files are no images and stay out, such as {source.ignored[0]}", err=True)
    return source


def _named_tags(
    tables: Sequence[Path], pattern: str | None, folders: Sequence[str], ignore_extra: bool, records: "Records"
) -> list[tuple[str, "Tags"]]:
    """Return what tables, pattern and folders say, in the order in which they are believed."""
    from shardgen.tag_tables import join_table, read_table
    from shardgen.tags import join_folder, join_pattern

    named = [(str(table), join_table(read_table(table), records, ignore_extra)) for table in tables]
    if pattern is not None:
        named.append((f"the pattern {pattern}", join_pattern(pattern, records.names())))
    return named + [(f"the folder {one}", join_folder(one, records.names())) for one in folders]


def _landmarks(table: Path | None, records: "Records") -> "npt.NDArray[np.float64] | None":
    from shardgen.align import LandmarkTable

    if table is None:
        return None
    landmarks = LandmarkTable(table)
    return landmarks.of(list(records.keys() if landmarks.by_key else records.names()))


@click.command()
@click.argument("path", metavar="SET", type=PATH)
@click.argument("tables", metavar="[TABLE]...", nargs=-1, type=PATH)
@_TAG_OPTIONS
@json_option
def tag(
    path: Path,
    tables: Sequence[Path],
    tag_pattern: str | None,
    tag_folders: Sequence[str],
    ignore_extra_tags: bool,
    as_json: bool,
) -> None:
    """Add or replace tags of a finished set; its tars, and its revision so far, stay as they are."""
    from shardgen.retag import records_of, retag
    from shardgen.shardset import ShardSet
    from shardgen.tags import lines_of_sources

    if not (tables or tag_pattern or tag_folders):
        raise UsageError("nothing says which tags; give a table, --tag-pattern or --tag-folder")
    data = ShardSet(path)
    records, before = records_of(data), data.manifest.revision
    manifest = retag(path, _named_tags(tables, tag_pattern, tag_folders, ignore_extra_tags, records))
    if as_json:
        print_json(manifest.model_dump(mode="json", exclude={"identities", "shards"}) | {"set": str(path)})
        return
    done = f"now revision {manifest.revision}" if manifest.revision > before else "has these tags already"
    click.echo("\n".join([f"{path}: {done}", *lines_of_sources(manifest.tag_sources)]))


@click.command()
@click.argument("path", metavar="SET", type=PATH)
@click.option("--deep", is_flag=True, help="Also decode every image and compare tars, indexes and tables.")
@json_option
def verify(path: Path, deep: bool, as_json: bool) -> None:
    """Check that a shard set is what its manifest says."""
    from shardgen.verify import faults

    try:
        found = list(faults(path, deep))
    except DataError as error:  # the manifest itself
        found = [str(error)]
    if as_json:
        print_json({"set": str(path), "intact": not found, "faults": found})
    else:
        click.echo("\n".join(found) if found else f"{path}: intact, as its manifest says")
    if found:
        sys.exit(1)


@click.command()
@click.argument("sets", metavar="SET...", nargs=-1, required=True, type=PATH)
@click.option("--sheet", type=PATH, help="Write a PNG with a row of faces for each group.")
@click.option("--html", type=PATH, help="Write one page with figures, plots and faces.")
@json_option
def inspect(sets: Sequence[Path], sheet: Path | None, html: Path | None, as_json: bool) -> None:
    """Show what shard sets hold."""
    from shardgen.page import write_page
    from shardgen.sheet import contact_sheet, write_png
    from shardgen.summary import summarise

    summaries = [summarise(one) for one in sets]
    if sheet is not None:
        write_png(sheet, contact_sheet(sets))
        click.echo(f"contact sheet: {sheet}", err=True)
    if html is not None:
        write_page(html, summaries)
        click.echo(f"page: {html}", err=True)
    if as_json:
        print_json([asdict(one) for one in summaries])
        return
    click.echo("\n".join(line for one in summaries for line in one.lines()))


@click.group()
def export() -> None:
    """Write a shard set in another form."""


_EXPORT = options(click.argument("source", metavar="SET", type=PATH), click.argument("out", type=PATH))


@export.command(name="recordio")
@_EXPORT
def export_to_recordio(source: Path, out: Path) -> None:
    """InsightFace's layout: train.rec, train.idx and property in the folder OUT."""
    from shardgen.export import export_recordio

    click.echo("\n".join(export_recordio(source, out).lines()))


@export.command(name="folder")
@_EXPORT
def export_to_folder(source: Path, out: Path) -> None:
    """A folder OUT with a folder of images per identity."""
    from shardgen.export import export_folder

    click.echo("\n".join(export_folder(source, out).lines()))


@export.command(name="bin")
@_EXPORT
@click.option("--pairs", type=PATH, help="CSV with columns first, second and same: keys or sources of samples.")
@click.option("--draw", type=int, metavar="N", help="Draw N pairs instead, half of them genuine, in ten folds.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@click.option("--within", metavar="AXIS", help="Draw impostors within one value of a tag axis, as RFW does.")
def export_to_bin(source: Path, out: Path, pairs: Path | None, draw: int | None, seed: int, within: str | None) -> None:
    """Verification pairs as InsightFace's .bin, in the file OUT."""
    from shardgen.export import export_bin
    from shardgen.pairs import draw_pairs, read_pairs
    from shardgen.shardset import ShardSet

    if (pairs is None) == (draw is None):
        raise UsageError("give either --pairs FILE or --draw N")
    shards = ShardSet(source)
    chosen = read_pairs(shards, pairs) if pairs is not None else draw_pairs(shards, draw or 0, seed, within)
    click.echo("\n".join(export_bin(source, out, chosen).lines()))
