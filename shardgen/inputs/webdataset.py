"""WebDataset shards: our own by their tables, anybody's by the names of their members.

Members of one sample follow each other and share their name up to the first dot of its last part.
Who it shows stands in `.json`, in `.cls`, `.txt` or `.id`, or is the folder in the name: the first of
these that any sample has is what counts for all, so a damaged one never gets its identity elsewhere.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from sys import intern
from tarfile import TarInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError
from shardgen.files import Descriptor
from shardgen.images import EXTENSIONS
from shardgen.inputs.slices import NO_IMAGE, SliceSource, files_of
from shardgen.inputs.tagged import TagRow, tags_of_rows
from shardgen.inputs.tars import members
from shardgen.manifest import MANIFEST
from shardgen.shardset import ShardSet
from shardgen.sources import IDENTITY_FIELDS, identity_name, is_image, number_identities, text
from shardgen.tags import Tags

_TEXT_EXTENSIONS = ("cls", "txt", "id")
_MAX_TEXT_BYTES = 1 << 20


def open_webdataset(*paths: Path) -> SliceSource:
    """Open one of our sets, or the `.tar` files given and those below the folders given.

    Raises `UsageError` for compressed tars, `DataError` for one that is damaged or holds no sample.
    """
    if len(paths) == 1 and (paths[0] / MANIFEST).is_file():
        return _open_set(paths[0])
    return _open_tars([tar for path in paths for tar in files_of(path, ".tar")])


def _open_set(folder: Path) -> SliceSource:
    opened = ShardSet(folder)
    shards, axes = opened.manifest.shards, opened.manifest.axes
    tars = [folder / f"{shard.name}.tar" for shard in shards]
    table = opened.table(["offset", "size", "identity", "source", *axes])
    lengths = [shard.files[".tar"].bytes for shard in shards]
    if lengths != [tar.stat().st_size if tar.exists() else None for tar in tars] or table.num_rows != len(opened):
        raise DataError(f"{folder} is not what its manifest says; see `facemix verify {folder}`")
    codes = [np.asarray(table[axis].to_numpy(), np.int16) for axis in axes]
    return SliceSource(
        identities=opened.manifest.identities,
        labels=np.asarray(table["identity"].to_numpy(), np.int32),
        tags=Tags(axes, np.stack(codes, axis=1)) if axes else None,
        archives=tars,
        paths=table["source"].combine_chunks().cast(pa.large_string()),
        file_numbers=np.repeat(np.arange(len(shards), dtype=np.int32), [shard.num_samples for shard in shards]),
        offsets=np.asarray(table["offset"].to_numpy(), np.int64),
        sizes=np.asarray(table["size"].to_numpy(), np.int64),
    )


@dataclass(frozen=True)
class _Samples:
    """The samples of one tar."""

    paths: pa.Array
    places: npt.NDArray[np.int64]
    """Offset and size of each image."""
    owners: Sequence[Sequence[str | None]]
    """What each sample's json, text and folder say about whose it is."""
    tags: Sequence[TagRow]


def _open_tars(tars: Sequence[Path]) -> SliceSource:
    ignored: list[str] = []
    tars_samples = [_samples(tar, ignored) for tar in tars]
    lengths = [len(samples.places) for samples in tars_samples]
    if not any(lengths):
        raise DataError(f"{tars[0]} holds no sample ({len(ignored)} other members); names of samples have a dot")
    kinds = [
        number_identities(owner[kind] for samples in tars_samples for owner in samples.owners) for kind in range(3)
    ]
    identities, labels = next((kind for kind in kinds if kind[0]), kinds[0])
    places = np.concatenate([samples.places for samples in tars_samples])
    return SliceSource(
        identities=identities,
        labels=labels,
        tags=tags_of_rows([row for samples in tars_samples for row in samples.tags], tars[0]),
        ignored=ignored,
        no_identity="the sample does not say whose it is",
        archives=tars,
        paths=pa.concat_arrays([samples.paths for samples in tars_samples]),
        file_numbers=np.repeat(np.arange(len(tars), dtype=np.int32), lengths),
        offsets=places[:, 0].copy(),
        sizes=places[:, 1].copy(),
    )


def _samples(tar: Path, ignored: list[str]) -> _Samples:
    names: list[str] = []
    places: list[tuple[int, int]] = []
    owners: list[Sequence[str | None]] = []
    tags: list[TagRow] = []
    descriptor = Descriptor(os.open(tar, os.O_RDONLY))
    for prefix, group in groupby(_parts(tar, ignored), key=lambda part: part[0]):
        by_extension: dict[str, TarInfo] = {}
        for _, extension, member in group:
            if by_extension.setdefault(extension, member) is not member:
                raise DataError(f"{tar} byte {member.offset}: a second {member.name[:200]!r}; a sample has one of each")
        image = _image(by_extension)
        fields = _fields(_content(descriptor, by_extension.get("json")))
        texts = (_content(descriptor, by_extension.get(extension)) for extension in _TEXT_EXTENSIONS)
        names.append(_clean(image.name) if image else prefix)
        places.append((image.offset_data, image.size) if image else (0, NO_IMAGE))
        said = (_identity(fields), _first_text(texts), prefix.rpartition("/")[0] or None)
        owners.append(tuple(owner and intern(owner) for owner in said))
        tags.append(_tags(fields))
    return _Samples(text(names, tar), np.array(places, np.int64).reshape(-1, 2), owners, tags)


def _clean(name: str) -> str:
    return name.removeprefix("./")  # as `tar cf faces.tar .` writes them


def _parts(tar: Path, ignored: list[str]) -> Iterator[tuple[str, str, TarInfo]]:
    """Yield prefix and extension of every member that belongs to a sample."""
    for member in members(tar):
        name = _clean(member.name)
        stem, dot, extension = name.rpartition("/")[2].partition(".")
        if stem and dot:
            yield name[: -len(extension) - 1], extension.lower(), member
        elif not member.isdir():
            ignored.append(name)


def _is_plain(member: TarInfo) -> bool:
    return member.isreg() and not member.issparse()  # links and sparse files have no bytes of their own here


def _image(by_extension: Mapping[str, TarInfo]) -> TarInfo | None:
    """Return the sample's image: `1.jpg` before `1.mask.png` where there are both."""
    images = [extension for extension, member in by_extension.items() if is_image(extension) and _is_plain(member)]
    return by_extension[min(images, key=lambda extension: extension not in EXTENSIONS)] if images else None


def _content(descriptor: Descriptor, member: TarInfo | None) -> bytes:
    """Return a small member's bytes, none for one that is absent or no plain file."""
    if member is None or not _is_plain(member):
        return b""
    return os.pread(descriptor.number, min(member.size, _MAX_TEXT_BYTES), member.offset_data)


def _fields(content: bytes) -> Mapping[str, object]:
    try:
        fields = json.loads(content or b"{}")
        if b"\\u" in content:
            json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _identity(fields: Mapping[str, object]) -> str | None:
    return identity_name(next((fields[name] for name in IDENTITY_FIELDS if fields.get(name) is not None), None))


def _first_text(contents: Iterator[bytes]) -> str | None:
    texts = (content.decode(errors="replace").strip() for content in contents)
    return next(filter(None, texts), None)


def _tags(fields: Mapping[str, object]) -> TagRow:
    tags = fields.get("tags")
    return (
        tuple(sorted((axis, value) for axis, value in tags.items() if isinstance(value, str)))
        if isinstance(tags, dict)
        else ()
    )
