"""Loaders that deliver every image of a set as batches in memory, each in a process of its own.

`python -m benchmarks.loader_peers NAME SET REC IMAGES` measures one and prints a `Run` as JSON. Imports and two
passes come before the clock starts. Outside of functions stands the standard library only, for each peer lives in
the environment that its packages need.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.timing import timed

BATCH = 256
SIZE = 112
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Data:
    """The same JPEGs twice."""

    shards: Path
    """As a shard set."""
    rec: Path
    """As InsightFace's `train.rec`."""
    images: int
    """A multiple of `BATCH`."""


Work = Callable[[], int]
"""Delivers so many images."""


def _limit(data: Data) -> Work:
    """Decode and nothing else; every thread has its share beforehand and lets go of the GIL in libjpeg-turbo."""
    import simplejpeg

    images = _encoded(data)

    def decode(first: int) -> int:
        return sum(len(simplejpeg.decode_jpeg(image)) > 0 for image in images[first::THREADS])

    def run() -> int:
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(decode, range(THREADS)))

    return run


def _encoded(data: Data) -> list[bytes]:
    from shardgen.shardset import ShardSet

    shards = ShardSet(data.shards)
    return [shards.image(row) for row in range(data.images)]


def face_loader(data: Data, augment: str, cached: bool = False) -> Any:
    """Return a `FaceLoader` of the set."""
    import torch

    from pipeline.augment_config import AugmentConfig
    from pipeline.config import LoaderConfig, MixConfig
    from pipeline.loader import FaceLoader
    from pipeline.plan import open_plan

    mix = MixConfig.model_validate({"sets": {"drawn": {"path": data.shards}}})
    cache = Path(tempfile.mkdtemp(dir=data.shards.parent)) if cached else None
    config = LoaderConfig(batch_size=BATCH, threads=THREADS, cache=cache)
    plan = open_plan(mix, seed=0, batch_size=BATCH)
    return FaceLoader(plan, AugmentConfig.model_validate(augment), config, torch.device("cpu"))


def _facemix(data: Data, augment: str = "flip", as_float: bool = False, cached: bool = False) -> Work:
    from pipeline.loader import normalised

    loader = face_loader(data, augment, cached)

    memory = normalised(next(loader).images)  # as in training, the floats of a batch take the place of the last ones

    def run() -> int:
        batches = (batch.images for batch in islice(loader, data.images // BATCH))
        return sum(len(normalised(images, memory) if as_float else images) for images in batches)

    return run


def _dali_webdataset(data: Data, as_float: bool = False) -> Work:
    from nvidia.dali import fn

    shards = data.shards
    return _dali(
        lambda: fn.readers.webdataset(
            paths=[str(tar) for tar in sorted(shards.glob("*.tar"))],
            index_paths=[str(index) for index in sorted(shards.glob("*.idx"))],
            ext=["jpg", "json"],
            random_shuffle=True,
            missing_component_behavior="error",
        ),
        data.images,
        as_float,
    )


def _dali_mxnet(data: Data) -> Work:
    """Read the `.rec` by an index of its images alone: DALI cannot decode the header and identity records."""
    from nvidia.dali import fn

    lines = data.rec.with_suffix(".idx").read_text().splitlines()
    index = data.rec.with_suffix(".images.idx")
    index.write_text("".join(f"{line}\n" for line in lines if 0 < int(line.split()[0]) <= data.images))
    reader = partial(fn.readers.mxnet, path=[str(data.rec)], index_path=[str(index)], random_shuffle=True)
    return _dali(reader, data.images, as_float=False)


def _dali(reader: Callable[[], Any], num_images: int, as_float: bool) -> Work:
    from nvidia.dali import fn, pipeline_def, types
    from torch.utils.dlpack import from_dlpack

    @pipeline_def(batch_size=BATCH, num_threads=THREADS, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> object:
        encoded, _ = reader()
        decoded = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        flip = fn.random.coin_flip()
        if not as_float:
            return fn.flip(decoded, horizontal=flip)
        return fn.crop_mirror_normalize(
            decoded, mirror=flip, dtype=types.FLOAT, output_layout="HWC", mean=[127.5] * 3, std=[127.5] * 3
        )

    pipe = graph()
    pipe.build()

    def run() -> int:
        batches = (from_dlpack(pipe.run()[0].as_tensor()) for _ in range(num_images // BATCH))
        return sum(len(batch.permute(0, 3, 1, 2)) for batch in batches)

    return run


def _torch_webdataset(data: Data, as_float: bool) -> Work:
    """Decode as is usual there: simplejpeg where uint8 will do, OpenCV and a float tensor otherwise."""
    import cv2
    import numpy as np
    import simplejpeg
    import webdataset
    from torch.utils.data import DataLoader, default_collate

    def decode(sample: dict[str, bytes]) -> tuple[Any, str]:
        if as_float:
            bgr: Any = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR)
            image = bgr[..., ::-1]
        else:
            image = simplejpeg.decode_jpeg(sample["jpg"])
        if np.random.default_rng().random() < 0.5:
            image = image[:, ::-1]
        if as_float:
            image = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 127.5 - 1
        return np.ascontiguousarray(image), json.loads(sample["json"])["identity"]

    urls = [str(tar) for tar in sorted(data.shards.glob("*.tar"))]
    shards = webdataset.WebDataset(urls, shardshuffle=100, nodesplitter=None, workersplitter=webdataset.split_by_worker)
    batches = shards.shuffle(1000).map(decode).batched(BATCH, collation_fn=default_collate)
    loader = DataLoader(batches, batch_size=None, num_workers=THREADS)
    return lambda: sum(len(images) for images, _ in loader)


def _torch_pil(data: Data, augment: str) -> Work:
    """A data set of files in memory, decoded and augmented by PIL in the workers of a DataLoader, then a float tensor.

    So do the published systems, with torchvision's `ToTensor` and `Normalize` in the end.
    """
    from io import BytesIO

    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from benchmarks.pil_augment import AUGMENTATIONS

    encoded, change = _encoded(data), AUGMENTATIONS[augment]

    class Faces(Dataset[Any]):
        def __len__(self) -> int:
            return len(encoded)

        def __getitem__(self, index: int) -> Any:
            image = np.array(change(Image.open(BytesIO(encoded[index])).convert("RGB")))
            return torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div_(255).sub_(0.5).div_(0.5)

    loader: DataLoader[Any] = DataLoader(Faces(), batch_size=BATCH, shuffle=True, num_workers=THREADS)
    return lambda: sum(len(images) for images in loader)


def _insightface(data: Data) -> Work:
    """The data set class of InsightFace's `arcface_torch` (`dataset.py`), its transforms written in NumPy."""
    import mxnet
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Faces(Dataset[Any]):
        def __init__(self) -> None:
            self.imgrec = mxnet.recordio.MXIndexedRecordIO(str(data.rec.with_suffix(".idx")), str(data.rec), "r")

        def __len__(self) -> int:
            return data.images

        def __getitem__(self, index: int) -> Any:
            header, image = mxnet.recordio.unpack(self.imgrec.read_idx(index + 1))
            sample = mxnet.image.imdecode(image).asnumpy()
            if np.random.rand() < 0.5:
                sample = sample[:, ::-1]
            tensor = torch.from_numpy(np.ascontiguousarray(sample.transpose(2, 0, 1))).float()
            return tensor.div_(127.5).sub_(1), torch.tensor(int(header.label), dtype=torch.long)

    loader: DataLoader[Any] = DataLoader(Faces(), batch_size=BATCH, shuffle=True, num_workers=THREADS)
    return lambda: sum(len(images) for images, _ in loader)


def _spdl(data: Data) -> Work:
    import numpy as np
    import simplejpeg
    from spdl.pipeline import PipelineBuilder

    places = [line.split() for index in sorted(data.shards.glob("*.idx")) for line in _sample_lines(index)]
    tars = {index.stem: index.with_suffix(".tar").read_bytes() for index in data.shards.glob("*.idx")}
    rng = np.random.default_rng(0)

    def shuffled() -> Iterator[tuple[str, int, int]]:
        for row in rng.permutation(len(places)):
            stem, offset, size = places[row]
            yield stem, int(offset), int(size)

    def decode(place: tuple[str, int, int]) -> Any:
        stem, offset, size = place
        image = simplejpeg.decode_jpeg(tars[stem][offset : offset + size])
        return image[:, ::-1] if rng.random() < 0.5 else image

    def run() -> int:
        builder = PipelineBuilder().add_source(shuffled()).pipe(decode, concurrency=THREADS)
        pipeline = builder.aggregate(BATCH).pipe(np.stack).add_sink(2).build(num_threads=THREADS)
        with pipeline.auto_stop():
            return sum(len(batch) for batch in pipeline)

    return run


def _sample_lines(index: Path) -> Iterator[str]:
    """Yield "shard offset size" of each sample's image in an index for DALI."""
    for line in index.read_text().splitlines()[1:]:
        _, offset, size, *_ = line.split()
        yield f"{index.stem} {offset} {size}"


PEERS: Mapping[str, Callable[[Data], Work]] = {
    "limit": _limit,
    "facemix": _facemix,
    "facemix float": partial(_facemix, as_float=True),
    "facemix cached": partial(_facemix, cached=True),
    "facemix randaugment": partial(_facemix, augment="randaugment", as_float=True),
    "facemix adaface": partial(_facemix, augment="adaface", as_float=True),
    "dali webdataset": _dali_webdataset,
    "dali webdataset float": partial(_dali_webdataset, as_float=True),
    "dali mxnet": _dali_mxnet,
    "torch webdataset": partial(_torch_webdataset, as_float=False),
    "torch webdataset float": partial(_torch_webdataset, as_float=True),
    "torch pil randaugment": partial(_torch_pil, augment="randaugment"),
    "torch pil adaface": partial(_torch_pil, augment="adaface"),
    "insightface": _insightface,
    "spdl": _spdl,
}


if __name__ == "__main__":
    peer = PEERS[sys.argv[1]](Data(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
    for _ in range(2):
        peer()
    print(json.dumps(asdict(timed(peer))))
