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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice, repeat
from math import ceil
from multiprocessing import connection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from shardgen.config import ShardConfig
from shardgen.errors import DataError, UsageError
from shardgen.files import sync_folder, write_durably
from shardgen.manifest import (
    MANIFEST,
    REJECTED,
    Manifest,
    ShardInfo,
    hash_file,
    read_manifest,
    write_manifest,
)
from shardgen.sources import Source
from shardgen.tags import Tags
from shardgen.writer import ShardJob, ShardRecord, finished_shard, write_shard

_JOB = "job.json"
_REPORT_SECONDS = 5.0

_log = logging.getLogger("facemix.shard")


def convert(source: Source, tags: Tags, out: Path, config: ShardConfig) -> Manifest:
    """Turn a source into a shard set in `out` and return its manifest.

    Raises `UsageError` when `out` already holds something or an unfinished conversion with other
    options is there, `DataError` when more than `config.max_rejected` of the records cannot become
    samples; then `out` does not appear, and `rejected.csv` in the unfinished folder says why.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already holds something; choose another folder, or delete it first")
    unfinished = out.with_name(out.name + ".unfinished")
    job = _job_of(source, tags, config)
    _begin(unfinished, job)
    if not (unfinished / MANIFEST).exists():
        records = sorted(_run(source, tags, config, unfinished), key=lambda record: record.shard.name)
        _write_rejections(unfinished, records)
        _refuse_too_many(records, unfinished / REJECTED, config.max_rejected)
        shards = list(_number(unfinished, records))
        write_manifest(unfinished, _manifest(unfinished, shards, records, source, tags, config, job))
    manifest = read_manifest(unfinished)
    for leftover in [*unfinished.glob("[0-9]*.json"), unfinished / _JOB]:
        leftover.unlink(missing_ok=True)
    unfinished.replace(out)
    sync_folder(out.parent)
    return manifest


def _job_of(source: Source, tags: Tags, config: ShardConfig) -> dict[str, str | int]:
    """Return all that decides the set's bytes; an unfinished conversion goes on only with the same."""
    digest = hashlib.sha256(json.dumps([tags.axes, source.identities]).encode())
    digest.update(tags.codes.tobytes())
    return {"inputs": source.fingerprint(), "tags": digest.hexdigest(), **config.identity_of_job()}


def _begin(unfinished: Path, job: Mapping[str, str | int]) -> None:
    unfinished.mkdir(parents=True, exist_ok=True)
    marker = unfinished / _JOB
    if (unfinished / MANIFEST).exists():
        begun = read_manifest(unfinished).job
    elif marker.exists():
        begun = json.loads(marker.read_bytes())
    elif any(unfinished.glob("[0-9]*")):
        raise UsageError(f"{unfinished} holds shards of no known conversion; delete it to start anew")
    else:
        begun = job
        write_durably(marker, json.dumps(job).encode())
    for name in job:
        if begun.get(name) != job[name]:
            raise UsageError(
                f"{unfinished} was begun with {name} {begun.get(name)}, now it is {job[name]}; "
                "repeat the first options to go on, or delete the folder to start anew"
            )


def _jobs(source: Source, tags: Tags, config: ShardConfig) -> Iterator[ShardJob]:
    """Cut the records into shards, in source order or in a seeded shuffle of the whole source."""
    if config.order == "shuffled":
        order = np.random.default_rng(config.seed).permutation(len(source)).astype(np.int64)
    else:
        order = np.arange(len(source), dtype=np.int64)
    for number, start in enumerate(range(0, len(source), config.shard_samples)):
        records = order[start : start + config.shard_samples]
        yield ShardJob(
            number=number,
            dataset=config.name,
            origin=config.origin,
            records=records,
            source=source.part(records),
            identities=[source.identities[label] if label >= 0 else "" for label in source.labels[records].tolist()],
            tags=tags.part(records),
        )


def _run(source: Source, tags: Tags, config: ShardConfig, folder: Path) -> Iterator[ShardRecord]:
    """Yield what became of every shard, as they complete; those already there are not made again."""
    jobs = _jobs(source, tags, config)
    workers = min(config.workers, -(-len(source) // config.shard_samples))
    results = map(_shard, repeat(folder), jobs) if workers == 1 else _in_processes(folder, jobs, workers)
    begun = reported = time.monotonic()
    num_read = 0
    for record in results:
        num_read += record.shard.num_samples + len(record.rejections)
        now = time.monotonic()
        if now - reported > _REPORT_SECONDS:
            reported, rate = now, num_read / (now - begun)
            left = (len(source) - num_read) / rate
            _log.info("%d of %d records, %.0f records/s, %.0f s left", num_read, len(source), rate, left)
        yield record


def _shard(folder: Path, job: ShardJob) -> ShardRecord:
    return finished_shard(folder, job.number) or write_shard(folder, job)


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
    lines = csv.writer(text, lineterminator="\n")
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


def _manifest(  # every argument is one field's source
    folder: Path,
    shards: Sequence[ShardInfo],
    records: Sequence[ShardRecord],
    source: Source,
    tags: Tags,
    config: ShardConfig,
    job: Mapping[str, str | int],
) -> Manifest:
    has_samples = np.zeros(len(source.identities), np.bool_)
    counts = {axis: np.zeros(len(values), np.int64) for axis, values in tags.axes.items()}
    for shard in shards:
        table = pq.read_table(folder / f"{shard.name}.parquet", columns=["identity", *tags.axes])
        has_samples[table["identity"].to_numpy()] = True
        for axis, total in counts.items():
            np.add.at(total, table[axis].to_numpy(), 1)
    reasons = Counter(one.reason.partition(":")[0] for record in records for one in record.rejections)
    return Manifest(
        name=config.name,
        origin=config.origin,
        num_read=len(source),
        num_samples=sum(shard.num_samples for shard in shards),
        num_rejected=reasons.total(),
        rejected_reasons=dict(reasons),
        rejected_file=hash_file(folder / REJECTED),
        axes=tags.axes,
        counts={axis: dict(zip(values, counts[axis].tolist(), strict=True)) for axis, values in tags.axes.items()},
        identities=source.identities,
        num_identities=int(has_samples.sum()),
        shards=shards,
        job=job,
    )
