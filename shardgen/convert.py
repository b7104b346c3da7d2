"""A conversion: plan -> workers -> merge.

Everything is made in `OUT.unfinished`, each shard complete or not at all, so a conversion that was
stopped goes on where it was. When all are there and the manifest is written, one rename makes the
folder OUT: it exists whole or not at all. The plan is arithmetic on the source's length and workers
get just their own records, so memory does not grow with the images.
"""

import csv
import hashlib
import io
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from math import ceil
from multiprocessing import connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shardgen.config import ShardConfig
from shardgen.counts import Counted
from shardgen.errors import DataError, UsageError
from shardgen.files import ASIDE, becoming, write_durably
from shardgen.manifest import (
    MANIFEST,
    REJECTED,
    Manifest,
    ShardInfo,
    TagSource,
    hash_file,
    read_manifest,
    write_manifest,
)
from shardgen.sources import Source
from shardgen.tags import Tags
from shardgen.writer import ShardJob, ShardRecord, finished_shard, write_shard

_JOB = "job.json"
_STAMP = "files"
_CHANGED = "that have changed since"
_HASHED = {
    "inputs": f"{_CHANGED} (records, names, sizes or identities)",
    "tags": f"{_CHANGED} (axes, values or who has them)",
    "landmarks": _CHANGED,
    _STAMP: f"{_CHANGED} (sizes or times, so their content may be another)",
}
_REPORT_SECONDS = 5.0

_log = logging.getLogger("facemix.shard")


@dataclass(frozen=True)
class Conversion:
    """All that decides a set's bytes."""

    source: Source
    tags: Tags
    config: ShardConfig
    tag_sources: Sequence[TagSource] = ()
    """Where the tags came from, for the manifest."""
    landmarks: npt.NDArray[np.float64] | None = None
    """`[records, 5, 2]` to align every face by; see `shardgen.align`."""

    @cached_property
    def job(self) -> dict[str, str | int]:
        """What the manifest says of it: the same job gives the same bytes."""
        aligned = "" if self.landmarks is None else hashlib.sha256(self.landmarks.tobytes()).hexdigest()
        return {
            "inputs": self.source.fingerprint(),
            "tags": self.tags.fingerprint(),
            "landmarks": aligned,
            **self.config.identity_of_job(),
        }

    @cached_property
    def begun(self) -> dict[str, str | int]:
        """What a restart must find unchanged: the job, and the times of the input's files."""
        return {**self.job, _STAMP: self.source.stamp()}

    @cached_property
    def digest(self) -> str:
        """One hash of all that, for each shard to be bound to."""
        return hashlib.sha256(json.dumps(self.begun, sort_keys=True).encode()).hexdigest()


def convert(
    source: Source,
    tags: Tags,
    out: Path,
    config: ShardConfig,
    tag_sources: Sequence[TagSource] = (),
    landmarks: npt.NDArray[np.float64] | None = None,
) -> Manifest:
    """Turn a source into a shard set in `out` and return its manifest.

    Raises `UsageError` when `out` already holds something, another conversion into it is running, or an
    unfinished one with other inputs or options is there; `DataError` when more than
    `config.max_rejected` of the records cannot become samples; then `out` does not appear, and
    `rejected.csv` in the unfinished folder says why.
    """
    work = Conversion(source, tags, config, tag_sources, landmarks)
    with becoming(out) as unfinished:
        _begin(unfinished, work)
        if not (unfinished / MANIFEST).exists():
            records = sorted(_run(work, unfinished), key=lambda record: record.shard.name)
            _write_rejections(unfinished, records)
            _refuse_too_many(records, unfinished / REJECTED, config.max_rejected)
            shards = list(_number(unfinished, records))
            write_manifest(unfinished, _manifest(unfinished, shards, records, work))
        manifest = read_manifest(unfinished)
        for leftover in [*unfinished.glob("[0-9]*.json"), *unfinished.glob(ASIDE), unfinished / _JOB]:
            leftover.unlink(missing_ok=True)
    return manifest


def _begin(unfinished: Path, work: Conversion) -> None:
    marker = unfinished / _JOB
    if (unfinished / MANIFEST).exists():
        begun, now = read_manifest(unfinished).job, work.job
    elif marker.exists():
        begun, now = json.loads(marker.read_bytes()), work.begun
    elif any(path for path in unfinished.iterdir() if not path.match(ASIDE)):
        raise UsageError(f"{unfinished} holds files of no known conversion; delete it to start anew")
    else:
        begun = now = work.begun
        write_durably(marker, json.dumps(begun).encode())
    different = next((name for name in now if begun.get(name) != now[name]), None)
    if different is not None:
        was = _HASHED.get(different) or f"{begun.get(different)}, now it is {now[different]}"
        raise UsageError(
            f"{unfinished} was begun with {different} {was}; "
            "repeat the first inputs and options to go on, or delete the folder to start anew"
        )


def _jobs(work: Conversion) -> Iterator[ShardJob]:
    """Cut the records into shards, in source order or in a seeded shuffle of the whole source."""
    source, config = work.source, work.config
    order = np.arange(len(source), dtype=np.min_scalar_type(len(source)))
    if config.order == "shuffled":
        np.random.default_rng(config.seed).shuffle(order)
    for number, start in enumerate(range(0, len(source), config.shard_samples)):
        records = order[start : start + config.shard_samples].astype(np.int64)
        yield ShardJob(
            number=number,
            dataset=config.name,
            origin=config.origin,
            records=records,
            source=source.part(records),
            identities=[source.identities[label] if label >= 0 else "" for label in source.labels[records].tolist()],
            tags=work.tags.part(records),
            images=config.image_options(),
            landmarks=None if work.landmarks is None else work.landmarks[records],
            digest=work.digest,
        )


def _run(work: Conversion, folder: Path) -> Iterator[ShardRecord]:
    """Yield what became of every shard, as they complete; those already there are not made again."""
    jobs, total = _jobs(work), len(work.source)
    workers = min(work.config.workers, -(-total // work.config.shard_samples))
    results = map(_shard, repeat(folder), jobs) if workers == 1 else _in_processes(folder, jobs, workers)
    begun = reported = time.monotonic()
    num_read = 0
    for record in results:
        num_read += record.shard.num_samples + len(record.rejections)
        now = time.monotonic()
        if now - reported > _REPORT_SECONDS:
            reported, rate = now, num_read / (now - begun)
            _log.info("%d of %d records, %.0f records/s, %.0f s left", num_read, total, rate, (total - num_read) / rate)
        yield record


def _shard(folder: Path, job: ShardJob) -> ShardRecord:
    return finished_shard(folder, job.number, job.digest) or write_shard(folder, job)


def _in_processes(folder: Path, jobs: Iterator[ShardJob], workers: int) -> Iterator[ShardRecord]:
    """Keep two jobs a worker under way, so that neither workers nor memory wait for the other."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_obey_parent) as pool:
        running = {pool.submit(_shard, folder, job) for job in islice(jobs, 2 * workers)}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(_shard, folder, job) for job in islice(jobs, len(finished))}
                yield from (future.result() for future in finished)
        except BrokenProcessPool:
            raise DataError(
                f"a worker process was killed, perhaps for lack of memory; {folder} keeps the shards that are done: "
                "repeat the command to go on, with fewer --workers if memory is short"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what was stopped can go on later
            raise


def _obey_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is killed: nobody may write on beside a restarted conversion."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_rejections(folder: Path, records: Sequence[ShardRecord]) -> None:
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["key", "source", "reason"])
    for record in records:
        lines.writerows([one.key, one.source, one.reason] for one in record.rejections)
    write_durably(folder / REJECTED, text.getvalue().encode())


def _refuse_too_many(records: Sequence[ShardRecord], listed_in: Path, max_rejected: float) -> None:
    num_written = sum(record.shard.num_samples for record in records)
    num_rejected = sum(len(record.rejections) for record in records)
    num_read = num_written + num_rejected
    if num_written and num_rejected <= max_rejected * num_read:
        return
    first = next(one for record in records for one in record.rejections)
    enough = ceil(num_rejected / num_read * 10_000) / 10_000
    way_out = f"--max-rejected {enough:g} would accept that" if num_written else "no sample would be left"
    raise DataError(
        f"{num_rejected} of {num_read} records rejected, allowed share {max_rejected:g}, so nothing is published; "
        f"first {first.source}: {first.reason}; all are in {listed_in}; {way_out}"
    )


def _number(folder: Path, records: Sequence[ShardRecord]) -> Iterator[ShardInfo]:
    """Drop shards that were left without a sample and close the gap in the others' names."""
    shards = [record.shard for record in records if record.shard.num_samples]
    for shard in (record.shard for record in records if not record.shard.num_samples):
        for suffix in shard.files:
            (folder / f"{shard.name}{suffix}").unlink()
    for number, shard in enumerate(shards):
        name = f"{number:06d}"
        if name != shard.name:
            for suffix in shard.files:
                (folder / f"{shard.name}{suffix}").replace(folder / f"{name}{suffix}")
        yield shard.model_copy(update={"name": name})


def _manifest(folder: Path, shards: Sequence[ShardInfo], records: Sequence[ShardRecord], work: Conversion) -> Manifest:
    axes, config = work.tags.axes, work.config
    counted = Counted(len(work.source.identities), axes)
    for shard in shards:
        counted.add(pq.read_table(folder / shard.table, columns=["identity", *axes]))
    reasons = Counter(one.reason.partition(":")[0] for record in records for one in record.rejections)
    return Manifest(
        name=config.name,
        origin=config.origin,
        num_read=len(work.source),
        num_samples=sum(shard.num_samples for shard in shards),
        num_rejected=reasons.total(),
        rejected_reasons=dict(reasons),
        rejected_file=hash_file(folder / REJECTED),
        axes=axes,
        counts=counted.counts(),
        identities=work.source.identities,
        num_identities=counted.num_identities(),
        shards=shards,
        job=work.job,
        tag_sources=work.tag_sources,
        order=counted.order(),
        edited=dict(sum((Counter(record.edited) for record in records), Counter[str]())),
    )
