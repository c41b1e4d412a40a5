"""A training that failed is named: what its validation curve says, and the table of networks."""

import json

import numpy as np
import pytest

from common.errors import InputError
from evaluation.curves import describe_network, find_fault, read_networks

NAN = float("nan")


def curve(values, key="pseudo_dice", **by_label):
    return [
        {"step": step + 1, "unit": "epoch", key: float(value)}
        | ({"pseudo_dice_by_label": {name: dice[step] for name, dice in by_label.items()}} if by_label else {})
        for step, value in enumerate(values)
    ]


def rising(n_epochs, low, high, rate=6.0):
    return low + (high - low) * (1 - np.exp(-rate * np.arange(n_epochs) / n_epochs))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0] * 20, "never found a label"),
        ([NAN, 0.0, 0.004], "never found a label"),
        ([0.21, 0.22, 0.2, 0.21, 0.2, 0.23, 0.2, 0.21, 0.2, 0.2], "ended where it began"),
        (np.linspace(0, 0.6, 30), "was too short"),
    ],
)
def test_a_failed_training_is_named(values, words):
    """Seen: the network on pooled brain volumes stayed at 0 from its second epoch on, and nothing said so."""
    assert words in find_fault(curve(values)) and words in find_fault(curve(values, key="val_dice"))


@pytest.mark.parametrize(
    "values",
    [
        rising(30, 0.0, 0.9),
        rising(1000, 0.3, 0.8) + 0.02 * np.random.default_rng(0).normal(size=1000),
        [0.93] * 30,  # fine-tuned: it began where the pretraining ended
        rising(12, 0.85, 0.9),
        [0.1, 0.4, 0.6],  # too short to say more than that it found the label
        [NAN, NAN],  # no validation case holds a label
        [],
    ],
)
def test_a_sound_training_is_not(values):
    assert find_fault(curve(values)) == ""


def test_a_label_that_is_never_found_spoils_the_network_although_its_mean_rises():
    organ = rising(20, 0.1, 0.9)
    values = (organ + 0) / 2
    found = find_fault(curve(values, organ=organ, lesion=np.zeros(20)))
    assert found == "never found the label lesion: its validation Dice stayed at 0"
    assert find_fault(curve(organ, organ=organ, absent=np.full(20, NAN))) == ""


def test_the_table_of_networks_is_read_back_and_a_broken_one_is_refused(tmp_path):
    described = describe_network(curve(rising(10, 0.1, 0.9)))
    assert described["n_epochs"] == 10 and described["validation_dice"] == pytest.approx(0.9, abs=0.01)
    path = tmp_path / "networks.csv"
    path.write_text("model,trained_on,fold,seed,n_epochs,validation_dice,fault\nreal-NA,NA,0,0,10,,\n")
    (row,) = read_networks(path).to_dict("records")
    assert (row["model"], row["trained_on"], row["fault"]) == ("real-NA", "NA", "") and np.isnan(row["validation_dice"])
    path.write_text(json.dumps({"model": 1}))
    with pytest.raises(InputError, match="not a readable table of networks"):
        read_networks(path)
