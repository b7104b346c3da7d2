"""Faces to measure on, from a shard set or from a file of embeddings."""

from pathlib import Path

from eval.embedding_cache import Embedder
from eval.faces import Faces, faces_of, in_common, load_embeddings
from pipeline.catalog import open_catalog
from shardgen.errors import UsageError
from shardgen.manifest import hash_file

EMBEDDING_FILES = (".npz", ".parquet")
_SET = "set"


def open_faces(path: Path, embedder: Embedder | None) -> Faces:
    """Return the faces of a shard set, embedded or out of the cache, or of a file of embeddings.

    Raises `UsageError` when a set is to be embedded without an encoder, and what opening and embedding raise.
    """
    if path.suffix in EMBEDDING_FILES and embedder is not None:
        raise UsageError(f"{path} holds embeddings, which {embedder.model.description} has not made; leave that out")
    if path.suffix in EMBEDDING_FILES:
        return load_embeddings(path)
    if embedder is None:
        raise UsageError(f"{path} is no file of embeddings ({' or '.join(EMBEDDING_FILES)}); give an encoder for it")
    catalog = open_catalog({_SET: path})
    return faces_of(catalog, _SET, embedder.of_set(catalog))


def open_sources(path: Path) -> list[str]:
    """Return what each sample of a shard set was called where it came from; nothing for a file of embeddings."""
    if path.suffix in EMBEDDING_FILES:
        return []
    catalog = open_catalog({_SET: path})
    return [name for table in catalog.tables[_SET] for name in table.open().read(["source"])["source"].to_pylist()]


def open_pair(gallery: Path, probes: Path, embedder: Embedder | None) -> tuple[Faces, Faces]:
    """Return the faces of a gallery and of probes, their identities matched by name."""
    if gallery.resolve() == probes.resolve():
        raise UsageError(f"{gallery} is gallery and probes; every probe would find itself, give two sets")
    enrolled, searched = in_common([open_faces(gallery, embedder), open_faces(probes, embedder)])
    widths = enrolled.embeddings.shape[1], searched.embeddings.shape[1]
    if widths[0] != widths[1]:
        raise UsageError(f"{gallery} has embeddings of {widths[0]} numbers, {probes} of {widths[1]}; use one encoder's")
    return enrolled, searched


def hash_at(path: Path) -> str:
    """Return the SHA-256 of a file, or of a shard set's manifest, which vouches for all its bytes."""
    file = path / "manifest.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path} is no shard set and no file; make a set with `facemix shard`")
    return hash_file(file).sha256
