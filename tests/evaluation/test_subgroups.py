"""Results by subgroup: patients counted, the worst named, too few never scored."""

import csv
import math

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from common.files import write_json
from dataset.source import SourceConfig
from dataset.subgroups import read_subgroups
from evaluation.report.page import write_report
from evaluation.results import COLUMNS, write_results
from evaluation.subgroups import by_subgroup


def results(site="A", model="syn-real-A", n_patients=30):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n_patients):
        for image in range(2):
            dice = rng.uniform(0.6, 0.7) if number < 14 else rng.uniform(0.8, 0.9)
            named = {"model": model, "trained_on": "A", "tested_on": site, "fold": 0, "seed": 0, "label": "l"}
            named |= {"patient": f"p{number:03d}", "case": f"c{number:02d}_{image}"}
            rows.append(named | {"dice": dice, "iou": dice, "hd95": 3.0, "nsd": dice})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def scanner_of(number):
    return "old" if number < 14 else "rare" if number >= 27 else "new"


GROUPS = {"A": {f"c{n:02d}_{image}": {"scanner": scanner_of(n)} for n in range(30) for image in range(2)}}


def test_subgroups_count_patients_name_the_worst_and_keep_small_ones_quiet():
    found = {one.value: one for one in by_subgroup(results(), GROUPS)}
    assert {value: one.n_patients for value, one in found.items()} == {"new": 13, "old": 14, "rare": 3}
    assert found["old"].is_worst and not found["new"].is_worst
    assert 0.6 < found["old"].dice.low < found["old"].dice.mean < found["old"].dice.high < 0.7
    assert math.isnan(found["rare"].dice.mean) and "fewer than 5 patients" in found["rare"].dice.kind


def test_a_site_that_is_only_tested_has_subgroups_under_every_network():
    unseen = results(site="C")
    both = pd.concat([results(), unseen, unseen.assign(model="syn-real-B", trained_on="B")], ignore_index=True)
    found = by_subgroup(both, {"C": GROUPS["A"]})
    assert {(one.site, one.model) for one in found} == {("C", "syn-real-A"), ("C", "syn-real-B")}


def test_the_report_and_its_table_hold_no_score_of_fewer_than_five_patients(tmp_path):
    write_results(tmp_path / "fold_0" / "results.csv", results().to_dict("records"))
    write_json(tmp_path / "fold_0" / "subgroups" / "A" / "subgroups.json", GROUPS["A"])
    text = write_report(tmp_path).read_text()
    section = text.split('<section id="subgroups">')[1].split("</section>")[0]
    assert "old (the worst)" in section and "fewer than 5 patients" in section
    rows = list(csv.DictReader((tmp_path / "subgroups.csv").open()))
    assert [row["value"] for row in rows] == ["new", "old"]
    write_results(tmp_path / "none" / "fold_0" / "results.csv", results().to_dict("records"))
    assert 'id="subgroups"' not in write_report(tmp_path / "none").read_text()


def test_subgroups_are_read_from_the_sources_table_and_a_column_of_ages_is_refused(tmp_path):
    lines = [f"x{n}.png,p{n},A,{'F' if n % 2 else ''},{n}" for n in range(30)]
    (tmp_path / "metadata.csv").write_text("\n".join(["image,patient,site,sex,age", *lines]) + "\n")
    source = SourceConfig(root=str(tmp_path), patient_column="patient", site_column="site")
    found = read_subgroups(source, tmp_path, ["sex"])
    assert found["x1"] == {"sex": "F"} and found["x2"] == {"sex": "not known"} and len(found) == 30
    with pytest.raises(InputError, match="'age' has 30 values"):
        read_subgroups(source, tmp_path, ["age"])
    with pytest.raises(InputError, match="no column 'scanner'"):
        read_subgroups(source, tmp_path, ["scanner"])
