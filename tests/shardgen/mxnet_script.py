"""Runs inside the MXNet oracle: `read STEM` prints every record as JSON, `write STEM` writes a set.

It knows nothing of facemix; MXNet's own reader and writer are the judge.
"""

import hashlib
import json
import struct
import sys

import mxnet
import numpy

MAGIC = struct.pack("<I", 0xCED7230A)


def read(stem: str) -> None:
    """Print index key, labels, id and image of each record as MXNet sees it."""
    records = mxnet.recordio.MXIndexedRecordIO(stem + ".idx", stem + ".rec", "r")
    for key in records.keys:
        header, image = mxnet.recordio.unpack(records.read_idx(key))
        labels = numpy.atleast_1d(header.label).astype(float).tolist()
        digest = hashlib.sha256(image).hexdigest()
        seen = {"key": key, "labels": labels, "id": int(header.id), "bytes": len(image), "sha256": digest}
        sys.stdout.write(json.dumps(seen) + "\n")


def write(stem: str) -> None:
    """Write payloads of every length and kind, some holding the record magic, one with two labels."""
    records = mxnet.recordio.MXIndexedRecordIO(stem + ".idx", stem + ".rec", "w")
    random = numpy.random.RandomState(0)
    for key in range(200):
        image = random.bytes(key * 3)
        if key % 3 == 0:
            image = image[: key % 8] + MAGIC + image + MAGIC * (key % 4)
        label = float(key) if key % 7 else [float(key), 1.0]
        header = mxnet.recordio.IRHeader(0, label, key, 0)
        records.write_idx(key, mxnet.recordio.pack(header, image))
    records.close()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](sys.argv[2])
