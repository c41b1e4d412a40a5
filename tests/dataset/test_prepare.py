"""python -m dataset.prepare with an importer of the user's own, and the original's table of datasets."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml
from support.paths import REPOSITORY
from support.prepared import source_config

from common.errors import InputError
from common.seeds import derive_seed
from dataset.about import About, load_about
from dataset.check import check_cases
from dataset.export_table import main as export_table
from dataset.folds import assign_folds
from dataset.importer import Importer
from dataset.key_values import settings_from_text, split_arguments
from dataset.preparation import prepare_source
from dataset.prepare import IMPORTERS, load_importer, main
from dataset.source import load_cases

OWN = """
from __future__ import annotations
import os, signal
from dataclasses import dataclass, field
from pathlib import Path
import dataset.preparation
from dataset.importer import Found, Importer, LeftOut, RawCase, Unusable
from dataset.images import read_image
from dataset.raw_files import binary_mask, write_pair

CONVERTED = []

@dataclass(frozen=True)
class Options:
    site: str = field(default="", metadata={"help": "one site for all"})

def find(raw: Path, options: Options) -> Found:
    images = list((raw / "x").glob("*.png"))  # in listing order, as a careless author would
    cases = []
    for image in images:
        patient, site = image.stem.split("_")[:2]
        columns = {"patient": patient, "site": options.site or site}
        cases.append(RawCase(image.stem, (image, raw / "y" / image.name), columns))
    return Found(tuple(cases), {"lung": 1})

def convert(case: RawCase, out: Path) -> None:
    CONVERTED.append(case.name)
    if "unusable" in case.name:
        raise Unusable("it is called unusable")
    if os.environ.get("KILL_AT") == str(len(CONVERTED)):
        os.kill(os.getpid(), signal.SIGKILL)
    write_pair(case.name, out, read_image(case.files[0]), binary_mask(case.files[1], None), *case.files)

if "KILL_AT" in os.environ:
    dataset.preparation._STATE_INTERVAL_S = 0.0

IMPORTER = Importer("own", "a data set of mine", Options, find, convert)
"""


def write_raw(raw, name, seed=None):
    rng = np.random.default_rng([*name.encode()] if seed is None else seed)
    pixels = rng.integers(0, 255, (12, 9), dtype=np.uint8)
    for folder, content in (("x", pixels), ("y", (pixels > 127).astype(np.uint8) * 255)):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(content).save(raw / folder / f"{name}.png")


NAMES = [f"p{site}{number}_{site}_0" for site in "AB" for number in range(6)]


@pytest.fixture
def raw(tmp_path):
    for name in NAMES:
        write_raw(tmp_path / "raw", name)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "raw"


def prepare(raw, out, *settings, name=None):
    return main([str(name or raw.parent / "own.py"), "--raw", str(raw), "--out", str(out), "--workers", "2", *settings])


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(out):
    with (out / "metadata.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_file_of_ones_own_becomes_a_source_that_passes_the_check(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / "out") == 0
    config = source_config(tmp_path / "out")
    cases = load_cases(config, Path())
    assert {case.case_id for case in cases} == set(NAMES)
    report = check_cases(cases, config)
    assert {site: count.n_patients for site, count in report.sites.items()} == {"A": 6, "B": 6}
    assert "lung 1" in capsys.readouterr().out
    assert config.labels == {"lung": 1}


def test_nothing_depends_on_the_order_of_files_or_the_place(raw, tmp_path, monkeypatch):
    """D40: the original numbered images in directory-listing order."""
    prepare(raw, tmp_path / "out")
    elsewhere = tmp_path / "elsewhere" / "copy"
    for name in NAMES[::-1]:
        write_raw(elsewhere, name)
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(sorted(listed(self, pattern))[::-1]))
    assert prepare(elsewhere, tmp_path / "again", name=tmp_path / "own.py") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_a_second_run_converts_nothing_and_follows_what_changed(raw, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(raw, out)
    first = contents(out)
    prepare(raw, out)
    assert "converted now: 0 of 12" in capsys.readouterr().out
    assert contents(out) == first
    write_raw(raw, NAMES[0], seed=1)
    (raw / "x" / f"{NAMES[1]}.png").unlink()
    prepare(raw, out)
    assert "converted now: 1 of 11" in capsys.readouterr().out
    after = contents(out)
    changed = {name for name in first if first[name] != after.get(name)}
    images = {f"{folder}/{name}.png" for folder in ("images", "masks") for name in NAMES[:2]}
    assert images <= changed and changed - images == {
        "metadata.csv",
        "preparation.json",
        "preparation.txt",
        "preparation_state.json",
    }
    (out / "images" / f"{NAMES[3]}.png").write_bytes(b"damaged")
    prepare(raw, out)
    assert contents(out) == after


def test_a_killed_run_leaves_no_table_and_the_same_command_goes_on(raw, tmp_path):
    command = [sys.executable, "-m", "dataset.prepare", str(tmp_path / "own.py"), "--raw", str(raw), "--workers", "1"]
    killed = tmp_path / "killed"
    environment = {"PATH": "", "PYTHONPATH": str(REPOSITORY), "KILL_AT": "8", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, "--out", str(killed)], env=environment, capture_output=True, cwd=tmp_path)
    assert ended.returncode == -9
    assert not (killed / "metadata.csv").exists()
    importer, _ = load_importer(str(tmp_path / "own.py"))
    again = prepare_source(importer, raw, killed, importer.options())
    assert 4 <= again.n_converted <= 8
    prepare(raw, tmp_path / "whole")
    assert contents(killed) == contents(tmp_path / "whole")


def test_the_code_that_converts_is_part_of_what_was_done(raw, tmp_path, capsys):
    prepare(raw, tmp_path / "out")
    capsys.readouterr()
    (tmp_path / "own.py").write_text(OWN.replace("binary_mask(case.files[1], None)", "binary_mask(case.files[1], 1)"))
    prepare(raw, tmp_path / "out")
    assert "converted now: 12 of 12" in capsys.readouterr().out


def test_the_report_says_what_was_left_out_and_why_against_what_is_expected(raw, tmp_path):
    write_raw(raw, "pA9_A_unusable")
    importer, about = load_importer(str(tmp_path / "own.py"))
    assert about == About()
    expected = About(title="Mine", n_images=13, n_patients=12)
    report = prepare_source(importer, raw, tmp_path / "out", importer.options(), expected).report
    assert (report.n_found, report.n_kept, report.n_patients) == (13, 12, 12)
    assert report.left_out == {"it is called unusable": ("pA9_A_unusable",)}
    assert [warning for warning in report.warnings if "12 images are kept, 13 are expected" in warning]
    assert not [warning for warning in report.warnings if "patients are kept" in warning]
    stored = json.loads((tmp_path / "out" / "preparation.json").read_text())
    assert stored["left_out"] == {"it is called unusable": ["pA9_A_unusable"]}
    assert "left out: 1, it is called unusable: pA9_A_unusable" in (tmp_path / "out" / "preparation.txt").read_text()
    assert len(rows(tmp_path / "out")) == 12


def test_a_patient_at_two_sites_and_an_image_under_two_names_are_reported(raw, tmp_path, capsys):
    write_raw(raw, "pA0_B_1")
    write_raw(raw, "pB5_B_1", seed=[*NAMES[0].encode()])
    assert prepare(raw, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "patient pA0 is at several sites (A: 1 images, B: 1 images)" in said
    assert f"the same image is stored as {NAMES[0]}, pB5_B_1" in said
    assert len(load_cases(source_config(tmp_path / "out"), Path())) == 13


def test_masks_with_grey_levels_and_of_another_size_are_refused_together(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / "out") == 0  # the table of a source that was whole does not outlive it
    PIL.Image.fromarray(np.full((12, 9), 90, np.uint8)).save(raw / "y" / f"{NAMES[2]}.png")
    PIL.Image.fromarray(np.zeros((12, 8), np.uint8)).save(raw / "y" / f"{NAMES[5]}.png")
    assert prepare(raw, tmp_path / "out") == 2
    said = capsys.readouterr().err
    for text in (f"y/{NAMES[2]}.png", "[90]", "mask_threshold=128", f"y/{NAMES[5]}.png", "12 x 8", "12 x 9", "way out"):
        assert text in said
    assert not (tmp_path / "out" / "metadata.csv").exists()
    assert len(list((tmp_path / "out" / "images").iterdir())) == 10


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw, out: (out.mkdir(), (out / "metadata.csv").write_text("mine")), "did not write"),
        (lambda raw, out: (out.mkdir(), (out / "preparation_state.json").write_text('{"importer": "qata"}')), "'qata'"),
        (lambda raw, out: write_raw(raw, "p1_A_ö"), "not safe"),
        (lambda raw, out: write_raw(raw, "PA0_a_0"), "twice"),
        (lambda raw, out: write_raw(raw, "p1__x"), "no site"),
        (lambda raw, out: (raw / "y" / f"{NAMES[0]}.png").unlink(), "needs this file"),
        (lambda raw, out: [path.unlink() for path in (raw / "x").iterdir()], "no case can be used"),
    ],
)
def test_what_cannot_be_prepared_is_refused(raw, tmp_path, capsys, spoil, said):
    spoil(raw, tmp_path / "out")
    assert prepare(raw, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert said in message and "way out" in message


def test_the_output_may_not_lie_in_the_raw_folder(raw, capsys):
    assert prepare(raw, raw / "out") == 2
    assert "lies in the raw folder" in capsys.readouterr().err


def test_published_checksums_are_compared(raw, tmp_path):
    importer, _ = load_importer(str(tmp_path / "own.py"))
    (raw / "all.zip").write_bytes(b"zip")
    absent = About(sha256={"other.zip": "0" * 64})
    report = prepare_source(importer, raw, tmp_path / "out", importer.options(), absent).report
    assert report.checksums == {"other.zip": "not there"}
    with pytest.raises(InputError, match="is published"):
        prepare_source(importer, raw, tmp_path / "out", importer.options(), About(sha256={"all.zip": "0" * 64}))


def test_wrong_options_and_importers_are_refused_with_the_known_ones(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / "out", "sites=A") == 2
    assert "did you mean 'site'" in capsys.readouterr().err
    assert prepare(raw, tmp_path / "out", name="quata") == 2
    assert "polyp, qata" in capsys.readouterr().err


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_importer_of_the_list_is_there_with_defaults_and_what_is_known_of_it(name):
    importer, about = load_importer(name)
    assert isinstance(importer, Importer) and importer.summary and importer.options() is not None
    assert about == load_about(name)


def test_a_file_in_the_folder_of_importers_is_all_it_takes():
    assert set(IMPORTERS) == {file.stem for file in (REPOSITORY / "dataset" / "importers").glob("[!_]*.py")}


@pytest.mark.parametrize("name", ["qata", "polyp"])
def test_what_is_known_of_the_papers_data_is_complete(name):
    about = load_about(name)
    assert all((about.title, about.source, about.licence, about.citation, about.ethics, about.n_images))


def test_help_lists_all_importers_and_their_options(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"  {name}  " in said for name in IMPORTERS)
    assert "n_sites=2,8" in said and "mask_threshold=128" in said


def documented(module):
    """The commands of docs/data.md for ``module``, as words."""
    text = (REPOSITORY / "docs" / "data.md").read_text().replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith(f"python -m {module} ")]
    return [line[3:] for line in lines if "--help" not in line]


def test_the_documented_commands_have_importers_and_options_that_exist():
    commands = [words for words in documented("dataset.prepare") if not words[0].endswith(".py")]
    assert {words[0] for words in commands} == {"qata", "polyp", "dicom", "nnunet", "bids"}
    for name, raw, _, out, _, *settings in commands:
        assert (raw, out) == ("--raw", "--out")
        settings_from_text(load_importer(name)[0].options, split_arguments(settings, "docs"), "docs")


def test_the_documented_file_of_ones_own_works_as_its_command_says(tmp_path, monkeypatch, capsys):
    text = (REPOSITORY / "docs" / "data.md").read_text()
    (tmp_path / "my_dataset.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1))
    for number in range(10):
        folder = tmp_path / "raw" / ("north" if number < 5 else "south")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (12, 9), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"p{number}_1.png")
        PIL.Image.fromarray(np.where(pixels > 99, 255, 0).astype(np.uint8)).save(folder / f"p{number}_1_mask.png")
    monkeypatch.chdir(tmp_path)
    (command,) = [words for words in documented("dataset.prepare") if words[0] == "my_dataset.py"]
    assert main([word.replace("/path/to/download", str(tmp_path / "raw")) for word in command]) == 0
    assert "10 images are kept, 120 are expected" in capsys.readouterr().out
    config = source_config(tmp_path / "data" / "mine")
    assert config.labels == {"tumour": 1} and len(check_cases(load_cases(config, Path()), config).sites) == 2
    (table_command,) = documented("dataset.export_table")
    root = tmp_path / "data" / "mine"
    assert export_table([word.replace("/path/to/data", str(root)) for word in table_command]) == 0
    assert (tmp_path / "df_dataset_id_federated.yaml").is_file()


@pytest.fixture
def eight_sites(tmp_path):
    raw = tmp_path / "eight" / "raw"
    for number in range(80):
        write_raw(raw, f"p{number}_{'ABCDEFGH'[number % 8]}_0")
    (tmp_path / "own.py").write_text(OWN)
    assert prepare(raw, tmp_path / "out", name=tmp_path / "own.py") == 0
    return tmp_path / "out"


def exported(root, out, *arguments):
    keys = (f"root={root}", "patient_column=patient", "site_column=site", "labels=lung:1", f"out={out}")
    assert export_table([*keys, *arguments]) == 0
    columns = yaml.safe_load(out.read_text())
    return [{key: columns[key][index] for key in columns} for index in columns["dataset_id"]]


def ids_of(table, kind, site):
    return [row["dataset_id"] for row in table if (row["real"], row["hosp"]) == (kind, site)]


def test_the_exported_table_has_the_originals_ids_and_the_experiments_folds(raw, tmp_path):
    """The ids of HyFree-S3's two-site QaTa table."""
    prepare(raw, tmp_path / "out")
    table = exported(tmp_path / "out", tmp_path / "df.yaml", "first_id=700", "descriptor=qata", "federated=true")
    expected = {("real", "A"): 700, ("real", "B"): 705, ("real", "all"): 710, ("syn", "A"): 715, ("syn", "B"): 720}
    expected |= {("syn", "all"): 725, ("syn-real", "A"): 730, ("syn-real", "B"): 735}
    assert {key: ids_of(table, *key) for key in expected} == {
        key: list(range(first, first + 5)) for key, first in expected.items()
    }
    assert len(table) == 40 and [row["dataset_id"] for row in table] == list(range(700, 740))
    assert table[6]["dataset_name"] == "Dataset706_qata" and table[15]["train"] == []
    cases = load_cases(source_config(tmp_path / "out"), Path())
    for site, first in (("A", 0), ("B", 5)):
        folds = assign_folds([case for case in cases if case.site == site], derive_seed(71173, "folds", site))
        rows_of_site = table[first : first + 5]
        assert [tuple(row["test"]) for row in rows_of_site] == [fold.test for fold in folds]
        assert [tuple(row["train"]) for row in rows_of_site] == [fold.train for fold in folds]
    assert table[12]["val"] == table[2]["val"] + table[7]["val"]
    federated = yaml.safe_load((tmp_path / "df_federated.yaml").read_text())
    assert list(federated["dataset_id"].values()) == list(range(740, 750))
    assert federated["test"][9] == table[9]["test"]


def test_tables_of_eight_sites_and_unions_need_no_code(eight_sites, tmp_path):
    """D38: the original's builders know the sites A to H and the unions AB and ABCD by name."""
    table = exported(eight_sites, tmp_path / "df.yaml", "first_id=500", "scaling=2,4", "scaling_first_id=100")
    assert (ids_of(table, "real", "H")[0], ids_of(table, "real", "all")[0]) == (535, 540)
    assert (ids_of(table, "syn", "all")[0], ids_of(table, "syn-real", "H")[-1]) == (585, 629)
    columns = yaml.safe_load((tmp_path / "df_scaling.yaml").read_text())
    scaling = [{key: columns[key][index] for key in columns} for index in columns["dataset_id"]]
    assert scaling[: len(table)] == table
    first = {("real", "AB"): 100, ("real", "ABCD"): 105, ("syn", "AB"): 110, ("syn", "ABCD"): 115}
    first |= {("syn2-real", "A"): 120, ("syn2-real", "H"): 155, ("syn4-real", "A"): 160, ("syn4-real", "H"): 195}
    assert {key: ids_of(scaling, *key)[0] for key in first} == first
    union = next(row for row in scaling if row["dataset_id"] == 100)
    assert union["test"] == table[0]["test"] + table[5]["test"]


def test_a_table_with_doubtful_ids_is_refused(raw, tmp_path, capsys):
    prepare(raw, tmp_path / "out")
    keys = (f"root={tmp_path / 'out'}", "patient_column=patient", "site_column=site", f"out={tmp_path / 'df.yaml'}")
    assert export_table([*keys, "first_id=90"]) == 2
    assert export_table([*keys, "scaling=2"]) == 2
    assert "way out" in capsys.readouterr().err
    assert not (tmp_path / "df.yaml").exists()


def test_the_code_behind_a_conversion_is_all_of_it():
    """A changed rasterisation must convert again, although the importer's own file is the same."""
    from dataset.preparation import _code_behind

    names = {file.stem for file in _code_behind(load_importer("cervix")[0].convert)}
    assert {"cervix", "annotated", "series", "rtstruct", "seg"} <= names
    assert {"qata", "raw_files", "images"} <= {file.stem for file in _code_behind(load_importer("qata")[0].convert)}
