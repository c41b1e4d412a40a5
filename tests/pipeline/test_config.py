"""Every experiment composes and passes the typed schema; unknown keys and wrong types do not."""

import dataclasses
import logging

import pytest
import yaml
from support.paths import REPOSITORY
from support.tiny_experiment import composed

import pipeline.entry  # noqa: F401  (stores the schema that the experiments start from)
from common.errors import InputError
from diffusion.settings import AutoencoderConfig, DiffusionConfig
from gan.settings import GanConfig
from memorization.calibration import MemorizationConfig
from memorization.gates import GatesConfig
from pipeline.config import ClusterConfig, DataConfig, GeneratorConfig
from pipeline.launch import launch

CONFIG = REPOSITORY / "config"
COMMANDS = {"nnunet": "run_nnunet.py", "federated": "run_federated.py", "scaling": "run_scaling.py"}
EXPERIMENTS = sorted(
    f"{folder}/{path.stem}" for folder in COMMANDS for path in (CONFIG / folder).glob("*.yaml") if path.stem != "base"
)
MIRRORED = {
    "data": DataConfig,
    "generator": GeneratorConfig,
    "memorization": MemorizationConfig,
    "gates": GatesConfig,
    "cluster": ClusterConfig,
}
GROUP_FILES = sorted(path for group in MIRRORED for path in (CONFIG / group).glob("*.yaml"))


def test_the_experiments_of_the_release_are_all_there():
    main = {f"nnunet/{name}" for name in ("demo", "folder", "cxr_hannover", "qata_000", "polyp_000", "cervix_000")}
    federated = {f"federated/{name}" for name in ("demo", "cxr_hannover", "qata_00", "polyp_00", "cervix_00")}
    assert main | federated | {"scaling/demo", "scaling/qata_001"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment):
    assert composed(experiment).general.exp_name.startswith(experiment.split("/")[1])


def test_every_experiment_has_its_own_folder_under_runs():
    """What one did must not be taken for what another did."""
    names = [composed(experiment).general.exp_name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_how_on_what_and_with_which_result(experiment):
    folder, name = experiment.split("/")
    lines = (CONFIG / folder / f"{name}.yaml").read_text().splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    for field in ("# Command:", "# Hardware:", "# Expected:"):
        assert any(line.startswith(field) for line in header), f"{experiment}: no {field}"
    assert any(f"{COMMANDS[folder]} --config-name={name}" in line for line in header)


@pytest.mark.parametrize(
    "group", ["generator=stylegan2_small", "memorization=paper", "gates=paper", "cluster=inline", "cluster=pinned"]
)
def test_groups_can_be_chosen_on_the_command_line(group):
    name, value = group.split("=")
    assert composed("qata_000", group) != composed("qata_000"), f"{name}={value} changes nothing"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("++train.nnunet_epoch=3", "'train.nnunet_epochs'"),
        ("++train.gan.kimgs=3", "'train.gan.kimg'"),
        ("++memorization.percentle=3", "'memorization.percentile'"),
        ("++cluster.pin_site=true", "'cluster.pin_sites'"),
        ("++dat.fold=1", "'data'"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_one(override, named):
    with pytest.raises(InputError, match="unknown key") as refused:
        composed("demo", override)
    assert named in str(refused.value)
    assert "way out" in str(refused.value)


def test_unknown_generator_setting_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(InputError, match="batch_size"):
        launch(composed("qata_000", "++generator.settings.batch_sise=4", "dry_run=true", f"path.logs={tmp_path}"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("++train.nnunet_epochs=many", "train.nnunet_epochs"),
        ("++train.nnunet_epochs=1.5", "train.nnunet_epochs"),
        ("++train.nnunet_epochs=0", "train.nnunet_epochs"),
        ("++train.gan.kimg=-1", "train.gan.kimg"),
        ("++train.gan.kimg=long", "train.gan.kimg"),
        ("++data.fold=5", "data.fold"),
        ("++data.fold=some", "data.fold"),
        ("++data.labels=lung", "data.labels"),
        ("++cluster.pin_sites=1", "cluster.pin_sites"),
        ("++memorization.percentile=101", "memorization.percentile"),
        ("++merge.plan_from=real", "merge.plan_from"),
        ("++generate.n_images=[1,2]", "generate.n_images"),
    ],
)
def test_wrong_type_or_value_is_refused_by_its_key(override, key):
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        composed("demo", override)


def test_mirrored_images_are_the_datasets_decision():
    """D35: the original mirrored every dataset. A dataset that does not say counts as one where sides differ."""
    mirrored = "generator.settings.mirror=true"
    for experiment in ("qata_000", "folder"):
        with pytest.raises(InputError, match=r"data\.laterality_matters=false"):
            composed(experiment, mirrored)
        assert composed(experiment, mirrored, "data.laterality_matters=false").generator.settings["mirror"]
    assert composed("polyp_000", mirrored).generator.settings["mirror"]
    assert not any(composed(name).generator.settings["mirror"] for name in ("polyp_000", "qata_000"))


ORIGINALS_KEYS = {
    "path.data=/data": lambda c: c.path.data == "/data",
    "path.logs=/logs": lambda c: c.path.logs == "/logs",
    "general.exp_name=mine": lambda c: c.general.exp_name == "mine",
    "general.seed_base=7": lambda c: c.general.seed_base == 7,
    "general.ray_address=auto": lambda c: c.general.ray_address == "auto",
    "data.fold=3": lambda c: c.folds == (3,),
    "data.base_dataset=polyp": lambda c: c.source.root == str(c.data_dir / "polyp"),
    "data.dataset_descriptor=colon": lambda c: c.data.dataset_descriptor == "colon",
    "data.original_data_was_png=true": lambda c: c.data.original_data_was_png is True,
    "train.gan.kimg=12": lambda c: c.train.gan.kimg == 12,
    "train.nnunet_epochs=9": lambda c: c.train.segmentation().n_epochs == c.train.fine_tuning().n_epochs == 9,
    "train.nnunet_schedule_finetune=poly": lambda c: c.train.fine_tuning().schedule == "poly",
    "generate.n_images=500": lambda c: c.generate.n_images == 500,
    "skip.syn.A.gan=true": lambda c: c.skip == {"syn": {"A": {"gan": True}}},
}


@pytest.mark.parametrize("override", ORIGINALS_KEYS)
def test_keys_of_the_original_stay_valid(override):
    """As its users type them, with ``++``."""
    assert ORIGINALS_KEYS[override](composed("qata_000", f"++{override}"))


def test_all_folds_are_one_graph():
    assert composed("demo", "data.fold=all").folds == (0, 1, 2, 3, 4)


PAPER = {
    "nnunet/qata_000": ("site A: about 2523 kimg, about 25230 images", "60 stages, 60 to do"),
    "nnunet/polyp_000": ("site B: about 490 kimg, about 4900 images", "60 stages, 60 to do"),
    "nnunet/cervix_000": ("site A: about 3600 kimg, about 36000 images", "60 stages, 60 to do"),
    "federated/qata_00": ("fedavg: 1000 rounds, each 1 x 250 iterations a site", "23 stages, 23 to do"),
    "federated/polyp_00": ("fedavg: 1000 rounds, each 1 x 250 iterations a site", "23 stages, 23 to do"),
    "federated/cervix_00": ("fedavg: 1000 rounds, each 1 x 250 iterations a site", "23 stages, 23 to do"),
    "scaling/qata_001": ("2: A B; 4: A B C D; all: A B C D E F G H", "546 stages, 546 to do"),
}


@pytest.mark.parametrize("experiment", PAPER)
def test_the_papers_experiments_dry_run_without_data(experiment, tmp_path, caplog):
    """Stages, epochs, kimg and images, from the published counts."""
    caplog.set_level(logging.INFO)
    overrides = ("dry_run=true", f"path.logs={tmp_path / 'runs'}", f"path.data={tmp_path / 'none'}")
    assert launch(composed(experiment, *overrides)) == 0
    for shown in ("nnU-Net     1000 epochs x 250 iterations", *PAPER[experiment]):
        assert shown in caplog.text
    assert not (tmp_path / "runs").exists()  # a dry run writes nothing


def test_a_dry_run_with_data_counts_the_images_that_each_site_will_train_on(tmp_path, caplog):
    """20 patients a site with one image each: 12 train, 4 validate."""
    caplog.set_level(logging.INFO)
    phantom = ("++data.phantom.images_per_patient=[1,1]", "train.gan.kimg=auto", "generate.n_images=auto")
    folders = ("dry_run=true", f"path.logs={tmp_path / 'runs'}", f"path.data={tmp_path}")
    assert launch(composed("nnunet/demo", *phantom, *folders)) == 0
    assert "site B: 12 kimg, 120 images" in caplog.text


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_group_files_hold_fields_of_their_dataclass_alone(path):
    keys = set(yaml.safe_load(path.read_text())) - {"defaults"}
    assert keys <= {field.name for field in dataclasses.fields(MIRRORED[path.parent.name])}


def test_the_default_generators_yaml_is_the_dataclass_one_to_one():
    """What a reader sees in the file is what runs, and no setting hides from him."""
    values = yaml.safe_load((CONFIG / "generator" / "stylegan2.yaml").read_text())
    assert values["settings"] == {**dataclasses.asdict(GanConfig()), "augment": list(GanConfig().augment)}
    assert values["train_on"] == GeneratorConfig().train_on


@pytest.mark.parametrize("name", ["ddpm", "ldm"])
def test_the_diffusion_models_yaml_is_the_dataclass_one_to_one(name):
    values = composed("demo", f"generator={name}").generator
    autoencoder = AutoencoderConfig() if name == "ldm" else None
    expected = dataclasses.asdict(DiffusionConfig(autoencoder, batch_size=4))  # the demo's
    assert values.name == name
    assert values.settings == {**expected, "augment": list(expected["augment"])}


def test_the_default_filters_yaml_states_the_dataclass_defaults():
    values = yaml.safe_load((CONFIG / "memorization" / "offline.yaml").read_text())
    assert values == {key: getattr(MemorizationConfig(), key) for key in values}


def test_the_gates_yaml_is_the_dataclass_one_to_one():
    """What a data protection officer reads there is what decides."""
    assert yaml.safe_load((CONFIG / "gates" / "default.yaml").read_text()) == dataclasses.asdict(GatesConfig())


def test_for_parity_with_the_paper_no_gate_refuses():
    gates = composed("qata_000", "memorization=paper", "gates=paper").gates
    assert not gates.enforce and gates.n_planted_copies == 0
    assert dataclasses.replace(gates, enforce=True, n_planted_copies=1) == GatesConfig()


@pytest.mark.parametrize(
    "override",
    [
        *("familywise_level=0", "familywise_level=.nan", "min_measured=7", "max_dropped_share=1.5", "min_c_t=.inf"),
        *("n_planted_copies=-1", "n_planted_copies=1001", "min_planted_recall=90"),
    ],
)
def test_limits_that_no_gate_can_have_are_refused(override):
    with pytest.raises(InputError, match=f"gates.{override.partition('=')[0]}"):
        composed("demo", f"gates.{override}")
