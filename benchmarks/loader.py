"""What does an image cost through FaceLoader, beside decoding alone and DALI's own WebDataset reader?

Peers deliver decoded, flipped, normalised float32 images; the limit only decodes, on all cores.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from benchmarks.timing import compare, print_costs
from pipeline.catalog import Catalog, open_catalog
from pipeline.config import AugmentConfig, LoaderConfig, MixConfig
from pipeline.loader import FaceLoader
from pipeline.plan import Plan
from pipeline.reader import ShardReader
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.inputs.folders import open_folder
from shardgen.procedural import draw_folder
from shardgen.tags import no_tags

BATCH = 256


def main(smoke: bool = False) -> None:
    """Print the table; `smoke` only shows that it runs."""
    images = BATCH if smoke else 16 * BATCH
    with tempfile.TemporaryDirectory() as folder:
        shards = _make_set(Path(folder), images)
        catalog = open_catalog({"drawn": shards})
        threads = os.cpu_count() or 1
        peers = {
            "decoding alone (OpenCV)": _decode_only(catalog, threads),
            "FaceLoader": _face_loader(catalog, shards, images, threads),
            "DALI webdataset reader": _dali_reader(shards, images, threads),
        }
        costs = compare(peers, rounds=1 if smoke else 7)
    print_costs(f"{images} JPEGs of 112x112, {threads} threads, per image", costs, "decoding alone (OpenCV)")


def _make_set(folder: Path, images: int) -> Path:
    draw_folder(folder / "raw", 0, range(images // 8), range(8))
    source = open_folder(folder / "raw" / "images")
    convert(source, no_tags(len(source)), folder / "set", ShardConfig(name="drawn", origin="synthetic"))
    return folder / "set"


def _decode_only(catalog: Catalog, threads: int) -> Callable[[], int]:
    encoded = ShardReader(catalog).read(np.arange(len(catalog)))
    pool = ThreadPoolExecutor(threads)

    def run() -> int:
        return sum(image is not None for image in pool.map(lambda one: cv2.imdecode(one, cv2.IMREAD_COLOR), encoded))

    return run


def _face_loader(catalog: Catalog, shards: Path, images: int, threads: int) -> Callable[[], int]:
    mix = MixConfig.model_validate({"sets": {"drawn": {"path": shards}}})
    plan = Plan(catalog, mix, seed=0, batch_size=BATCH)
    config = LoaderConfig(batch_size=BATCH, threads=threads)
    loader = FaceLoader(plan, AugmentConfig(), config, torch.device("cpu"))

    def run() -> int:
        return sum(len(batch.images) for batch in islice(loader, images // BATCH))

    return run


def _dali_reader(shards: Path, images: int, threads: int) -> Callable[[], int]:
    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> object:
        encoded, _ = fn.readers.webdataset(  # type: ignore[misc]
            paths=[str(tar) for tar in sorted(shards.glob("*.tar"))],
            index_paths=[str(index) for index in sorted(shards.glob("*.idx"))],
            ext=["jpg", "json"],
            random_shuffle=True,
            missing_component_behavior="error",
        )
        decoded = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        flip = fn.random.coin_flip()
        return fn.crop_mirror_normalize(
            decoded, mirror=flip, dtype=types.FLOAT, output_layout="HWC", mean=[127.5] * 3, std=[127.5] * 3
        )

    pipe = graph()
    pipe.build()

    def run() -> int:
        return sum(len(pipe.run()[0]) for _ in range(images // BATCH))

    return run
