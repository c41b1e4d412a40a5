"""The card of a package: it says what the package is to a data protection officer and to a researcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.markdown import markdown_table
from common.settings import from_dict
from memorization.gates import KINDS, PASSED, is_beyond
from sharing.schema import Manifest
from sharing.shared_audit import NOTHING_KNOWN, SharedAudit, SharedGate, SharedPlanted, statements

BY_CHANCE = "passed, as chance explains the value"
GATE_COLUMNS = ("gate", "value", "unit", "limit", "p", "fails at p", "decision")
CARD = """# Synthetic images of site {site}

{n_images} synthetic images in {n_cases} cases, made by a generator ({generator}) that was trained on the images of
site {site} and labelled by {labelled_by}. No file in this folder is an image of a
patient, and none carries metadata of one.

| | |
| --- | --- |
| channels | {channels} |
| labels | {labels} |
| file ending | {ending} |
| spacing (through-plane, row, column) | {spacing} |
| intensities | {intensity_space} |
| written by | {written_by} |

## How to use it

The folder is an nnU-Net raw dataset: put it under `nnUNet_raw` as `DatasetXXX_Name`, then
`nnUNetv2_plan_and_preprocess -d XXX`. The labels are predictions of a network, not of a person.

## What was done against copies of patients

{rule}

| | |
| --- | --- |
| generated | {n_sampled} |
| dropped | {n_dropped} |
| kept | {n_kept} |
| threshold (squared distance of unit vectors) | {threshold} |

{planted}

## Why it was allowed to leave

{statements}

{n_audited} of the kept images were compared with the images trained on and with those of patients the generator never
saw. A gate with a level fails where its value does not keep its limit and a random exchange of these two groups of
patients gives a value as bad with a probability p of at most its level. The other gates fail where their value does not
keep their limit; of the planted copies, where chance does not explain it. A gate that was not measurable has neither
passed nor failed: {nothing_known}.

{gates}

Filter and gates are evidence, not a guarantee: a copy that the features do not recognise would pass. {guarantee}
"""
FUSED = """Every generated image was laid over every training image of the site, shifted, turned, mirrored and
scaled, to see whether it repeats the image or a part of it, and compared with it by {embedder} features. It was dropped
where it was more similar to a training image than {kept_percent:g} % of the real images are to any image of another
patient; at a site of few images, where it was more similar than all of them."""
PERCENTILE = """Every generated image was compared with every training image of the site ({embedder} features, mirrored
images included where the generator saw them). It was dropped where it was closer to a training image than
{kept_percent:g} % of the real images are to any image of another patient."""
PLANTED = """It was measured whether this filter finds copies: the site planted {n} copies of its own training images,
changed in many ways (compressed, blurred, turned, mirrored, cut, mixed with others), and the filter found {found} of
them ({recall:.1%} as the mean over the kinds of change). {honest}"""
HONEST = """Of the site's real images, each compared with other patients' alone, it
dropped {share:.0%}; how many these were is not told."""
NO_HONEST = "The site had no real images of other patients, so it could not measure how many of them the filter drops."
NOT_PLANTED = "Whether this filter finds copies was **not measured**: the site planted none."
NETWORK = "a segmentation network that was trained there"
NETWORK_OR_GENERATOR = f"{NETWORK}, or by the generator itself"
WITHOUT_PRIVACY = "The generator was trained without differential privacy."
EXTERNAL = "The generator is not part of autoshare, which promises no differential privacy of its training."
WITH_PRIVACY = """

The generator's weights were trained with differential privacy: epsilon {epsilon:g}, delta {delta}, for {unit}
This covers the generated images before the filter. It does not cover the labels, which come from a network trained
without it, nor the plan and the intensity window, nor how many images and patients the site has, nor which images the
filter kept and its figures."""
UNIT_IMAGE = """one image added
or removed. A patient with several images is protected less: at the same delta, k images together may have more than k
times this epsilon. The site's own card of the training states the figure."""
UNIT_PATIENT = """one patient
added or removed with all images."""
AUTO_DELTA = "a tenth of one over the number of training {unit}s"


def render_card(manifest: Manifest, figures: Mapping[str, Any]) -> str:
    """``CARD.md`` from the manifest and the figures of ``privacy.json``."""
    audit = from_dict(SharedAudit, figures["audit"])
    return CARD.format(
        site=manifest.site,
        n_images=manifest.n_images,
        n_cases=manifest.n_cases,
        generator=manifest.generator["name"],
        labelled_by=_labelled_by(manifest.generator),
        channels=", ".join(manifest.channel_names),
        labels=", ".join(f"{name} = {value}" for name, value in sorted(manifest.labels.items())),
        ending=manifest.file_ending,
        spacing=" x ".join(f"{value:g}" for value in manifest.spacing_mm),
        intensity_space={"source": "units of the source files", "normalised": "normalised by the site's plan"}[
            manifest.intensity_space
        ],
        written_by=manifest.written_by,
        guarantee=_guarantee(manifest.generator),
        planted=_planted(audit.planted),
        n_audited=audit.n_audited,
        statements=" ".join(f"**{said}**" for said in statements(audit)),
        nothing_known=NOTHING_KNOWN,
        gates=gate_table(audit.gates),
        rule={"fused": FUSED, "percentile": PERCENTILE}[figures["rule"]].format(
            embedder=figures["embedder"], kept_percent=100 - figures["percentile"]
        ),
        threshold="none" if figures["threshold_l2"] is None else f"{figures['threshold_l2']:.6g}",
        **{key: figures[key] for key in ("n_sampled", "n_dropped", "n_kept")},
    )


def _planted(planted: SharedPlanted | None) -> str:
    if planted is None:
        return NOT_PLANTED
    share = planted.honest_dropped_share
    honest = NO_HONEST if share is None else HONEST.format(share=share)
    return PLANTED.format(n=planted.n, found=planted.found, recall=planted.mean_recall, honest=honest)


def gate_table(gates: Sequence[SharedGate]) -> str:
    """A Markdown table, one row a gate; every figure with its unit, every limit with its direction."""
    return "\n".join(markdown_table(GATE_COLUMNS, [gate_row(gate) for gate in gates]))


def gate_row(gate: SharedGate) -> tuple[str, ...]:
    """The cells of one gate, in the order of ``GATE_COLUMNS``."""
    decision = f"**{gate.decision}**" if gate.decision != PASSED else gate.decision
    if gate.decision == PASSED and gate.value is not None and is_beyond(KINDS[gate.name], gate.value, gate.limit):
        decision = BY_CHANCE
    limit, level = f"{gate.comparison} {gate.limit:g}", "" if gate.level is None else f"<= {gate.level:.2g}"
    return gate.name, _shown(gate.value), gate.unit, limit, _shown(gate.p), level, decision


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _labelled_by(generator: Mapping[str, Any]) -> str:
    """Of an external generator the receiver does not know whether it makes labels."""
    makes_labels = "external" in generator or generator.get("config", {}).get("with_labels")
    return NETWORK_OR_GENERATOR if makes_labels else NETWORK


def _guarantee(generator: Mapping[str, Any]) -> str:
    """What the generator's settings, as its training resolved them, say of differential privacy."""
    asked = None if "external" in generator else generator.get("config", {}).get("privacy")
    if asked is None:
        return EXTERNAL if "external" in generator else WITHOUT_PRIVACY
    unit, text = ("patient", UNIT_PATIENT) if asked.get("unit") == "patient" else ("image", UNIT_IMAGE)
    delta = AUTO_DELTA.format(unit=unit) if asked["delta"] == "auto" else f"{asked['delta']:g}"
    return WITH_PRIVACY.format(epsilon=asked["epsilon"], delta=delta, unit=text)
