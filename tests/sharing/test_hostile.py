"""A received package is hostile input: whatever is wrong with it, it is refused by name, unharmed and cheaply."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import shutil
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.packages import GENERATOR, audit_of, cases, chunk, edit, facts, png, sign, write_volumes
from support.spoiled_packages import (
    IMAGE,
    LABEL,
    ROWS,
    STACK,
    VOLUME,
    Mutation,
    added_slice,
    audit,
    audit_without,
    changed_bytes,
    dicom,
    figure,
    figures,
    gate,
    generator,
    linked,
    listed,
    listening_socket,
    manifest,
    more_images,
    pipe,
    planted,
    png_bomb,
    relabelled,
    slipped_in,
    sparse,
    text,
    volume_bomb,
    volume_data,
    volume_with,
    with_file,
)

import sharing.folder
import sharing.received
from common.exit_codes import ExitCode
from sharing import PackageError, verify_package, write_package
from sharing.errors import Reason
from sharing.verify import main

MAX_PEAK_BYTES, MAX_S = 2**24, 10


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[bool, Path]:
    """A good package of images, and (True) one of volumes."""
    folder = tmp_path_factory.mktemp("good")
    write_package(folder / "images", cases(1), facts(), volumetric=False)
    write_volumes(folder / "volumes")
    return {False: folder / "images", True: folder / "volumes"}


IMAGES_REFUSED: dict[str, tuple[Mutation, str, str]] = {  # mutation, file that the reason names, words of the reason
    # names
    "parent folder": (listed("../x.png"), "../x.png", "no file of a package"),
    "absolute": (listed("/etc/passwd"), "/etc/passwd", "no file of a package"),
    "drive letter": (listed("C:/x.png"), "C:/x.png", "no file of a package"),
    "backslash": (listed("imagesTr\\..\\x.png"), "imagesTr\\..\\x.png", "no file of a package"),
    "NUL": (listed(f"{IMAGE}\0.png"), f"{IMAGE}\0.png", "no file of a package"),
    "other way to a file": (listed(f"./{IMAGE}"), f"./{IMAGE}", "no file of a package"),
    "composed letter": (slipped_in("imagesTr/\u00e9_0000.png"), "imagesTr/\u00e9_0000.png", "no name of a file"),
    "decomposed letter": (slipped_in("imagesTr/e\u0301_0000.png"), "imagesTr/e\u0301_0000.png", "no name of a file"),
    "other digits": (listed("labelsTr/A_syn_\u0661.png"), "labelsTr/A_syn_\u0661.png", "no file of a package"),
    "case only": (with_file("labelsTr/a_syn_1.png", b""), "labelsTr/a_syn_1.png", "no file of a package of site A"),
    "a patient's name": (with_file("labelsTr/Doe_J.png", b""), "labelsTr/Doe_J.png", "no file of a package of site A"),
    "a manifest in itself": (listed("manifest.json"), "manifest.json", "no file of a package"),
    # what lies in the folder
    "nothing": (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "manifest.json", "is missing"),
    "link to a file": (linked(IMAGE, lambda to, at: at.symlink_to(to)), IMAGE, "a symbolic link"),
    "hard link": (linked(IMAGE, lambda to, at: at.hardlink_to(to)), IMAGE, "2 hard links"),
    "link to a folder": (linked("imagesTr", lambda to, at: at.symlink_to(to)), "imagesTr", "a symbolic link"),
    "link as manifest": (linked("manifest.json", lambda to, at: at.symlink_to(to)), "manifest.json", "a symbolic link"),
    "pipe": (pipe, IMAGE, "a pipe"),
    "socket": (listening_socket, LABEL, "a socket"),
    "hidden file": (slipped_in(".DS_Store"), ".DS_Store", "no name of a file"),
    "hidden image": (slipped_in("imagesTr/.A_syn_1_0000.png"), "imagesTr/.A_syn_1_0000.png", "no name of a file"),
    "empty folder": (lambda folder: (folder / "imagesTs").mkdir(), "imagesTs", "a folder"),
    "folder in a folder": (lambda folder: (folder / "imagesTr" / "more").mkdir(), "imagesTr/more", "a folder"),
    "slipped in": (slipped_in("labelsTr/A_syn_4.png"), "labelsTr/A_syn_4.png", "is not in the manifest"),
    "missing": (lambda folder: (folder / IMAGE).unlink(), IMAGE, "is missing"),
    "missing card": (lambda folder: (folder / "CARD.md").unlink(), "CARD.md", "is missing"),
    "image without labels": (lambda folder: [(folder / LABEL).unlink(), sign(folder)], IMAGE, "no file of a package"),
    "changed": (slipped_in(LABEL, png(20, 12, ROWS)), LABEL, "checksum"),
    "large image": (sparse(IMAGE, 2**26 + 1), IMAGE, "more than 67108864"),
    "large manifest": (sparse("manifest.json", 2**20), "manifest.json", "1048576 bytes, more than"),
    "large figures": (sparse("privacy.json", 2**17), "privacy.json", "131072 bytes, more than"),
    # JSON
    "deep": (text("manifest.json", '"site": "A"', f'"site": {"[" * 50}{"]" * 50}'), "manifest.json", "nested deeper"),
    "deepest": (text("manifest.json", '"site": "A"', f'"site": {"[" * 2000}'), "manifest.json", "nested deeper"),
    "infinite": (text("manifest.json", "999.0", "1e999"), "manifest.json", "1e999"),
    "not a number": (text("manifest.json", "999.0", "NaN"), "manifest.json", "NaN"),
    "huge integer": (text("manifest.json", '"n_cases": 4', f'"n_cases": {"9" * 500}'), "manifest.json", "15 digits"),
    "duplicate key": (
        text("manifest.json", '"site": "A"', '"site": "B",\n "site": "A"'),
        "manifest.json",
        "site twice",
    ),
    "text between": (text("manifest.json", '"site": "A"', '"site":  "A"'), "manifest.json", "as our writer writes"),
    "long string": (manifest(site="A" * 300), "manifest.json", "300 characters"),
    "not JSON": (slipped_in("manifest.json", b"{"), "manifest.json", "not JSON"),
    "not UTF-8": (slipped_in("manifest.json", b"\xff\xfe"), "manifest.json", "not JSON"),
    "a list": (slipped_in("manifest.json", b"[]\n"), "manifest.json", "holds a list"),
    "pickle as JSON": (slipped_in("manifest.json", pickle.dumps({})), "manifest.json", "not JSON"),
    # schemas and values
    "unknown schema": (manifest(schema_version=99), "manifest.json", "schema_version 99"),
    "unknown key": (manifest(source_hash="x"), "manifest.json", "source_hash"),
    "missing key": (lambda folder: edit(folder, "manifest.json", lambda c: c.pop("site")), "manifest.json", "site"),
    "wrong type": (manifest(n_cases="4"), "manifest.json", "n_cases takes int"),
    "truth as number": (manifest(n_cases=True), "manifest.json", "n_cases takes int"),
    "site with a slash": (manifest(site="../A"), "manifest.json", "site ../A"),
    "negative count": (manifest(n_cases=-1), "manifest.json", "n_cases -1"),
    "too many pixels": (manifest(n_images=10**12), "manifest.json", "at most 68719476736"),
    "too many cases": (manifest(n_cases=3), "manifest.json", "n_cases 3"),
    "too many images": (more_images, "manifest.json", "n_images 9; the files hold 4"),
    "spacing of zero": (manifest(spacing_mm=[0.0, 1.0, 1.0]), "manifest.json", "spacing_mm"),
    "label without a name": (manifest(labels={"lung": 2}), "manifest.json", "labels [2]"),
    "label with a line": (manifest(labels={"lung\nx": 1}), "manifest.json", "lung\\nx"),
    "label with markup": (manifest(labels={"<script>": 1}), "manifest.json", "<script>"),
    "unknown ending": (manifest(file_ending=".npz"), "manifest.json", ".npz"),
    "unknown intensities": (manifest(intensity_space="x"), "manifest.json", "intensity_space x"),
    "unknown generator": (generator(name="mine"), "manifest.json", "generator.name mine"),
    "unknown setting": (generator(training_set_sha="x"), "manifest.json", "training_set_sha"),
    "sentence in a setting": (
        generator(config={**GENERATOR["config"], "snapshot": "John Doe, 1950"}),
        "manifest.json",
        "John Doe",
    ),
    "hash in a setting": (
        generator(config={**GENERATOR["config"], "snapshot": "0123456789abcdef"}),
        "manifest.json",
        "hash of a file",
    ),
    "no checksum": (
        lambda folder: edit(folder, "manifest.json", lambda content: content["files"].update({IMAGE: "abc"})),
        "manifest.json",
        "files abc",
    ),
    "POSIX path": (manifest(channel_names=["/home/doe/x"]), "manifest.json", "/home/doe/x"),
    "drive": (manifest(channel_names=["see C:/doe"]), "manifest.json", "C:/doe"),
    "home folder": (manifest(channel_names=["~doe/x"]), "manifest.json", "~doe/x"),
    "key in the figures": (figures(nearest="x"), "privacy.json", "nearest"),
    "negative figure": (figures(threshold_l2=-1.0), "privacy.json", "threshold_l2 -1.0"),
    "figures that do not add up": (figures(n_dropped=3), "privacy.json", "n_sampled 5"),
    "figures of other images": (figures(n_kept=3, n_sampled=4), "privacy.json", "n_kept 3"),
    "no audit": (lambda folder: edit(folder, "privacy.json", lambda c: c.pop("audit")), "privacy.json", "'audit'"),
    "key in the audit": (audit(n_train_patients=12), "privacy.json", "audit.n_train_patients"),
    "audit of more images than kept": (audit(n_audited=5), "privacy.json", "n_audited 5"),
    "audit of no image": (audit(n_audited=0), "privacy.json", "n_audited 0"),
    "level of a sure thing": (audit(familywise_level=1.0), "privacy.json", "familywise_level 1.0"),
    "word for truth": (audit(enforced="yes"), "privacy.json", "audit.enforced takes bool"),
    "fewer figures": (audit(figures=[]), "privacy.json", "audit.figures"),
    "figure by a patient's name": (figure(name="John Doe"), "privacy.json", "John Doe"),
    "share above 1": (figure(value=1.5, high=2.0), "privacy.json", "closest-record share"),
    "value outside its interval": (figure(value=0.2), "privacy.json", "closest-record share"),
    "value without an interval": (figure(low=None), "privacy.json", "closest-record share"),
    "figure without end": (figure(3, high=1e300), "privacy.json", "C_T"),
    "p above 1": (figure(p=2.0), "privacy.json", "a p from 0 to 1"),
    "fewer gates": (audit(gates=audit_of()["gates"][:-1]), "privacy.json", "audit.gates"),
    "gate of its own": (gate(name="mine"), "privacy.json", "mine"),
    "gate without end": (gate(limit=-1e300), "privacy.json", "audit.gates"),
    "gate with p below 0": (gate(p=-0.1), "privacy.json", "audit.gates"),
    "gate that failed, enforced": (
        audit(**(audit_of(("C_T",)) | {"enforced": True})),
        "privacy.json",
        "not failed, where gates are enforced",
    ),
    "other share dropped": (gate(0, value=0.1), "privacy.json", "n_dropped / n_sampled"),
    "share beyond its limit passed": (gate(0, limit=0.1), "privacy.json", "must be failed, as its figure"),
    "gate in another unit": (gate(3, unit="per cent"), "privacy.json", "audit.gates"),
    "gate in the other direction": (gate(comparison=">="), "privacy.json", "audit.gates"),
    "figure in another unit": (figure(unit="per cent"), "privacy.json", "audit.figures"),
    "decision of its own": (gate(decision="waived"), "privacy.json", "one of ("),
    "more found than planted": (planted(found=66), "privacy.json", "audit.planted.found 66"),
    "fewer than none found": (planted(found=-1), "privacy.json", "audit.planted.found -1"),
    "nothing planted": (planted(n=0, found=0), "privacy.json", "audit.planted.n 0"),
    "planted without end": (planted(n=10**9), "privacy.json", "audit.planted.n 1000000000"),
    "recall above 1": (planted(mean_recall=1.5), "privacy.json", "audit.planted.mean_recall 1.5"),
    "recall of nothing found": (planted(found=0), "privacy.json", "audit.planted.mean_recall 0.95"),
    "recall short of all found": (planted(found=65), "privacy.json", "audit.planted.mean_recall 0.95"),
    "share of honest images above 1": (planted(honest_dropped_share=2.0), "privacy.json", "honest_dropped_share 2.0"),
    "share that tells a number": (planted(honest_dropped_share=1 / 13), "privacy.json", "whole per cent"),
    "key in the planted copies": (planted(n_honest=13), "privacy.json", "audit.planted.n_honest"),
    "no word about planted copies": (
        audit_without("planted"),
        "privacy.json",
        "'audit.planted' is missing",
    ),
    "a gate on copies never planted": (audit(planted=None), "privacy.json", "no copies were planted"),
    "other recall than the gate's": (gate(1, value=0.99), "privacy.json", "audit.planted.mean_recall"),
    "recall beyond its limit passed": (
        audit(
            planted={"n": 65, "found": 40, "mean_recall": 0.6, "honest_dropped_share": None},
            gates=[one | ({"value": 0.6} if i == 1 else {}) for i, one in enumerate(audit_of()["gates"])],
        ),
        "privacy.json",
        "failed, as its figure and its limit 0.9 say",
    ),
    "key in dataset.json": (
        lambda folder: edit(folder, "dataset.json", lambda content: content.update(reference="x")),
        "dataset.json",
        "reference",
    ),
    "labels of dataset.json": (
        lambda folder: edit(folder, "dataset.json", lambda content: content["labels"].update(lung=2)),
        "dataset.json",
        "labels",
    ),
    "words in the card": (changed_bytes("CARD.md", lambda data: data + b"x"), "CARD.md", "something else"),
    # pictures
    "pickle as image": (with_file(IMAGE, pickle.dumps({"a": 1})), IMAGE, "no PNG"),
    "archive as image": (with_file(IMAGE, b"PK\x03\x04" + bytes(50)), IMAGE, "no PNG"),
    "DICOM as image": (with_file(IMAGE, bytes(128) + b"DICM" + bytes(50)), IMAGE, "DICOM"),
    "DICOM in an image": (dicom, IMAGE, "DICOM"),
    "archive behind the image": (changed_bytes(IMAGE, lambda data: data + b"PK\x03\x04"), IMAGE, "4 bytes after"),
    "bytes behind the rows": (with_file(IMAGE, png(20, 12, ROWS + b"x")), IMAGE, "more than the 252 bytes"),
    "bytes behind the stream": (
        changed_bytes(IMAGE, lambda data: data[:-12] + chunk(b"IDAT", b"x") + data[-12:]),
        IMAGE,
        "after the end",
    ),
    "no header": (with_file(IMAGE, png(20, 12, ROWS)[:8] + chunk(b"IEND", b"")), IMAGE, "IEND"),
    "no rows": (changed_bytes(IMAGE, lambda data: data[:33] + chunk(b"IEND", b"")), IMAGE, "in the middle"),
    "too few rows": (with_file(IMAGE, png(20, 12, ROWS[:-21])), IMAGE, "inflates to 231"),
    "unknown row filter": (with_file(IMAGE, png(20, 12, b"\x09" + ROWS[1:])), IMAGE, "cannot be decoded"),
    "cut off": (changed_bytes(IMAGE, lambda data: data[:-20]), IMAGE, "broken chunk"),
    "absurd size": (with_file(IMAGE, png(100_000, 100_000, ROWS)), IMAGE, "100000 x 100000"),
    "exploding image": (png_bomb, IMAGE, "more than the 252 bytes"),
    "other size": (with_file(IMAGE, png(12, 20, bytes(20 * 13))), IMAGE, "20 x 12"),
    "label of another size": (with_file(LABEL, png(12, 20, bytes(20 * 13))), LABEL, "20 x 12"),
    "16 bits": (with_file(IMAGE, png(20, 12, bytes(12 * 41), bits=16)), IMAGE, "16 bits"),
    "colour": (with_file(IMAGE, png(20, 12, bytes(12 * 61), colour=2)), IMAGE, "colour type 2"),
    "palette": (with_file(LABEL, png(20, 12, ROWS, colour=3)), LABEL, "colour type 3"),
    "more channels": (manifest(channel_names=["a", "b"]), "imagesTr/A_syn_1_0001.png", "not in the manifest"),
    "unknown label": (relabelled, LABEL, "label 7"),
}
for name in ("tEXt", "iTXt", "zTXt", "eXIf", "tIME", "pHYs", "iCCP"):
    IMAGES_REFUSED[f"chunk {name}"] = (
        with_file(IMAGE, png(20, 12, ROWS, extra=chunk(name.encode(), b"key\0value"))),
        IMAGE,
        name,
    )

VOLUMES_REFUSED: dict[str, tuple[Mutation, str, str]] = {
    "description": (volume_with(descrip=b"Doe"), VOLUME, "descrip"),
    "auxiliary file": (volume_with(aux_file=b"a"), VOLUME, "aux_file"),
    "database": (volume_with(db_name=b"a"), VOLUME, "db_name"),
    "intent": (volume_with(intent_name=b"a"), VOLUME, "intent_name"),
    "text behind a NUL": (volume_with(descrip=b"\0Doe"), VOLUME, "descrip"),
    "a number to spare": (volume_with(cal_max=19500101), VOLUME, "cal_max"),
    "origin": (volume_with(qoffset_x=12.5), VOLUME, "qoffset_x"),
    "direction": (volume_with(quatern_b=0.1), VOLUME, "quatern_b"),
    "other spacing": (volume_with(pixdim=[1, 0.7, 0.5, 4, 0, 0, 0, 0]), VOLUME, "pixdim"),
    "other type": (volume_with(datatype=16, bitpix=32, name=STACK), STACK, "datatype"),
    "other size": (volume_with(dim=[3, 12, 20, 2, 1, 1, 1, 1]), VOLUME, "dim"),
    "no slices": (volume_with(dim=[3, 20, 12, -2, 1, 1, 1, 1]), VOLUME, "-2 slices"),
    "extension": (volume_data(lambda data: data[:348] + b"\1\0\0\0" + data[352:]), VOLUME, "extensions"),
    "bytes behind the voxels": (volume_data(lambda data: data + b"x"), VOLUME, "more than the 1920 bytes"),
    "fewer voxels": (volume_data(lambda data: data[:-4]), VOLUME, "inflates to 1916"),
    "no header": (volume_data(lambda data: data[:100]), VOLUME, "less than the header"),
    "not a volume": (volume_data(lambda data: bytes(len(data))), VOLUME, "slices"),
    "infinite voxel": (volume_data(lambda data: data[:-4] + struct.pack("<f", np.inf)), VOLUME, "not finite"),
    "unknown label": (volume_data(lambda data: data[:-1] + b"\7", STACK), STACK, "label 7"),
    "more slices than its image": (volume_data(added_slice, STACK), STACK, "has 3 slices"),
    "exploding volume": (volume_bomb, VOLUME, "more than the 1920 bytes"),
    "bytes behind the stream": (changed_bytes(VOLUME, lambda data: data + b"x"), VOLUME, "after the end"),
    "second stream": (changed_bytes(VOLUME, lambda data: data + gzip.compress(b"x", mtime=0)), VOLUME, "after the end"),
    "cut off": (changed_bytes(VOLUME, lambda data: data[:-12]), VOLUME, "in the middle"),
    "name in gzip": (
        changed_bytes(VOLUME, lambda data: data[:3] + b"\x08" + data[4:10] + b"Doe\0" + data[10:]),
        VOLUME,
        "without a name",
    ),
    "not compressed": (changed_bytes(VOLUME, gzip.decompress), VOLUME, "no gzip file"),
}
REFUSED = [(False, name, *case) for name, case in IMAGES_REFUSED.items()]
REFUSED += [(True, name, *case) for name, case in VOLUMES_REFUSED.items()]


def state(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Everything in and around a package, down to the time of its last change; reading may be noted."""

    def of(path: Path) -> tuple[int, ...]:
        status = path.lstat()
        return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    return sorted((str(path), of(path)) for path in [folder.parent, *folder.parent.rglob("*")])


@contextlib.contextmanager
def little_memory_and_time() -> Iterator[None]:
    started = time.process_time()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < MAX_S


@pytest.mark.parametrize(("volumes", "_", "mutate", "file", "words"), REFUSED, ids=[case[1] for case in REFUSED])
def test_a_bad_package_is_refused_by_name_and_without_harm(good, tmp_path, volumes, _, mutate, file, words):
    package = tmp_path / "package"
    shutil.copytree(good[volumes], package)
    mutate(package)
    before = state(package)
    with little_memory_and_time(), pytest.raises(PackageError) as refused:
        verify_package(package)
    assert state(package) == before
    assert [reason for reason in refused.value.reasons if reason.file == file and words in reason.problem]
    assert str(refused.value).isascii() and len(str(refused.value).splitlines()) == len(refused.value.reasons)
    assert all("; way out: " in line for line in str(refused.value).splitlines())


def test_a_folder_with_too_many_files_is_not_listed_to_its_end(good, monkeypatch):
    monkeypatch.setattr(sharing.folder, "MAX_FILES", 5)
    with pytest.raises(PackageError, match="more than 5 files"):
        verify_package(good[False])


@pytest.mark.parametrize("change", [slipped_in("imagesTr/A_syn_9_0000.png"), slipped_in(LABEL, b"other")])
def test_a_package_that_changes_while_it_is_checked_is_refused(good, tmp_path, monkeypatch, change):
    package = tmp_path / "package"
    shutil.copytree(good[False], package)
    render = sharing.received.render_card
    monkeypatch.setattr(sharing.received, "render_card", lambda *given: [change(package), render(*given)][1])
    with pytest.raises(PackageError, match="changed while it was checked"):
        verify_package(package)


@pytest.mark.parametrize("name", ["WARD7-PC", "doe"])
def test_a_package_that_names_the_machine_or_its_user_does_not_get_its_manifest(tmp_path, monkeypatch, name):
    described = facts(channels=(f"scan of {name}",))
    write_package(tmp_path / "elsewhere", cases(1), described, volumetric=False)
    monkeypatch.setattr("socket.gethostname", lambda: "ward7-pc.hospital.org")
    monkeypatch.setattr("getpass.getuser", lambda: "doe")
    with pytest.raises(PackageError, match="the name of this machine or user"):
        write_package(tmp_path / "here", cases(1), described, volumetric=False)
    assert not (tmp_path / "here" / "manifest.json").exists()
    assert main([str(tmp_path / "elsewhere")]) == 0  # receivers do not look for their own names
    assert main([str(tmp_path / "elsewhere"), "--written-here"]) == ExitCode.REFUSED


def test_the_command_says_what_it_checked(good, capsys):
    assert main([str(good[False])]) == 0
    said = capsys.readouterr().out
    assert "site A, 4 images of 12 x 20 pixels in 4 cases, 12 files" in said and "SHA-256" in said


def test_the_command_gives_a_line_a_reason_and_ends_with_3(good, tmp_path, capsys):
    shutil.copytree(good[False], tmp_path / "package")
    for name in (IMAGE, LABEL):
        (tmp_path / "package" / name).write_bytes(b"\x1b[2J")
    assert main([str(tmp_path / "package")]) == ExitCode.REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert [name in line and "way out" in line for name, line in zip((IMAGE, LABEL), lines)] == [True, True]
    assert main([str(tmp_path / "absent")]) == ExitCode.BAD_INPUT


def test_a_refusal_comes_back_from_another_process_with_all_its_reasons(tmp_path):
    refusal = PackageError(tmp_path, [Reason("CARD.md", "is missing"), Reason("dataset.json", "is missing")])
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal)
