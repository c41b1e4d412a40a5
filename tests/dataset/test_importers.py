"""Generic importers on miniature trees with each layout's names: nnU-Net, MSD, BIDS, CheXpert, RSNA-ICH."""

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from support.paths import SHARED_DATA
from support.prepared import source_config

from dataset.check import check_cases
from dataset.convert import write_raw_dataset
from dataset.folds import assign_folds
from dataset.images import read_image
from dataset.importers.rsna_ich import SUBTYPES
from dataset.prepare import main
from dataset.source import load_cases

RAT_SEM = SHARED_DATA / "axon_em" / "sem_bids"
AFFINE = np.array([[0.0, -0.5, 0, 10], [0.5, 0, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]])


def prepare(name, raw, out, *settings):
    return main([name, "--raw", str(raw), "--out", str(out), "--workers", "2", *settings])


def table(out):
    with (out / "metadata.csv").open() as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def loaded(out):
    config = source_config(out)
    cases = load_cases(config, Path())
    return config, cases, check_cases(cases, config)


def write_volume(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = nibabel.Nifti1Image(array, affine)
    stored.header["descrip"] = b"Mrs Doe 1950"
    nibabel.save(stored, path)


def volume(seed, *shape):
    return np.random.default_rng(seed).integers(-500, 900, shape, dtype=np.int16)


def label(seed):
    mask = np.zeros((6, 8, 5), np.uint8)
    mask[1:3, 2:5, 1:4], mask[4, seed % 3 : 6, 2] = 1, 2
    return mask


def write_nnunet(root, names):
    """Two channels a case, version 2's dataset.json, a test part without labels."""
    for number, name in enumerate(names):
        for channel in range(2):
            write_volume(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", volume([number, channel], 6, 8, 5))
        write_volume(root / "labelsTr" / f"{name}.nii.gz", label(number))
    for channel in range(2):
        write_volume(root / "imagesTs" / f"unlabelled_{channel:04d}.nii.gz", volume([99, channel], 6, 8, 5))
    described = {"channel_names": {"0": "T2", "1": "CT"}, "labels": {"background": 0, "organ": 1, "tumour": 2}}
    (root / "dataset.json").write_text(json.dumps({**described, "numTraining": len(names), "file_ending": ".nii.gz"}))


@pytest.fixture
def nnunet(tmp_path):
    root = tmp_path / "raw" / "Dataset012_two"
    write_nnunet(root, [f"{site}-p{number}" for site in "XY" for number in range(5)])
    return root


def test_nnunet_channels_become_one_volume_with_its_geometry(nnunet, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare("nnunet", nnunet.parent, out, "site_pattern=^(.)", "patient_pattern=(p[0-9]+)$") == 0
    config, cases, report = loaded(out)
    assert config.labels == {"organ": 1, "tumour": 2} and report.channels == ("T2", "CT")
    assert {(case.site, case.patient) for case in cases} >= {("X", "p0")}
    image = read_image(out / "images" / "X-p3.nii.gz")
    for channel in range(2):
        stored = nibabel.load(nnunet / "imagesTr" / f"X-p3_{channel:04d}.nii.gz")
        assert np.array_equal(image.array[channel], np.asarray(stored.dataobj).T)
    assert image.spacing_mm == pytest.approx((4.0, 0.5, 0.5)) and image.array.dtype == np.int16
    said = capsys.readouterr().out
    assert "left out: 1, no label (test part): unlabelled" in said
    assert "patient p0 is at several sites (X: 1 images, Y: 1 images)" in said


def test_what_headers_say_beside_the_geometry_does_not_travel(nnunet, tmp_path):
    prepare("nnunet", nnunet, tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.nii.gz"):
        assert b"Doe" not in bytes(nibabel.load(file).header["descrip"].tobytes())


def test_a_table_says_sites_and_patients_of_cases(nnunet, tmp_path, capsys):
    names = sorted(file.name[:-7] for file in (nnunet / "labelsTr").iterdir())
    rows = [f"{name},ward {index % 2},id{index},{index + 40}" for index, name in enumerate(names)]
    text = "\n".join(["case,site,patient,age", *rows])
    (tmp_path / "sites.csv").write_text(text.replace("ward ", "ward-"))
    assert prepare("nnunet", nnunet, tmp_path / "out", f"table={tmp_path / 'sites.csv'}") == 0
    assert table(tmp_path / "out")["X-p1.nii.gz"] == {
        "image": "X-p1.nii.gz", "patient": "id1", "site": "ward-1", "age": "41", "part": "Tr"
    }  # fmt: skip
    (tmp_path / "sites.csv").write_text("\n".join(text.splitlines()[:-1]))
    assert prepare("nnunet", nnunet, tmp_path / "out", f"table={tmp_path / 'sites.csv'}") == 2
    assert "no row for case 'Y-p4'" in capsys.readouterr().err


def test_msd_keeps_the_channels_of_its_4d_volumes(tmp_path):
    root = tmp_path / "Task05_Prostate"
    described = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "2": "TZ", "1": "PZ"}}
    described["training"] = []
    for number in range(5):
        name = f"prostate_{number:02d}.nii.gz"
        write_volume(root / "imagesTr" / name, volume(number, 6, 8, 5, 2))
        write_volume(root / "labelsTr" / name, label(number))
        described["training"].append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (root / "imagesTr" / "._prostate_00.nii.gz").write_bytes(b"what macOS leaves in archives")
    described["test"] = ["./imagesTs/prostate_99.nii.gz"]
    (root / "dataset.json").write_text(json.dumps(described))
    assert prepare("nnunet", root, tmp_path / "out") == 0
    config, _, report = loaded(tmp_path / "out")
    assert config.labels == {"PZ": 1, "TZ": 2} and report.channels == ("T2", "ADC")
    image = read_image(tmp_path / "out" / "images" / "prostate_03.nii.gz")
    assert np.array_equal(image.array, volume(3, 6, 8, 5, 2).T) and image.spacing_mm == pytest.approx((4.0, 0.5, 0.5))


def test_our_own_raw_datasets_come_back_with_their_patients(tmp_path):
    """What write_raw_dataset writes of a colour source is read back to the same pixels and patients."""
    rows = ["image,patient,site"]
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 9, 3), dtype=np.uint8)
        for folder, content in (("images", pixels), ("masks", (pixels[..., 0] > 99).astype(np.uint8))):
            (tmp_path / "source" / folder).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(content).save(tmp_path / "source" / folder / f"c{number}.png")
        rows.append(f"c{number}.png,patient {number},A")
    (tmp_path / "source" / "metadata.csv").write_text("\n".join(rows))
    (tmp_path / "source" / "source.yaml").write_text("{patient_column: patient, site_column: site}")
    config, cases, _ = loaded(tmp_path / "source")
    write_raw_dataset(cases, assign_folds(cases, 0)[0], tmp_path / "raw" / "Dataset001_x", config)
    shutil.copytree(tmp_path / "raw" / "Dataset001_x" / "imagesTs", tmp_path / "untouched")
    assert prepare("nnunet", tmp_path / "raw" / "Dataset001_x", tmp_path / "out") == 0
    assert {row["patient"] for row in table(tmp_path / "out").values()} == {f"patient {number}" for number in range(5)}
    for number in range(5):
        pair = [
            read_image(folder / "images" / f"c{number}.png").array for folder in (tmp_path / "source", tmp_path / "out")
        ]
        assert np.array_equal(*pair)


def spoilt(root, **changes):
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**described, **changes}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: spoilt(root, labels={"background": 0, "whole": [1, 2], "core": 2}), "labels by region"),
        (lambda root: spoilt(root, labels={"background": 0, "organ": 1, "ignore": 2}), "without 'ignore'"),
        (lambda root: spoilt(root, labels={"background": 0, "organ": 1}), "[2] "),
        (lambda root: (root / "dataset.json").write_text("{"), "not readable JSON"),
        (lambda root: (root / "dataset.json").unlink(), "0 folders contain 'dataset.json'"),
        (lambda root: shutil.rmtree(root / "labelsTr"), "no case has a label"),
        (lambda root: write_volume(root / "labelsTr" / "X-p0.nii.gz", label(0)[:5]), "5 x 8 x 5"),
        (lambda root: write_volume(root / "labelsTr" / "X-p0.nii.gz", label(0), 2 * AFFINE), "spacing"),
        (lambda root: write_volume(root / "imagesTr" / "X-p0_0001.nii.gz", volume(0, 6, 8, 4)), "this channel is"),
    ],
)
def test_what_an_nnunet_dataset_may_not_be(nnunet, tmp_path, capsys, spoil, said):
    spoil(nnunet)
    assert prepare("nnunet", nnunet.parent, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert said in message and "way out" in message


@pytest.mark.skipif(
    not RAT_SEM.is_dir(), reason="needs shared/data/axon_em, real images that are not in this repository"
)
def test_a_real_bids_tree_with_its_quirks(tmp_path):
    """Electron microscopy of eight rats: grey with alpha, and masks whose grey levels are not quite three."""
    out, keys = tmp_path / "out", ("labels=myelin:1,axon:2", "mask_values=0:0,127:1,255:2")
    assert prepare("bids", RAT_SEM, out, *keys) == 2
    assert prepare("bids", RAT_SEM, out, *keys, "mask_tolerance=25", "n_channels=1") == 0
    _, cases, report = loaded(out)
    assert len(cases) == 10 and report.sites["A"].n_patients == 8 and report.channels == ("grey",)
    assert table(out)["sub-rat3_sample-data9_SEM.png"]["sample"] == "data9"
    assert report.label_fractions["myelin"] > 0.2


@pytest.fixture
def bids(tmp_path):
    """Two contrasts a session and two raters, in the names of the standard and those of older lesion sets."""
    root, rows = tmp_path / "raw" / "ds001", ["participant_id\tcentre"]
    for number in range(5):
        subject = f"sub-{number:02d}"
        rows.append(f"{subject}\tclinic{number % 2}")
        for contrast in ("T1w", "T2w"):
            name = f"{subject}/ses-1/anat/{subject}_ses-1_{contrast}"
            write_volume(root / f"{name}.nii.gz", volume(number, 6, 8, 5))
        for tail in ("T2w_label-lesion_mask", "T2w_seg-second"):
            name = f"{subject}/ses-1/anat/{subject}_ses-1_{tail}"
            write_volume(root / "derivatives" / "labels" / f"{name}.nii.gz", (label(number) > 0).astype(np.uint8))
        other = f"{subject}/anat/{subject}_ses-1_dseg.nii.gz"
        write_volume(root / "derivatives" / "organs" / other, label(number))
    (root / "participants.tsv").write_text("\n".join(rows))
    return root


def test_bids_masks_are_found_by_entities_and_chosen_by_tail(bids, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare("bids", bids, out, "suffix=T2w") == 2
    assert "tail=label-lesion_mask" in capsys.readouterr().err
    assert prepare("bids", bids, out, "suffix=T2w", "tail=seg-second", "site_column=centre") == 0
    assert {row["site"] for row in table(out).values()} == {"clinic0", "clinic1"}
    for mask in (bids / "derivatives" / "labels").rglob("*_label-lesion_mask.nii.gz"):
        mask.rename(mask.with_name(mask.name.replace("T2w_label-lesion_mask", "dseg")))
    assert prepare("bids", bids, out, "suffix=T2w") == 0  # a mask that repeats the image's whole name is its own
    organs = ("derivative=organs", "labels=organ:1,tumour:2", "suffix=T1w")
    assert prepare("bids", bids, tmp_path / "organs", *organs) == 0
    assert set(table(tmp_path / "organs")) == {f"sub-0{number}_ses-1_T1w.nii.gz" for number in range(5)}
    assert loaded(tmp_path / "organs")[2].sites["A"].n_patients == 5


def test_bids_without_what_was_asked_for_is_refused(bids, tmp_path, capsys):
    assert prepare("bids", bids, tmp_path / "out", "derivative=lesions") == 2
    assert "['labels', 'organs']" in capsys.readouterr().err
    assert prepare("bids", bids, tmp_path / "out", "suffix=T2w", "tail=seg-second", "site_column=site") == 2
    assert "no column 'site'" in capsys.readouterr().err


CHEXPERT_HEAD = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


@pytest.fixture
def chexpert(tmp_path):
    root, rows = tmp_path / "raw" / "CheXpert-v1.0-small", [CHEXPERT_HEAD]
    for number in range(1, 6):
        for view, orientation, projection in ((1, "frontal", "AP"), (2, "lateral", "")):
            path = f"train/patient{number:05d}/study1/view{view}_{orientation}.jpg"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 255, (20, 24), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(root / path)
            rows.append(
                f"CheXpert-v1.0-small/{path},Female,68,{orientation.title()},{projection},1.0,,,,,-1.0,0.0,,,,1.0,,,"
            )
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    (root / "train" / "patient00005" / "study1" / "view1_frontal.jpg").unlink()
    return root


@pytest.mark.parametrize(("uncertain", "edema"), [("keep", "-1"), ("zeros", "0"), ("ones", "1"), ("ignore", "")])
def test_chexpert_rows_become_labels_and_uncertain_ones_are_a_decision(chexpert, tmp_path, uncertain, edema):
    out = tmp_path / "out"
    assert prepare("chexpert", chexpert.parent, out, f"uncertain={uncertain}", "n_sites=2") == 0
    row = table(out)["patient00003_study1_view1_frontal.png"]
    findings = (row["edema"], row["no_finding"], row["consolidation"], row["pleural_effusion"], row["fracture"])
    assert findings == (edema, "1", "0", "1", "")
    assert (row["patient"], row["study"], row["projection"]) == ("patient00003", "1", "AP")
    assert not (out / "masks").exists() and not (out / "source.yaml").exists()


def test_chexpert_rows_without_image_and_other_views_are_reported(chexpert, tmp_path, capsys):
    prepare("chexpert", chexpert, tmp_path / "out")
    said = capsys.readouterr().out
    assert "left out: 5, a lateral view" in said and "left out: 1, the image of the row is not there" in said
    prepare("chexpert", chexpert, tmp_path / "out", "view=all")
    assert len(table(tmp_path / "out")) == 9


def test_chexpert_tables_that_make_no_sense_are_refused(chexpert, tmp_path, capsys):
    text = (chexpert / "train.csv").read_text()
    for wrong, said in (
        (text.replace("-1.0", "2.0", 1), "'Edema' is '2.0'"),
        (text.replace("view1", "img1", 1), "img1"),
    ):
        (chexpert / "train.csv").write_text(wrong)
        assert prepare("chexpert", chexpert, tmp_path / "out") == 2
        assert said in (message := capsys.readouterr().err) and "line 2" in message


def write_rsna_table(root, images, *more):
    rows = [f"ID_{image}_{subtype},{int(subtype in ('any', 'subdural'))}" for image in images for subtype in SUBTYPES]
    root.mkdir(parents=True, exist_ok=True)
    (root / "stage_2_train.csv").write_text("\n".join(["ID,Label", *rows, *more]) + "\n")


def write_slice(root, image, patient, seed):
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SOPClassUID, dataset.PatientID = pydicom.uid.CTImageStorage, patient
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 8, 6, 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    pixels = np.random.default_rng(seed).integers(0, 2000, (8, 6), dtype=np.int16)
    dataset.PixelData = pixels.tobytes()
    (root / "stage_2_train").mkdir(exist_ok=True)
    dataset.save_as(root / "stage_2_train" / f"ID_{image}.dcm", enforce_file_format=True)
    return pixels


def test_rsna_slices_keep_their_units_and_a_hash_of_their_patient(tmp_path, capsys):
    """The published table has rows twice, and one image whose pixels are cut off."""
    pytest.importorskip("pydicom", reason="needs pydicom")
    root, images = tmp_path / "raw", [f"00000{number}" for number in range(6)]
    write_rsna_table(root, [*images, "absent"], "ID_000001_any,1", "ID_000001_epidural,0")
    pixels = [write_slice(root, image, f"ID_{number // 2}", number) for number, image in enumerate(images)]
    cut = root / "stage_2_train" / "ID_000005.dcm"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert prepare("rsna_ich", root, tmp_path / "out", "salt=pepper", "n_sites=2") == 0
    rows = table(tmp_path / "out")
    assert len(rows) == 5 and len({row["patient"] for row in rows.values()}) == 3
    assert not any("ID_" in row["patient"] for row in rows.values())
    assert {rows["ID_000000.png"][subtype] for subtype in ("any", "subdural")} == {"1"}
    stored = read_image(tmp_path / "out" / "images" / "ID_000002.png").array
    assert stored.dtype == np.uint16 and np.array_equal(stored[0], pixels[2])
    said = capsys.readouterr().out
    assert "2 rows of stage_2_train.csv repeat others" in said and "pixels cannot be decoded" in said
    assert "the image of the rows is not there: ID_absent" in said
    before = {row["patient"] for row in rows.values()}
    prepare("rsna_ich", root, tmp_path / "other", "salt=sugar")
    assert not before & {row["patient"] for row in table(tmp_path / "other").values()}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("ID_000001_any,0", "both 0 and 1"),
        ("ID_000009_any,1", "no row for"),
        ("ID_000001_extradural,1", "extradural"),
    ],
)
def test_rsna_tables_that_contradict_themselves_are_refused(tmp_path, capsys, more, said):
    write_rsna_table(tmp_path / "raw", ["000001"], more)
    assert prepare("rsna_ich", tmp_path / "raw", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
