"""The weighted mean of models: a mean whatever the order and the aliases, and whatever a site sends."""

from __future__ import annotations

import itertools
import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from common.checkpoints import save_tensors
from common.errors import InputError
from federated.average import average_updates
from federated.update import Layout, open_update, write_update


def average_tensors(models: list[dict], weights: list[float]) -> dict[str, torch.Tensor]:
    """The mean of models as the hub takes it: each a site's file, the result by name."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {str(site): Path(folder) / f"{site}.safetensors" for site in range(len(models))}
        for path, model in zip(paths.values(), models):
            write_update(path, model, {})
        layout = open_update(paths["0"]).layout
        average = average_updates(paths, {str(site): float(weight) for site, weight in enumerate(weights)}, layout)
    assert average.left_out == {}
    return layout.named(average.integers, average.floats)


FLOATS = hnp.arrays(np.float32, (4, 33), elements=st.floats(-1e6, 1e6, width=32))
COUNTS = st.lists(st.integers(1, 5000), min_size=4, max_size=4)


def unet(seed: int) -> nn.Module:
    """nnU-Net's 2D network at small width: its state dict lists most tensors under several keys."""
    torch.manual_seed(seed)
    return PlainConvUNet(
        1, 3, [4, 8, 8], nn.Conv2d, 3, [1, 2, 2], 2, 2, 2, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"affine": True}
    )


def original_average(models: list[dict]) -> dict:
    """What the original computed (D1): sums and divisions in place, key by key."""
    result = models[0]
    for other in models[1:]:
        for key in result:
            result[key] += other[key]
    for key in result:
        result[key] /= len(models)
    return result


def test_the_mean_is_taken_key_by_key_where_the_original_shrank_shared_tensors():
    """D1: in nnU-Net's state dicts encoder tensors stand four times, so the original gave (w_A + 4 w_B) / 16."""
    a, b = unet(1), unet(2)
    expected = {key: (a.state_dict()[key] + b.state_dict()[key]) / 2 for key in a.state_dict()}
    averaged = average_tensors([a.state_dict(), b.state_dict()], [1, 1])
    for key, value in expected.items():
        torch.testing.assert_close(averaged[key], value, rtol=1e-6, atol=1e-8)
    key = "encoder.stages.0.0.convs.0.conv.weight"
    expected_defect = (a.state_dict()[key] + 4 * b.state_dict()[key]) / 16
    with torch.no_grad():
        defective = original_average([dict(a.state_dict()), dict(b.state_dict())])
    torch.testing.assert_close(defective[key], expected_defect)
    assert (defective[key] - expected[key]).abs().max() > 0.01


def test_the_inputs_are_left_alone_and_the_result_shares_no_memory_with_them():
    a, b = unet(1).state_dict(), unet(2).state_dict()
    before = {key: value.clone() for key, value in a.items()}
    averaged = average_tensors([a, b], [1, 3])
    assert all(torch.equal(a[key], before[key]) for key in a)
    pointers = [value.data_ptr() for value in averaged.values()]
    assert len(set(pointers)) == len(pointers)
    assert not set(pointers) & {value.data_ptr() for value in (*a.values(), *b.values())}


@settings(max_examples=50, deadline=None)
@given(FLOATS, COUNTS)
def test_weights_are_proportional_to_cases_and_order_changes_no_bit(values, n_cases):
    models = [{"w": torch.from_numpy(row.copy())} for row in values]
    expected = (np.array(n_cases)[:, None] * values.astype(np.float64)).sum(axis=0) / sum(n_cases)
    averaged = average_tensors(models, n_cases)["w"]
    scale = np.abs(values).max() + 1e-30
    np.testing.assert_allclose(averaged.numpy(), expected, atol=4 * 2**-23 * scale)
    for order in itertools.permutations(range(4)):
        permuted = average_tensors([models[i] for i in order], [n_cases[i] for i in order])["w"]
        assert torch.equal(permuted, averaged)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, 50, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.lists(st.integers(1, 999), min_size=1, max_size=9),
)
def test_equal_models_average_to_themselves_to_the_bit(values, n_cases):
    models = [{"w": torch.from_numpy(values.copy())} for _ in n_cases]
    assert torch.equal(average_tensors(models, n_cases)["w"], torch.from_numpy(values))


def test_counters_are_not_averaged():
    """Integer buffers broke the original's division in place (D9); batch statistics are averaged like weights."""
    models = []
    for seed, n_batches in ((1, 7), (2, 4)):
        torch.manual_seed(seed)
        layer = nn.BatchNorm1d(3)
        layer.running_mean.normal_()
        layer.num_batches_tracked.fill_(n_batches)
        models.append(layer.state_dict())
    averaged = average_tensors(models, [1, 1])
    assert averaged["num_batches_tracked"].item() == 7
    assert averaged["num_batches_tracked"].dtype == torch.int64
    torch.testing.assert_close(averaged["running_mean"], (models[0]["running_mean"] + models[1]["running_mean"]) / 2)


@pytest.fixture
def updates(tmp_path):
    """Three sites' files, and what they hold."""
    tensors = {}
    for index, site in enumerate("ABC"):
        rng = torch.Generator().manual_seed(index)
        tensors[site] = {
            "conv.weight": torch.randn(3, 5, generator=rng),
            "conv.bias": torch.randn(3, generator=rng),
            "n": torch.tensor([index]),
        }
        write_update(tmp_path / f"{site}.safetensors", tensors[site], {"round": 1})
    return {site: tmp_path / f"{site}.safetensors" for site in tensors}, tensors


N_CASES = {"A": 10.0, "B": 30.0, "C": 20.0}


def layout_of(paths) -> Layout:
    return open_update(paths["A"]).layout


def test_files_average_to_what_their_tensors_do(updates):
    paths, tensors = updates
    result = average_updates(paths, N_CASES, layout_of(paths))
    expected = average_tensors(list(tensors.values()), list(N_CASES.values()))
    assert result.used == ("A", "B", "C")
    assert result.integers.tolist() == [2]
    flat = torch.cat([expected[name].flatten() for name, dtype, _ in layout_of(paths).entries if dtype == "F32"])
    torch.testing.assert_close(result.floats, flat, rtol=1e-6, atol=1e-7)


def test_what_the_sites_are_called_changes_no_bit(updates):
    paths, _ = updates
    reference = average_updates(paths, N_CASES, layout_of(paths)).floats
    for renamed in itertools.permutations("ABC"):
        names = dict(zip("ABC", renamed, strict=True))
        again = {names[site]: path for site, path in paths.items()}
        n_cases = {names[site]: n for site, n in N_CASES.items()}
        assert torch.equal(average_updates(again, n_cases, layout_of(paths)).floats, reference)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_site_that_sends_no_number_is_left_out_and_named(updates, value):
    paths, tensors = updates
    tensors["B"]["conv.bias"][1] = value
    write_update(paths["B"], tensors["B"], {})
    result = average_updates(paths, N_CASES, layout_of(paths))
    without = average_updates({site: paths[site] for site in "AC"}, N_CASES, layout_of(paths))
    assert result.left_out == {"B": "tensor 'conv.bias' holds NaN or infinity"}
    assert torch.equal(result.floats, without.floats)


def test_a_site_whose_numbers_overflow_is_left_out(updates):
    paths, tensors = updates
    tensors["B"]["conv.bias"][:] = 3e38
    tensors["A"]["conv.bias"][:] = -3e38
    for site in "AB":
        write_update(paths[site], tensors[site], {})
    result = average_updates(paths, N_CASES, layout_of(paths))
    assert bool(torch.isfinite(result.floats).all())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t | {"conv.weight": torch.zeros(5, 3)}, "tensor 'conv.weight' is F32 [5, 3], not F32 [3, 5]"),
        (lambda t: t | {"conv.weight": torch.zeros(3, 5, dtype=torch.float16)}, "is F16, not F32 or I64"),
        (lambda t: t | {"spy": torch.zeros(1)}, "tensor 'spy' is not expected"),
        (lambda t: {name: value for name, value in t.items() if name != "conv.bias"}, "tensor 'conv.bias' is missing"),
    ],
)
def test_a_site_that_sends_another_network_is_left_out_and_told_why(updates, change, reason):
    paths, tensors = updates
    expected = layout_of(paths)
    save_tensors(paths["C"], change(tensors["C"]), {})
    result = average_updates(paths, N_CASES, expected)
    assert result.used == ("A", "B")
    assert reason in result.left_out["C"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]", None],
    ids=["empty", "short", "absurd header", "not a table", "truncated"],
)
def test_a_broken_file_is_left_out(updates, content):
    paths, _ = updates
    expected = layout_of(paths)
    whole = paths["C"].read_bytes()
    paths["C"].write_bytes(whole[:-5] if content is None else content)
    assert "not a readable update" in average_updates(paths, N_CASES, expected).left_out["C"]


def test_overlapping_tensors_are_refused(updates, tmp_path):
    """A header may claim any offsets; two names for one region would smuggle an alias in."""
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(InputError, match="lies at"):
        open_update(tmp_path / "x.safetensors")


def test_no_usable_site_is_an_error_that_names_them_all(updates):
    paths, _ = updates
    expected = layout_of(paths)
    for path in paths.values():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"A: .*B: .*C: "):
        average_updates(paths, N_CASES, expected)
