"""A sample and its two members in the tar: the on-disk contract.

`<key>.<extension>` holds the source's image bytes verbatim, `<key>.json` everything else.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known about one face image, and the JSON that says so."""

    key: str
    """Matches `[0-9a-f]{1,15}`: WebDataset splits names at dots, DALI's index at spaces."""
    identity: str
    dataset: str
    origin: str
    tags: Mapping[str, str]
    attributes: Mapping[str, str]

    def json_member(self) -> bytes:
        """Return the bytes of `<key>.json`: the same fields always give the same bytes."""
        return json_text(
            {
                "attributes": dict(self.attributes),
                "dataset": self.dataset,
                "identity": self.identity,
                "origin": self.origin,
                "tags": dict(self.tags),
            }
        ).encode()


def json_text(fields: Mapping[str, object]) -> str:
    """Return the one way in which we write these fields as JSON."""
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def json_members(
    sources: Iterable[str], identities: Iterable[str], tags: Iterable[str], dataset: str, origin: str
) -> list[bytes]:
    """Return the `<key>.json` of samples whose attribute is their source; `tags` are JSON already."""
    to_identity, to_tags = f'}},"dataset":{_quoted(dataset)},"identity":', f',"origin":{_quoted(origin)},"tags":'
    return [
        f'{{"attributes":{{"source":{_quoted(source)}{to_identity}{_quoted(identity)}{to_tags}{text}}}'.encode()
        for source, identity, text in zip(sources, identities, tags, strict=True)
    ]


_quoted = json.encoder.encode_basestring  # what json.dumps uses, without all that is around it


def sample_key(index: int) -> str:
    """Return the key of the input's `index`-th record, 0 <= index < 16**8: 8 hexadecimal digits.

    Keys number input records, not written samples, so a rejected record never shifts the others.
    """
    return f"{index:08x}"


def content_hash(image: bytes) -> bytes:
    """Return 16 bytes of XXH3-128 over the image file: it finds exact duplicates, at the speed of memory.

    The shards' SHA-256 is what guards against forgery.
    """
    return xxhash.xxh3_128_digest(image)
