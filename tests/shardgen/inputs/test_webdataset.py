"""WebDataset shards: ours carry everything along, anybody's are grouped and identified by their members."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable
from shardgen.inputs import open_source
from shardgen.inputs.webdataset import open_webdataset
from shardgen.shardset import ShardSet
from shardgen.tags import Tags
from tests.shardgen.inputs.made import FACES, contents, held, write_tar
from tests.support import make_set


def values(tags: Tags | None) -> list[dict[str, str]]:
    assert tags is not None
    return [tags.values_of(record) for record in range(len(tags.codes))]


def test_our_own_set_gives_back_names_identities_tags_and_bytes(small_set: Path) -> None:
    ours, source = ShardSet(small_set), open_source("auto", small_set)
    table = ours.table(["source", "identity", "group"])
    identities = [ours.manifest.identities[number] for number in table["identity"].to_pylist()]
    images = [ours.image(row) for row in range(len(ours))]
    assert contents(source) == list(zip(table["source"].to_pylist(), identities, images, strict=True))
    groups = [ours.manifest.axes["group"][code] for code in table["group"].to_pylist()]
    assert values(source.tags) == [{"group": group} for group in groups]
    assert len(set(groups)) == 4
    part = source.part(np.array([31, 0]))
    assert [part.read(0), part.read(1)] == [images[31], images[0]]
    assert part.tags is None


def test_our_own_set_read_as_anybodys_is_the_same_but_for_its_names(small_set: Path) -> None:
    ours, foreign = open_webdataset(small_set), open_webdataset(*sorted(small_set.glob("*.tar")))
    assert [found[1:] for found in contents(foreign)] == [found[1:] for found in contents(ours)]
    assert values(foreign.tags) == values(ours.tags)
    assert next(foreign.names()).endswith(".jpg")


def test_a_set_without_tags_brings_none(tmp_path: Path) -> None:
    assert open_webdataset(make_set(tmp_path / "set", range(2), 1, tagged=False)).tags is None


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_our_own_set_is_what_its_manifest_says(tmp_path: Path, damage: str) -> None:
    tar = make_set(tmp_path / "set", range(2), 1) / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512]) if damage == "cut" else tar.unlink()
    with pytest.raises(DataError, match="facemix verify"):
        open_webdataset(tmp_path / "set")


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    with webdataset.ShardWriter(f"{tmp_path}/%06d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            writer.write({"__key__": f"{number:05}", "jpg": b"face %d" % number, "cls": number // 2})
    assert contents(open_webdataset(tmp_path)) == [
        (f"{number:05}.jpg", str(number // 2), b"face %d" % number) for number in range(5)
    ]


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, form: str) -> None:
    files = (
        FACES
        | {"d" * 90 + "/" + "e" * 90 + "/5.jpg": b"long"}
        | ({} if form == "ustar" else {"ü" * 120 + "/6.jpg": b"x"})
    )
    for name, content in files.items():
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(content)
    subprocess.run(
        ["tar", f"--format={form}", "-C", tmp_path / "faces", "-cf", tmp_path / "faces.tar", "--sort=name", "."],
        check=True,
    )
    assert sorted(contents(open_webdataset(tmp_path / "faces.tar"))) == sorted(held(files))


IDENTITY_MEMBERS: list[tuple[dict[str, bytes], str | None]] = [
    ({"json": b'{"identity": "ann", "label": 3}'}, "ann"),
    ({"json": b'{"label": 3, "id": "x"}', "cls": b"9"}, "3"),
    ({"json": b'{"id": 0}'}, "0"),
    ({"json": b'{"class": "c"}'}, "c"),
    ({"json": b'{"identity": null, "subject": "s"}'}, "s"),
    ({"json": b'{"age": 3}', "cls": b"7\n", "txt": b"8"}, "7"),
    ({"txt": b" ann b. \n", "id": b"2"}, "ann b."),
    ({"id": b"2"}, "2"),
    ({}, "folder"),
    ({"json": b'{"age": 3}'}, "folder"),
    ({"cls": b""}, "folder"),
]


@pytest.mark.parametrize(("members", "identity"), IDENTITY_MEMBERS)
def test_an_identity_is_in_json_or_in_text_or_the_folder(
    tmp_path: Path, members: dict[str, bytes], identity: str
) -> None:
    files = {"folder/1.jpg": b"face"} | {f"folder/1.{extension}": content for extension, content in members.items()}
    assert contents(open_webdataset(write_tar(tmp_path / "a.tar", files))) == [("folder/1.jpg", identity, b"face")]


BAD_JSON = [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"identity": ["ann"]}', b'{"identity": true}', b'{"identity": -1}']
BAD_JSON += [
    b"[" * 100_000,
    b'{"identity": "\\ud800"}',
    b'{"identity": NaN}',
    b'{"identity": 1e999}',
    b'{"identity": ""}',
]


@pytest.mark.parametrize("content", BAD_JSON)
def test_a_sample_that_does_not_say_whose_it_is_gets_no_identity_elsewhere(tmp_path: Path, content: bytes) -> None:
    files = {
        "a/1.jpg": b"one",
        "a/1.json": content,
        "a/1.cls": b"3",
        "a/2.jpg": b"two",
        "a/2.json": b'{"identity": "b"}',
    }
    source = open_webdataset(write_tar(tmp_path / "a.tar", files))
    assert contents(source) == [("a/1.jpg", None, b"one"), ("a/2.jpg", "b", b"two")]
    with pytest.raises(Unreadable, match="no identity: the sample does not say whose it is"):
        source.read(0)


def test_tags_come_along_and_are_unknown_where_a_sample_has_none(tmp_path: Path) -> None:
    rows = [{"age": "10", "gender": "f"}, {"age": "9"}, {}, {"age": "10", "note": 3, "more": {"a": "b"}}]
    files: dict[str, bytes] = {}
    for number, tags in enumerate(rows):
        files |= {f"a/{number}.jpg": b"", f"a/{number}.json": json.dumps({"id": 1, "tags": tags}).encode()}
    tags_of = open_webdataset(write_tar(tmp_path / "a.tar", files)).tags
    assert tags_of is not None
    assert tags_of.axes == {"age": ["unknown", "9", "10"], "gender": ["unknown", "f"]}
    assert values(tags_of) == [
        {"age": "10", "gender": "f"},
        {"age": "9", "gender": "unknown"},
        {"age": "unknown", "gender": "unknown"},
        {"age": "10", "gender": "unknown"},
    ]


@pytest.mark.parametrize("axis", ["size", "content_hash", "a b", "", "1.5", "ü"])
def test_a_tag_that_no_table_can_hold_is_refused(tmp_path: Path, axis: str) -> None:
    files = {"a/1.jpg": b"", "a/1.json": json.dumps({"tags": {axis: "x"}}).encode()}
    with pytest.raises(DataError, match=r"a\.tar: .* cannot name a tag axis"):
        open_webdataset(write_tar(tmp_path / "a.tar", files))


def test_a_sample_without_an_image_is_counted_and_unreadable(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a/1.cls": b"3", "a/2.jpg": b"two", "a/2.cls": b"4"})
    with tarfile.open(path, "a") as archive:
        for name, kind in (("a/3.jpg", tarfile.SYMTYPE), ("a/4.jpg", tarfile.LNKTYPE), ("a/5.jpg", tarfile.FIFOTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    source = open_webdataset(path)
    assert list(source.names()) == ["a/1", "a/2.jpg", "a/3", "a/4", "a/5"]
    for record in (0, 2, 3, 4):
        with pytest.raises(Unreadable, match="no image: the sample holds none"):
            source.read(record)
    assert source.read(1) == b"two"


def test_the_image_of_a_sample_is_the_one_without_more_dots(tmp_path: Path) -> None:
    files = {"a/1.mask.png": b"mask", "a/1.JPG": b"face", "a/2.jpg.chip.jpg": b"chip"}
    source = open_webdataset(write_tar(tmp_path / "a.tar", files))
    assert [(name, image) for name, _, image in contents(source)] == [
        ("a/1.JPG", b"face"),
        ("a/2.jpg.chip.jpg", b"chip"),
    ]


def test_members_of_no_sample_are_reported(tmp_path: Path) -> None:
    files = {"README": b"", "a/.hidden.jpg": b"", "a/1.jpg": b"", "a/._1.jpg": b""}
    assert open_webdataset(write_tar(tmp_path / "a.tar", files)).ignored == ["README", "a/.hidden.jpg", "a/._1.jpg"]
    with pytest.raises(DataError, match=r"b\.tar holds no sample \(1 other members\)"):
        open_webdataset(write_tar(tmp_path / "b.tar", {"README": b""}))


def test_a_sample_with_two_members_of_a_name_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a/1.jpg": b"one"}, tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:1024] + path.read_bytes())
    with pytest.raises(DataError, match=r"a\.tar byte 1024: a second 'a/1\.jpg'"):
        open_webdataset(path)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_tars_are_wrong_use(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"\x1f\x8b")
    with pytest.raises(UsageError, match=r"is compressed.*unpack it to a \.tar first"):
        open_source("auto" if suffix != ".tar.zst" else "webdataset", tmp_path / f"a{suffix}")


def one_tar(tmp_path: Path) -> tuple[Path, bytes]:
    path = write_tar(tmp_path / "a.tar", {f"a/{n}.jpg": b"x" * 600 for n in range(3)}, tarfile.USTAR_FORMAT)
    return path, path.read_bytes()


def test_a_damaged_header_does_not_end_the_archive(tmp_path: Path) -> None:
    path, content = one_tar(tmp_path)
    path.write_bytes(content[:1536] + b"?" + content[1537:])
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["a/0.jpg"]  # the trap
    with pytest.raises(DataError, match=r"a\.tar byte 1536: neither a member nor the archive's end"):
        open_webdataset(path)


@pytest.mark.parametrize("length", [0, 100, 512, 1000, 1536, 2048, 4000, 4608, 4700])
def test_a_cut_archive_is_refused(tmp_path: Path, length: int) -> None:
    path, content = one_tar(tmp_path)
    path.write_bytes(content[:length])
    with pytest.raises(DataError, match=r"a\.tar"):
        open_webdataset(path)


def test_bytes_behind_the_end_are_refused(tmp_path: Path) -> None:
    path, content = one_tar(tmp_path)
    path.write_bytes(content + content)
    with pytest.raises(DataError, match=rf"a\.tar byte {len(content)}: neither a member"):
        open_webdataset(path)


@pytest.mark.parametrize("size", [-512, -513, -10_000, -(2**60), 2**33, 2**62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_no_header_makes_the_reader_run_backwards_or_fill_the_memory(tmp_path: Path, size: int, kind: bytes) -> None:
    path, content = one_tar(tmp_path)
    member = tarfile.TarInfo("b.jpg")
    member.size, member.type = size, kind
    header = bytearray(
        member.tobuf(tarfile.GNU_FORMAT) if size > 0 else tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT)
    )
    if size < 0:
        header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
        header[156:157] = kind
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]  # type: ignore[attr-defined]
    path.write_bytes(content[:1536] + bytes(header) + content[1536:])
    with pytest.raises(DataError, match=r"a\.tar byte"):
        open_webdataset(path)


@pytest.mark.parametrize(
    "fields", [{"size": "-1024"}, {"size": str(2**70)}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}]
)
def test_no_pax_field_leads_outside_the_file(tmp_path: Path, fields: dict[str, str]) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a/1.jpg")
        member.size, member.pax_headers = 600, fields
        archive.addfile(member, io.BytesIO(b"x" * 600))
    (tmp_path / "a.tar").write_bytes(content.getvalue())
    with pytest.raises(DataError, match=r"a\.tar"):
        open_webdataset(tmp_path / "a.tar")


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no UTF-8 name"):
        open_webdataset(write_tar(tmp_path / "a.tar", {"caf\udce9/1.jpg": b""}, tarfile.GNU_FORMAT))


def test_more_tars_than_are_kept_open_are_read(tmp_path: Path) -> None:
    for number in range(70):
        write_tar(tmp_path / f"{number:03}.tar", {f"a/{number}.jpg": b"%d" % number})
    source = open_webdataset(tmp_path)
    assert [source.read(record) for record in [*range(70), *range(70)]] == [b"%d" % number for number in range(70)] * 2
