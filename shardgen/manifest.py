"""What a data set consists of. `manifest.json` is written last and vouches for every other byte.

The file is canonical JSON (sorted keys, fixed layout) that contains the hash of itself, so no byte of
it can change unnoticed either. A folder without one is unfinished, and nothing reads it.

Tagging a finished set adds a revision: new tables beside the old ones, and the manifest before it kept
as `manifest.r<revision>.json`. The tars are shared, so every revision stays whole.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shardgen.config import Origin
from shardgen.errors import DataError, UsageError
from shardgen.files import write_durably

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
REJECTED = "rejected.csv"
_SEAL = re.compile(rb'^ "manifest_sha256": "([0-9a-f]{64})",\n', re.MULTILINE)  # deeper keys are further to the right


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(_Record):
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


class ShardInfo(_Record):
    """One shard: `<name>.tar`, `<name>.idx` and `<name>.parquet`."""

    name: str
    num_samples: int
    files: Mapping[str, FileInfo]
    """Suffix (`.tar`, `.idx`, and `.parquet` or after tagging `.r<revision>.parquet`) -> file."""

    @property
    def table(self) -> str:
        """Name of the file that holds the shard's table."""
        return self.name + next(suffix for suffix in self.files if suffix.endswith(".parquet"))


class OrderStatistics(_Record):
    """How well identities are spread over a set, sample after sample and shard after shard."""

    adjacent_same_identity: float
    """Share of neighbouring samples that are of one identity."""
    expected_if_random: float
    """The same share for a random order: sum of n(n-1) over identities by N(N-1)."""
    identities_per_shard: float
    """Mean over the shards."""


class TagSource(_Record):
    """Where tags came from, in the order of precedence: what an earlier source knows, a later one cannot change."""

    name: str
    """File of the table, the pattern, or what else it was."""
    axes: Sequence[str]
    num_tagged: int
    """Records of which it knows something."""
    num_unknown: int
    """Records of which it knows nothing."""
    unknown_examples: Sequence[str]
    """Names of the first few of those."""
    conflicts: Mapping[str, int]
    """Axis -> records for which an earlier source says something else, and was believed."""
    conflict_examples: Sequence[str]
    """The first few of those, as lines for a person."""


class Manifest(_Record):
    """A finished shard set."""

    format_version: int = FORMAT_VERSION
    name: str
    origin: Origin
    num_read: int
    num_samples: int
    num_rejected: int
    rejected_reasons: Mapping[str, int]
    rejected_file: FileInfo
    axes: Mapping[str, Sequence[str]]
    """Tag axis -> values; the shards' tables hold positions in them, 0 is unknown."""
    counts: Mapping[str, Mapping[str, int]]
    """Tag axis -> value -> samples."""
    identities: Sequence[str]
    """Names; the shards' tables hold positions in them."""
    num_identities: int
    """Identities with at least one sample."""
    shards: Sequence[ShardInfo]
    job: Mapping[str, str | int]
    """Hashes of the inputs and the tags, and the options: the same job gives the same bytes."""
    revision: int = 1
    """Counts how often tags were added or replaced since the conversion, from 1."""
    tag_sources: Sequence[TagSource] = ()
    order: OrderStatistics | None = None
    seal: str = Field(default="", exclude=True)
    """SHA-256 of all the rest, as the file holds it: it names this set and no other."""
    edited: Mapping[str, int] = {}
    """Why image bytes are not the source's (`resized`, `aligned`, `turned upright`, ...) -> samples."""


def revision_name(revision: int) -> str:
    """Return the file that keeps an earlier revision's manifest."""
    return f"manifest.r{revision}.json"


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n"


def _is_intact(content: bytes) -> bool:
    """Return whether the hash in a manifest is that of all the rest, without making millions of names anew."""
    seal = _SEAL.search(content)
    return (
        seal is not None
        and hashlib.sha256(content[: seal.start()] + content[seal.end() :]).hexdigest() == seal[1].decode()
    )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Publish the set: write the manifest aside, sync it, rename it, sync the folder; return it with its seal."""
    fields = manifest.model_dump(mode="json")
    seal = hashlib.sha256(_canonical(fields)).hexdigest()
    write_durably(folder / MANIFEST, _canonical({**fields, "manifest_sha256": seal}))
    return manifest.model_copy(update={"seal": seal})


def read_manifest(folder: Path, file: str = MANIFEST) -> Manifest:
    """Return the manifest of a finished set, of its newest revision unless `file` names another.

    Raises `UsageError` when there is no such folder, `DataError` when the set is unfinished, of
    another format version, or its manifest is not as it was written.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give a shard set made by `facemix shard`")
    try:
        content = (folder / file).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {file}: no shard set, or one whose conversion did not finish; "
            "run its `facemix shard` again"
        ) from None
    if not _is_intact(content):
        raise DataError(f"{folder / file} is not as it was written (its own hash differs); restore or rebuild it")
    fields = json.loads(content)
    fields["seal"] = fields.pop("manifest_sha256")
    if fields.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{folder} has format {fields.get('format_version')}, this facemix reads {FORMAT_VERSION}; "
            "convert it again or use the facemix that wrote it"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise DataError(
            f"{folder / file}: {'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        ) from None


def hash_file(path: Path) -> FileInfo:
    """Return a file's size and SHA-256, read in pieces."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(1 << 20):
            digest.update(piece)
        return FileInfo(bytes=stream.tell(), sha256=digest.hexdigest())
