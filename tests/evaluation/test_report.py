"""The report: self-contained, complete, escaped, and whole for half a run."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from skimage import io as image_io

from common.errors import InputError
from common.files import write_json, write_text
from common.image_set import ImageEntry, ImageSet, save_image_set
from evaluation.report import sections
from evaluation.report.__main__ import main
from evaluation.report.page import write_report
from evaluation.results import write_results

SITES = ("A", "B")
STAGES = (
    ("prepare", 4), ("plan", 9), ("slices", 3), ("calibrate", 5), ("generator", 1800), ("segment_real", 2400),
    ("sample", 40), ("filter", 30), ("label", 90), ("finetune", 2500),
)  # fmt: skip
MODEL_LEVEL = {"real-A": 0.70, "real-B": 0.66, "syn-all": 0.71, "syn-real-A": 0.76, "syn-real-B": 0.74}


def result_rows(fold, n_cases=6):
    rng = np.random.default_rng(fold)
    for model, level in MODEL_LEVEL.items():
        trained_on = model.split("-")[-1]
        for tested_on in SITES:
            home = 0.05 if trained_on in (tested_on, "all") else 0.0
            for case in range(n_cases):
                for label in ("polyp", "wall"):
                    dice = float(np.clip(level + home + rng.normal(0, 0.03), 0, 1))
                    scores = {"dice": dice, "iou": dice / (2 - dice), "hd95": 40 * (1 - dice), "nsd": dice**0.8}
                    if label == "wall" and case == 0:
                        scores = dict.fromkeys(scores, float("nan"))
                    key = {"model": model, "trained_on": trained_on, "tested_on": tested_on, "fold": fold, "seed": 0}
                    name = f"{tested_on}_{fold}{case:02d}"
                    yield key | {"patient": f"p{name}", "case": name, "label": label} | scores


def shapes(seed, size=64):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    centre, radius = rng.uniform(18, size - 18, 2), rng.uniform(7, 15)
    distance = np.hypot(rows - centre[0], (columns - centre[1]) * 1.2)
    label = np.where(distance < radius * 0.5, 2, np.where(distance < radius, 1, 0)).astype(np.uint8)
    tissue = 110 + 25 * np.sin(rows / 9 + rng.uniform(0, 6)) + rng.normal(0, 9, (size, size))
    colour = np.stack([tissue + 60 * (label > 0), tissue * 0.6 + 30 * (label > 1), tissue * 0.5], axis=-1)
    return np.clip(colour, 0, 255).astype(np.uint8), label


def write_raw_dataset(folder, n_images, seed):
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index in range(n_images):
        image, label = shapes(1000 * seed + index)
        image_io.imsave(folder / f"imagesTr/case_{index:03d}_0000.png", image, check_contrast=False)
        image_io.imsave(folder / f"labelsTr/case_{index:03d}.png", label, check_contrast=False)
    labels = {"background": 0, "polyp": 1, "wall": 2}
    write_json(folder / "dataset.json", {"labels": labels, "file_ending": ".png", "channel_names": {"0": "R"}})


def write_manifest(path, stage, site, seconds, minute):
    run = {"seconds": seconds, "host": "node1", "finished": f"2026-11-21T10:{minute:02d}:00+00:00", "device": "cuda:0"}
    run["versions"] = {"torch": "2.15.0", "nnunetv2": "2.8.1"}
    write_json(path, {"stage": stage, "site": site, "digest": "d", "seed": 7, "settings": {}, "files": {}, "run": run})


def write_curves(path, unit, keys, n_points=30):
    lines = []
    for step in range(n_points):
        numbers = {key: float(np.exp(-step / 9) + 0.1 * index) for index, key in enumerate(keys)}
        lines.append(json.dumps({"step": step, "unit": unit} | numbers))
    write_text(path, "\n".join(lines) + '\n{"step": 30, "un')  # a run killed while writing its last line


def write_site(fold_folder, site, seed):
    for minute, (stage, seconds) in enumerate(STAGES):
        write_manifest(fold_folder / stage / site / "manifest.json", stage, site, seconds * (1 + seed / 7), minute)
    write_raw_dataset(fold_folder / "prepare" / site / "raw" / f"Dataset00{seed}_{site}", 10, seed)
    write_curves(fold_folder / "generator" / site / "curves.jsonl", "kimg", ("loss_g", "loss_d"))
    for stage in ("segment_real", "finetune"):
        keys = ("train_loss", "val_loss", "pseudo_dice", "learning_rate")
        write_curves(fold_folder / stage / site / "curves.jsonl", "epoch", keys)
    alarm = {"step": 3.25, "unit": "kimg", "message": "it diverged at step 12", "back_to": 2.5, "curve": []}
    write_text(fold_folder / "generator" / site / "alarms.jsonl", json.dumps(alarm) + "\n")
    image_io.imsave(fold_folder / "generator" / site / "sample_sheet.png", shapes(seed, 128)[0], check_contrast=False)
    share = fold_folder / "share" / site
    write_raw_dataset(share, 12, seed + 50)
    generator = {"name": "gan", "kimg": 40}
    package = {"n_images": 12, "files": {"imagesTr/x.png": "0" * 64}, "generator": generator, "stage": "no stage"}
    write_json(share / "manifest.json", package)
    write_json(share / "privacy.json", {"filter_rate": 0.0123456, "planted_copy_recall": 1.0})
    write_text(share / "CARD.md", f"# Card of {site}\n\nSynthetic & <unverified>.\n")
    write_manifest(fold_folder / "share" / f"{site}.stage.json", "share", site, 12.0, 40)
    filtered = fold_folder / "filter" / site
    counts = {"n_sampled": 100, "n_kept": 97, "n_dropped": 3, "threshold_l2": 0.0183333, "embedder": "efficientnet"}
    write_json(filtered / "filter.json", counts)
    for name in ("histogram.png", "nearest_pairs.png"):
        image_io.imsave(filtered / name, np.hstack([shapes(seed + i, 96)[0] for i in range(6)]), check_contrast=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs") / "polyp<b>000", n_folds=3)


def build_run(run, n_folds):
    for fold in range(n_folds):
        folder = run / f"fold_{fold}"
        write_results(folder / "results.csv", result_rows(fold))
        write_json(folder / "run.json", {"command": "python run_nnunet.py --config-name=polyp_000", "seed": 71173})
        for index, site in enumerate(SITES if fold == 0 else ()):
            write_site(folder, site, index)
    write_manifest(run / "fold_0" / "evaluate" / "real-A" / "B" / "manifest.json", "evaluate", "B", 55.0, 50)
    return run


@pytest.fixture(scope="module")
def report_text(run):
    return write_report(run).read_text(encoding="utf-8")


def section(text, anchor):
    return re.search(rf'<section id="{anchor}">(.*?)</section>', text, re.DOTALL).group(1)


def test_report_is_one_file_that_loads_nothing(report_text):
    assert "http://" not in report_text and "https://" not in report_text
    assert "<script" not in report_text and "<link" not in report_text and "url(" not in report_text
    sources = re.findall(r'src="([^"]{0,30})', report_text)
    assert len(sources) >= 12 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_report_holds_every_section_and_says_what_it_is(report_text):
    """D42: the original kept no aggregation, no tables, no pictures and no cost of a run."""
    assert "contains images of real patients" in report_text and "could not be built" not in report_text
    expected = {
        "answer": ("real-A", "syn-real-B", "Site A:", "corrected 95 % interval", "evaluation.real_long=true"),
        "results": ("HD95", "NSD", "IoU", "Label polyp", "Label wall"),
        "images": ("Site A", "Site B", "samples of the generator"),
        "filter": ("threshold l2", "0.01833", "97"),
        "shared": ("94", "kB", "planted copy recall", "Card of site A"),
        "curves": ("Generator", "No curves yet."),
        "time": ("segment_real", "evaluate", "cuda:0", "node1"),
        "run": ("--config-name=polyp_000", "version of nnunetv2", "71173"),
    }
    for anchor, words in expected.items():
        assert f'href="#{anchor}"' in report_text
        missing = [word for word in words if word not in section(report_text, anchor)]
        assert not missing, (anchor, missing)
    # the package's manifest is not a stage's; share's own stands beside its folder
    assert "no stage" not in section(report_text, "time") and "share" in section(report_text, "time")


def test_first_section_gives_the_gain_of_each_site_from_the_results(run, report_text):
    results = pd.concat([pd.read_csv(run / f"fold_{fold}" / "results.csv") for fold in range(3)])
    own = results[results["tested_on"] == "A"]
    wide = own.pivot(index="case", columns=["model", "label"], values="dice")
    points = 100 * (wide["syn-real-A"] - wide["real-A"]).mean().mean()
    assert f"Dice by {points:+.1f} points on its own test images" in section(report_text, "answer")


def test_names_from_the_run_are_escaped(report_text):
    assert "polyp&lt;b&gt;000" in report_text and "<b>" not in report_text
    assert "Synthetic &amp; &lt;unverified&gt;" in report_text


def test_report_of_a_run_stopped_half_way_says_what_is_missing(tmp_path):
    (tmp_path / "fold_0" / "filter" / "A").mkdir(parents=True)
    write_text(tmp_path / "fold_0" / "filter" / "A" / "filter.json", "{broken")
    images = np.zeros((3, 1, 8, 8), np.uint8)
    save_image_set(tmp_path / "fold_0" / "slices" / "A", ImageSet(images, tuple(ImageEntry(str(i)) for i in range(3))))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "could not be built" not in text and not (tmp_path / "summary.csv").exists()
    assert "No results yet" in section(text, "answer") and "The filter has not run yet" in section(text, "filter")
    assert "Nothing has been shared yet" in section(text, "shared")
    assert "No stage has finished yet" in section(text, "time")
    assert "Only one of real and synthetic" in section(text, "images")


def test_a_section_that_cannot_be_built_leaves_the_others(tmp_path):
    build_run(tmp_path, n_folds=1)
    write_text(tmp_path / "fold_0" / "share" / "A" / "imagesTr" / "case_000_0000.png", "not a png")
    text = write_report(tmp_path, folds=[0], out=tmp_path / "fold_0").read_text(encoding="utf-8")
    assert "could not be built" in section(text, "images") and "too few patients" in section(text, "answer")
    assert (tmp_path / "fold_0" / "summary.csv").is_file()


def test_volumes_are_shown_in_their_middle_slice_with_their_aspect(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    from evaluation.report.pictures import load_shown_cases

    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    volume = np.zeros((6, 9, 5), np.float32)  # x, y, z with 1 x 2 x 4 mm
    volume[:, :, 2] = np.arange(54).reshape(6, 9)
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "imagesTr" / "c_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image((volume > 30).astype(np.uint8), affine), tmp_path / "labelsTr" / "c.nii.gz")
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"})
    (case,) = load_shown_cases(tmp_path)
    assert case.image.shape == (9, 6) and case.aspect == pytest.approx(2.0)
    np.testing.assert_array_equal(case.label_map, (volume[:, :, 2] > 30).T)


def test_the_command_writes_the_report_and_refuses_a_folder_that_is_no_run(tmp_path, capsys):
    write_results(tmp_path / "fold_0" / "results.csv", result_rows(0))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert main([str(tmp_path / "absent")]) == 2
    assert "has no fold_<k> in it" in capsys.readouterr().err
    with pytest.raises(InputError, match="runs/<exp_name>"):
        write_report(tmp_path / "absent")


class Experiment:
    """As ``run.json`` names it: a report of two sections, of which one is its own."""

    report_sections = (sections.TIME, sections.Section("own", "Its <own>", lambda files: f"{len(files.folds)} & fold"))


def test_the_sections_are_those_of_the_experiment_that_the_run_names(tmp_path, capsys):
    write_json(tmp_path / "fold_0" / "run.json", {"experiment": f"{__name__}:Experiment"})
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall('<section id="(.*?)"', text) == ["time", "own"] and "Its &lt;own&gt;" in text
    assert "1 &amp; fold" in section(text, "own")  # what is not marked as HTML is text
    for name in ("no_such_package.experiments:TRANSLATION", f"{__name__}:Absent", "nothing"):
        write_json(tmp_path / "fold_0" / "run.json", {"experiment": name})
        assert main([str(tmp_path)]) == 2
        assert f"the experiment {name} cannot be imported" in capsys.readouterr().err


def test_alarms_stand_under_the_curves(report_text):
    assert "Alarm at site A, fold 0, 3.25 kimg: it diverged at step 12" in section(report_text, "curves")


def test_the_gauges_distances_are_drawn_against_kimg_each_once(monkeypatch):
    """Scores stand in lines of their own, less often than losses; an error is a band around its score."""
    from evaluation.report import pictures as report_pictures

    figures = []
    monkeypatch.setattr(report_pictures, "to_png", lambda figure: figures.append(figure) or b"")
    losses = [{"step": step / 10, "unit": "kimg", "loss_g": 1.0, "loss_d": 0.5} for step in range(1, 11)]
    scores = {"kernel_heldout": 0.3, "kernel_heldout_error": 0.1, "frechet_heldout": 9.0, "nearest_train": 0.9}
    gauged = [{"step": kimg, "unit": "kimg", **scores} for kimg in (0.5, 1.0)]
    assert report_pictures.curves_figure({"A": [[*losses, *gauged]], "B": [losses]}) == b""
    panels = {axes.get_title().partition("\n")[0]: axes for axes in figures[0].axes if axes.get_title()}
    titles = ("kernel distance to held-out patients", "Fréchet distance to held-out patients")
    assert list(panels) == ["loss_g", "loss_d", *titles, "distance to the nearest training image"]
    kernel = panels[titles[0]]
    assert kernel.lines[0].get_xydata().tolist() == [[0.5, 0.3], [1.0, 0.3]] and len(kernel.collections) == 1
    assert kernel.get_xlabel() == "kimg"


COUNTS = (
    *("n_train_images", "n_train_patients", "n_heldout_images", "n_heldout_patients"),
    *("n_sampled", "n_dropped", "n_kept", "n_audited"),
)


def write_audit(folder, n_found):
    """Of a site whose filter found ``n_found`` of two mirrored copies and the exact one."""
    kinds = [
        {"kind": kind, "group": group, "n": n, "found": found, "recall": found / n, "interval": [0.1, 1.0]}
        for kind, group, n, found in (("identity", "exact", 1, 1), ("mirror", "symmetry", 2, n_found))
    ]
    totals = {"n": 3, "found": 1 + n_found, "interval": [0.2, 1.0], "mean_recall": (1 + n_found / 2) / 2}
    honest = {"n": 9, "dropped": 1, "interval": [0.0, 0.5], "judged": "images of held-out patients"}
    planted = {"rule": "fused", "level": 0.05, "kinds": kinds, "strengths": [], **totals, "honest": honest}
    write_json(folder / "planted.json", planted)
    image_io.imsave(folder / "planted.png", shapes(1)[0], check_contrast=False)
    gate = {"name": "planted-copy recall", "value": totals["mean_recall"], "unit": "share of copies"}
    gate |= {"comparison": ">=", "limit": 0.9, "decision": "passed" if n_found == 2 else "failed"}
    gate |= {"reason": "2 of 3 planted copies found", "what_would_help": "the fused rule", "level": None, "p": None}
    passed = n_found == 2
    verdict = {"verdict": "passed" if passed else "refused", "familywise_level": 0.05, "figures": []}
    counts = dict.fromkeys(COUNTS, 5)
    write_json(folder / "audit.json", counts | verdict | {"gates": [gate]})


def test_planted_copies_stand_in_a_table_with_a_column_a_site_and_a_missed_kind_in_red(tmp_path):
    for site, n_found in (("A", 2), ("B", 1)):
        write_audit(tmp_path / "fold_0" / "audit" / site, n_found)
    text = section(write_report(tmp_path).read_text(encoding="utf-8"), "privacy")
    assert "could not be built" not in text
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", text, re.DOTALL)
    assert 'mirror</td><td>2 of 2</td><td><span class="failed">1 of 2</span>' in rows
    assert "mean over kinds</td><td>1.000</td><td>0.750" in rows
    assert next(row for row in rows if row.startswith("honest images dropped")).count("1 of 9") == 2
    assert text.count("data:image/png;base64") == 2  # every strength, a picture a site
    assert "planted-copy recall: 2 of 3 planted copies found (what would help" in text  # why B shares nothing


def test_a_gate_that_is_not_measurable_is_named_and_nowhere_passed(tmp_path):
    """It read "passed: true" with no value, and the report said that every gate had passed."""
    folder = tmp_path / "fold_0" / "audit" / "A"
    write_audit(folder, n_found=2)
    audit = json.loads((folder / "audit.json").read_text())
    unmeasured = {"name": "C_T", "unit": "standard errors", "value": None, "comparison": ">=", "limit": -3.0, "p": None}
    unmeasured |= {"decision": "not measurable", "level": None, "reason": "few patients", "what_would_help": "more"}
    write_json(folder / "audit.json", audit | {"gates": [*audit["gates"], unmeasured]})
    text = section(write_report(tmp_path).read_text(encoding="utf-8"), "privacy")
    assert "Every gate that could be measured passed" in text and "Every gate passed" not in text
    assert "nothing is known of what they look for: C_T: few patients (what would help: more)" in text
    assert "&gt;= -3" in text and "standard errors" in text


def test_an_audit_of_an_earlier_release_is_named(tmp_path):
    folder = tmp_path / "fold_0" / "audit" / "A"
    write_audit(folder, n_found=2)
    audit = json.loads((folder / "audit.json").read_text())
    write_json(folder / "audit.json", audit | {"gates": [{"name": "C_T", "value": None, "passed": True}]})
    text = section(write_report(tmp_path).read_text(encoding="utf-8"), "privacy")
    assert "Site A, fold 0: this audit was written by an earlier release" in text


def test_a_field_of_the_filter_that_applies_to_no_site_is_left_out(tmp_path):
    """The fused rule has no threshold."""
    for site in SITES:
        figures = {"n_sampled": 9, "rule": "fused", "threshold_l2": None}
        write_json(tmp_path / "fold_0" / "filter" / site / "filter.json", figures)
    shown = section(write_report(tmp_path).read_text(encoding="utf-8"), "filter")
    assert "rule" in shown and "threshold" not in shown and "None" not in shown
    write_json(tmp_path / "fold_0" / "filter" / "A" / "filter.json", figures | {"threshold_l2": 0.02})
    assert "threshold l2" in section(write_report(tmp_path).read_text(encoding="utf-8"), "filter")


def test_trainings_made_by_other_code_are_named(tmp_path):
    """They stay when only the program changed; the report must say so."""
    write_manifest(tmp_path / "fold_0/generator/A/manifest.json", "generator", "A", 1.0, 0)
    page = write_report(tmp_path).read_text()
    assert "other code" not in page
    changes = {"fold_0/generator/A": "made by other code: gan.train_step:TrainStep changed"}
    write_json(tmp_path / "fold_0" / "other_code.json", changes)
    page = write_report(tmp_path).read_text()
    assert "Trainings made by other code" in page and "gan.train_step:TrainStep changed" in page


def test_nothing_is_gained_by_sharing_where_nobody_shares(tmp_path):
    """A lone site, or one whose partners' packages were all refused, learns what its own synthetic images did."""
    alone = [row for row in result_rows(0) if row["model"] != "real-B" and row["tested_on"] == "A"]
    write_results(tmp_path / "alone" / "fold_0" / "results.csv", [row for row in alone if row["trained_on"] != "B"])
    shared = section(write_report(tmp_path / "alone").read_text(encoding="utf-8"), "answer")
    assert (
        "pretraining on synthetic images of its own patients changed Dice" in shared and "sharing changed" not in shared
    )
    refused = build_run(tmp_path / "refused", n_folds=1)
    (refused / "fold_0" / "share" / "B" / "manifest.json").unlink()
    text = section(write_report(refused).read_text(encoding="utf-8"), "answer")
    of_a, of_b = (part.split("</li>")[0] for part in text.split("<strong>Site ")[1:3])
    assert "own patients changed" in of_a and "sharing changed" in of_b


def test_a_site_that_took_no_part_has_its_own_phrase_and_a_failed_training_is_named(tmp_path):
    rows = [row for fold in range(3) for row in result_rows(fold)]
    unseen = [row | {"tested_on": "C"} for row in rows if row["tested_on"] == "B"]
    write_results(tmp_path / "fold_0" / "results.csv", [row | {"fold": 0} for row in (*rows, *unseen)])
    faults = "model,trained_on,fold,seed,n_epochs,validation_dice,fault\n"
    write_text(tmp_path / "fold_0" / "networks.csv", faults + "real-B,B,0,0,30,0.0,never found a label\n")
    text = section(write_report(tmp_path).read_text(encoding="utf-8"), "answer")
    assert "points on images of sites that took no part" in text
    assert "real-B, fold 0, seed 0: it never found a label." in text
    assert "no verdict, as the training of real-B (fold 0) never found a label" in text
