"""A sample and its two members in the tar: the on-disk contract.

`<key>.<extension>` holds the source's image bytes verbatim, `<key>.json` everything else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import xxhash


@dataclass(frozen=True, slots=True)
class Sample:
    """One face image with what is known about it."""

    key: str
    """Matches `[0-9a-f]{1,15}`: WebDataset splits names at dots, DALI's index at spaces."""
    image: bytes
    identity: str
    dataset: str
    origin: str
    tags: Mapping[str, str]
    attributes: Mapping[str, str] = field(default_factory=dict)

    def members(self, extension: str) -> list[tuple[str, bytes]]:
        """Return name and bytes of the sample's members, in the order they have in the tar."""
        return [(f"{self.key}.{extension}", self.image), (f"{self.key}.json", self.json_member())]

    def json_member(self) -> bytes:
        """Return the bytes of `<key>.json`: the same fields always give the same bytes."""
        return json_member(self.attributes, fixed_fields(self.identity, self.dataset, self.origin, self.tags))


def json_member(attributes: Mapping[str, str], fixed: str) -> bytes:
    """Return the JSON of a sample's own attributes and the fields that many samples share."""
    own = ",".join([f"{_quoted(name)}:{_quoted(attributes[name])}" for name in sorted(attributes)])
    return f'{{"attributes":{{{own}}},{fixed}'.encode()


def fixed_fields(identity: str, dataset: str, origin: str, tags: Mapping[str, str]) -> str:
    """Return the end of a sample's JSON: made once, it serves every image with the same identity and tags."""
    fields = {"dataset": dataset, "identity": identity, "origin": origin, "tags": dict(tags)}
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))[1:]


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
