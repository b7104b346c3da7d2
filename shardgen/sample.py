"""A sample and its two members in the tar: the on-disk contract.

`<key>.<extension>` holds the source's image bytes verbatim, `<key>.json` everything else.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field


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
        fields = {
            "identity": self.identity,
            "dataset": self.dataset,
            "origin": self.origin,
            "tags": dict(self.tags),
            "attributes": dict(self.attributes),
        }
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def sample_key(index: int) -> str:
    """Return the key of the input's `index`-th record, 0 <= index < 16**8: 8 hexadecimal digits.

    Keys number input records, not written samples, so a rejected record never shifts the others.
    """
    return f"{index:08x}"


def content_hash(image: bytes) -> bytes:
    """Return 16 bytes of BLAKE2b over the image file: equal only for exact duplicates."""
    return hashlib.blake2b(image, digest_size=16).digest()
