"""Sources: tables, sites, patients, checks, conversion; one test a kind of bad input."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from support.paths import REPOSITORY

from common.errors import InputError
from common.exit_codes import ExitCode
from dataset.check import check_cases, write_contact_sheet
from dataset.convert import write_raw_dataset
from dataset.folds import assign_folds
from dataset.images import read_image
from dataset.source import SourceConfig, content_digest, load_cases, load_report

REAL_DATA = REPOSITORY.parent / "shared" / "data"
NO_REAL_DATA = not (REAL_DATA / "cxr_hannover" / "metadata.csv").is_file()


def write_table(root, rows, header=("image", "patient", "site")):
    with (root / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def write_images(root, name, size=(12, 9), seed=0):
    pixels = np.random.default_rng([seed, *name.encode()]).integers(0, 255, size, dtype=np.uint8)
    for folder, content in (("images", pixels), ("masks", (pixels > 127).astype(np.uint8) * 255)):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(content).save(root / folder / name)


@pytest.fixture
def root(tmp_path):
    """Two sites of six patients, one image each."""
    rows = [(f"{site}{i}.png", f"patient {site}{i}", site) for site in "AB" for i in range(6)]
    for name, *_ in rows:
        write_images(tmp_path, name)
    write_table(tmp_path, rows)
    return tmp_path


def config_of(root, **changes):
    return SourceConfig(root=str(root), patient_column="patient", site_column="site", **changes)


def load(root, **changes):
    return load_cases(config_of(root, **changes), root)


def check(root, **changes):
    return check_cases(load(root, **changes), config_of(root, **changes))


def refusal(call, *mentions):
    """The call is refused with a message that names everything in ``mentions`` and a way out."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert all(str(mention) in message for mention in (*mentions, "way out: ")), message
    return caught.value


def rows_of(root):
    with (root / "metadata.csv").open() as stream:
        return [tuple(row) for row in csv.reader(stream)][1:]


def test_cases_and_digest_do_not_depend_on_table_order_or_place(root, tmp_path_factory):
    """D40: the original numbered images, and so split them, in directory-listing order."""
    first = load(root)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    root.rename(elsewhere)
    write_table(elsewhere, rows_of(elsewhere)[::-1])
    second = load(elsewhere)
    assert [(c.case_id, c.patient, c.site) for c in first] == [(c.case_id, c.patient, c.site) for c in second]
    before = content_digest(second)
    assert before == content_digest(second[::-1])
    write_images(elsewhere, "A0.png", seed=1)
    assert content_digest(second) != before


def test_any_site_names_and_rules_work_without_code(root):
    """D38: the original knew three data sets by name and the sites A to H."""
    write_table(root, [(name, patient, f"clinic-{site}.1") for name, patient, site in rows_of(root)])
    assert {case.site for case in load(root)} == {"clinic-A.1", "clinic-B.1"}
    write_table(
        root, [(n, p, 10 if s == "clinic-A.1" else 3) for n, p, s in rows_of(root)], ("image", "patient", "height")
    )
    ruled = SourceConfig(root=str(root), patient_column="patient", site_rule="height > 5", sites=("B", "A"))
    cases = load_cases(ruled, root)
    assert [case.site for case in cases] == ["B"] * 6 + ["A"] * 6
    assert all(case.case_id.startswith(case.site) for case in cases)


def test_case_ids_are_safe_unique_and_stable(root):
    write_images(root, "sub 1/größe.png")
    write_images(root, "sub 2/größe.png")
    added = [("sub 1/größe.png", "x", "A"), ("sub 2/größe.png", "y", "A")]
    write_table(root, [*rows_of(root), *added])
    ids = [case.case_id for case in load(root)]
    assert len(set(ids)) == 14 and all(name.isascii() and "/" not in name and " " not in name for name in ids)
    write_table(root, [*added[::-1], *rows_of(root)[:12]])
    assert sorted(ids) == sorted(case.case_id for case in load(root))


def test_patient_ids_keep_leading_zeros_and_missing_values_stay_text(root):
    write_table(root, [(name, "007" if name == "A0.png" else "NA", site) for name, _, site in rows_of(root)[:6]])
    assert {case.patient for case in load(root)} == {"007", "NA"}


def test_without_patient_column_each_image_is_a_patient_and_the_report_says_so(root):
    report = load_report(SourceConfig(root=str(root), site_column="site"), root)
    assert len({case.patient for case in report.cases}) == 12
    assert any("no split by patient" in warning for warning in report.warnings)


def test_a_patient_at_two_sites_is_reported_and_kept_where_he_has_more_images(root, caplog):
    for name in ("A6.png", "A7.png", "B6.png"):
        write_images(root, name)
    added = [("A6.png", "twice", "A"), ("A7.png", "twice", "A"), ("B6.png", "twice", "B")]
    tie = [(name, "tie" if name in ("A0.png", "B0.png") else patient, site) for name, patient, site in rows_of(root)]
    write_table(root, tie + added)
    report = load_report(config_of(root), root)
    by_patient = {patient: {c.site for c in report.cases if c.patient == patient} for patient in ("twice", "tie")}
    assert by_patient == {"twice": {"A"}, "tie": {"A"}}
    assert [(p.patient, p.kept_site, p.n_kept, len(p.dropped_cases)) for p in report.cross_site_patients] == [
        ("tie", "A", 1, 1),
        ("twice", "A", 2, 1),
    ]
    load(root)
    assert "twice" in caplog.text and "kept at A (2 images), left out 1 at B" in caplog.text


def test_a_patient_at_two_sites_is_refused_where_the_configuration_says_so(root):
    tie = [(name, "tie" if name in ("A0.png", "B0.png") else patient, site) for name, patient, site in rows_of(root)]
    write_table(root, tie)
    refusing = dataclasses.replace(config_of(root), cross_site_patients="refuse")
    refusal(lambda: load_report(refusing, root), "tie", "metadata.csv", "left out 1 at B", "keep_at_one")
    other = dataclasses.replace(config_of(root), cross_site_patients="drop")
    refusal(lambda: load_report(other, root), "'drop'", "refuse")


def test_missing_mask(root):
    (root / "masks" / "A3.png").unlink()
    refusal(lambda: load(root), "masks/A3.png", "line 5", "mask_dir")


def test_mask_with_another_ending_is_found(root):
    (root / "images" / "A3.png").unlink()
    PIL.Image.fromarray(np.arange(108, dtype=np.uint8).reshape(12, 9)).save(root / "images" / "A3.jpg")
    write_table(root, [(name.replace("A3.png", "A3.jpg"), *rest) for name, *rest in rows_of(root)])
    assert {case.mask.name for case in load(root)} >= {"A3.png"}


def test_missing_image(root):
    (root / "images" / "B1.png").unlink()
    refusal(lambda: load(root), "images/B1.png", "line 9")


@pytest.mark.parametrize("content", ["", "image,patient,site\n"])
def test_empty_table(root, content):
    (root / "metadata.csv").write_text(content)
    refusal(lambda: load(root), "metadata.csv")


def test_missing_column(root):
    refusal(lambda: load(root, mask_column="mask"), "'mask'", "['image', 'patient', 'site']", "metadata.csv")


def test_empty_cell(root):
    rows = rows_of(root)
    write_table(root, [*rows[:3], (rows[3][0], " ", "A"), *rows[4:]])
    refusal(lambda: load(root), "'patient'", "line 5")


def test_image_listed_twice_or_at_two_sites(root):
    rows = rows_of(root)
    write_table(root, [*rows, rows[0]])
    refusal(lambda: load(root), "A0.png", "listed twice")
    write_table(root, [*rows, (rows[0][0], rows[0][1], "B")])
    refusal(lambda: load(root), "A0.png", "two sites, A and B")


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"sites": ("A", "C")}, ("'C'", "['A', 'B']")),
        ({"site_rule": "patient > 1"}, ("exactly one",)),
        ({"labels": {"lung": 2}}, ("[2]", "1, 2, ...")),
        ({"mask_values": {255: 3}}, ("255", "3")),
        ({"kind": "dicom"}, ("'dicom'", "phantom")),
        ({"table": "other.csv"}, ("other.csv",)),
    ],
)
def test_contradictory_settings(root, changes, mentions):
    refusal(lambda: load(root, **changes), *mentions)


@pytest.mark.parametrize(
    ("rule", "mention"),
    [
        ("nothing > 3", "nothing"),
        ("image >", "image >"),
        ("1 + 1", "no value a row"),
        ("gap > 1", "is empty in 1 rows"),
    ],
)
def test_site_rule_that_cannot_tell_sites(root, rule, mention):
    rows = [(*row, "" if index == 2 else index) for index, row in enumerate(rows_of(root))]
    write_table(root, rows, ("image", "patient", "site", "gap"))
    refusal(lambda: load_cases(SourceConfig(root=str(root), site_rule=rule), root), mention)


def test_sites_cannot_take_names_that_break_folders(root):
    write_table(root, [(name, patient, "all") for name, patient, _ in rows_of(root)])
    refusal(lambda: load(root), "'all'")
    write_table(root, [(name, patient, "../up") for name, patient, _ in rows_of(root)])
    refusal(lambda: load(root), "'../up'")


def test_check_names_a_mask_of_another_size(root):
    PIL.Image.fromarray(np.zeros((9, 12), np.uint8)).save(root / "masks" / "A1.png")
    refusal(lambda: check(root), "masks/A1.png", "9 x 12", "12 x 9")


def test_check_names_label_values_outside_the_map(root):
    PIL.Image.fromarray(np.full((12, 9), 130, np.uint8)).save(root / "masks" / "A1.png")
    refusal(lambda: check(root), "masks/A1.png", "[130]", "108 pixels", "mask_values")


def test_check_names_a_truncated_image(root):
    whole = (root / "images" / "B2.png").read_bytes()
    (root / "images" / "B2.png").write_bytes(whole[: len(whole) // 2])
    refusal(lambda: check(root), "images/B2.png", "not a readable image")


def test_check_names_a_constant_image(root):
    PIL.Image.fromarray(np.full((12, 9), 7, np.uint8)).save(root / "images" / "B2.png")
    refusal(lambda: check(root), "images/B2.png", "every pixel is 7")


def test_check_names_images_of_another_kind(root):
    PIL.Image.fromarray(np.arange(108, dtype=np.uint16).reshape(12, 9)).save(root / "images" / "B2.png")
    refusal(lambda: check(root), "images/B2.png", "uint16", "11 other images")


def test_check_names_a_site_with_too_few_patients(root):
    write_table(root, rows_of(root)[:10])
    error = refusal(lambda: check(root), "site B", "4 patients")
    assert "site A" not in str(error)


def test_check_lists_all_problems_at_once(root):
    for name in ("A1.png", "A2.png", "B3.png"):
        (root / "images" / name).write_bytes(b"no image")
    refusal(lambda: check(root), "images/A1.png", "and 2 more", "images/A2.png", "images/B3.png")


def test_check_reports_counts_empty_masks_and_copies(root):
    PIL.Image.fromarray(np.zeros((12, 9), np.uint8)).save(root / "masks" / "A1.png")
    (root / "images" / "B0.png").write_bytes((root / "images" / "A0.png").read_bytes())
    report = check(root, labels={"lung": 1})
    assert {site: (count.n_patients, count.n_images) for site, count in report.sites.items()} == {
        "A": (6, 6),
        "B": (6, 6),
    }
    assert report.shapes_px == {(12, 9): 12} and report.dtype == "uint8" and report.channels == ("grey",)
    masks = [np.asarray(PIL.Image.open(file)) > 0 for file in sorted((root / "masks").iterdir())]
    assert report.label_fractions == {"lung": pytest.approx(np.mean(masks))}
    assert any("A1" in warning and "empty" in warning for warning in report.warnings)
    assert any("A0" in warning and "B0" in warning for warning in report.warnings)


def test_check_command_writes_the_sheet_and_fails_on_bad_data(root):
    def run(*arguments):
        command = [sys.executable, "-m", "dataset.check", f"root={root}", "patient_column=patient", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    good = run("site_column=site", f"out={root / 'sheet.png'}", "labels=lung:1")
    assert good.returncode == 0 and "site A: 6 patients, 6 images" in good.stdout
    assert PIL.Image.open(root / "sheet.png").size == (8 * 192, 2 * 192)
    bad = run("site_column=hospital", f"out={root / 'other.png'}")
    assert bad.returncode == ExitCode.BAD_INPUT and "'hospital'" in bad.stderr and "way out" in bad.stderr
    assert "Traceback" not in bad.stderr and not (root / "other.png").exists()


def test_contact_sheet_outlines_the_mask(root):
    mask = np.zeros((12, 9), np.uint8)
    mask[4:8, 3:6] = 255
    PIL.Image.fromarray(mask).save(root / "masks" / "A0.png")
    write_contact_sheet(root / "sheet.png", load(root)[:1], config_of(root), n_per_site=1)
    red = np.all(np.asarray(PIL.Image.open(root / "sheet.png")) == (255, 64, 64), axis=-1)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64, 127, 48, 95)  # 16 screen pixels a pixel
    assert not red[80:112, 60:84].any()


def test_raw_dataset_holds_every_case_once_and_is_the_same_when_written_again(root):
    cases = [case for case in load(root) if case.site == "A"]
    split = assign_folds(cases, seed=1)[2]
    out = root / "raw" / "Dataset101_lung"

    def write():
        write_raw_dataset(cases, split, out, config_of(root, labels={"lung": 1}))
        return {path.relative_to(root): path.read_bytes() for path in (root / "raw").rglob("*") if path.is_file()}

    files = write()
    assert files == write()
    for part, case_ids in (("Tr", (*split.train, *split.val)), ("Ts", split.test)):
        assert {path.name for path in (out / f"images{part}").iterdir()} == {f"{case}_0000.png" for case in case_ids}
        assert {path.name for path in (out / f"labels{part}").iterdir()} == {f"{case}.png" for case in case_ids}
    assert json.loads((out / "dataset.json").read_text()) == {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "lung": 1},
        "numTraining": 5,
        "file_ending": ".png",
    }
    assert json.loads((out.parent / "patients.json").read_text())[split.test[0]].startswith("patient A")
    case = next(case for case in cases if case.case_id == split.test[0])
    assert np.array_equal(read_image(out / "imagesTs" / f"{case.case_id}_0000.png").array, read_image(case.image).array)
    label = np.asarray(PIL.Image.open(out / "labelsTs" / f"{case.case_id}.png"))
    assert np.array_equal(label, np.asarray(PIL.Image.open(case.mask)) // 255)


def test_raw_dataset_never_mixes_with_files_of_other_cases(root):
    """D19: the original deleted whole data-set trees; here nothing is deleted and nothing stale is trained on."""
    cases = [case for case in load(root) if case.site == "A"]
    first, second = assign_folds(cases, seed=1)[:2]
    out = root / "raw" / "Dataset101_lung"
    write_raw_dataset(cases, first, out, config_of(root))
    before = sorted(out.rglob("*"))
    refusal(lambda: write_raw_dataset(cases, second, out, config_of(root)), out, "another dataset")
    assert sorted(out.rglob("*")) == before


def test_phantom_source_is_drawn_once_and_then_read(tmp_path):
    from dataset.phantom import PhantomConfig

    config = SourceConfig(kind="phantom", phantom=PhantomConfig(n_patients=5, size_px=32))
    cases = load_cases(config, tmp_path)
    digest = content_digest(cases)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert content_digest(load_cases(config, tmp_path)) == digest
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert check_cases(cases, config).sites["B"].n_patients == 5
    assert [path.name for path in tmp_path.iterdir()] == [cases[0].image.parents[1].name]  # no temporary folder left


@pytest.mark.skipif(NO_REAL_DATA, reason=f"no real images at {REAL_DATA}")
def test_hannover_chest_radiographs_load_with_their_cross_site_patients():
    config = SourceConfig(
        root=str(REAL_DATA / "cxr_hannover"),
        image_column="file",
        patient_column="patient_id",
        site_column="projection",
        mask_dir="lung_masks",
    )
    report = load_report(config, Path())
    dropped = [case for patient in report.cross_site_patients for case in patient.dropped_cases]
    everything = [*report.cases, *dropped]
    assert {site: sum(case.site == site for case in everything) for site in ("ap", "pa")} == {"ap": 44, "pa": 33}
    assert len({case.patient for case in report.cases}) == 43
    assert [patient.patient for patient in report.cross_site_patients] == [
        "09ec853d",
        "271ddf1a",
        "c62c878a",
        "d039b079",
    ]
    assert check_cases(report.cases, config).label_fractions["foreground"] == pytest.approx(0.373, abs=0.005)
