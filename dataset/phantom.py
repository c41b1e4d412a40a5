"""The offline phantom: chest-X-ray-like images of two (or more) sites, drawn from a few anatomical curves.

A patient is a set of lengths and angles, an image of a patient is their anatomy in a slightly different pose, and a
site is an acquisition style (exposure, noise, sharpness, field of view, collimation, marker). The mask is the lungs
without the heart. Coordinates: ``u`` to the image's right (the patient's left), ``v`` downwards, about -1..1 across a
film.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.errors import InputError
from common.files import write_text
from common.seeds import derive_seed
from dataset.images import write_array

DRAWING_VERSION = 1  # part of the stored phantom's name: raise it when the drawing changes
_SUPERSAMPLING = 2
_MARKERS = {"L": ("1000", "1000", "1000", "1000", "1111"), "R": ("1110", "1001", "1110", "1010", "1001")}


@dataclass(frozen=True)
class PhantomConfig:
    """Size of the phantom; ``images_per_patient`` is an inclusive range."""

    n_sites: int = 2
    n_patients: int = 20  # a site
    images_per_patient: tuple[int, int] = (1, 2)
    size_px: int = 64
    seed: int = 0


def _drawn(distribution: str, *parameters: float) -> Any:
    """A field that ``_draw`` draws with this method of NumPy's generator."""
    return field(metadata={"distribution": distribution, "parameters": parameters})


@dataclass(frozen=True)
class Anatomy:
    """One patient: lengths in film half-widths, angles in radians. The fields are drawn in this order."""

    lung_half_width: float = _drawn("uniform", 0.64, 0.74)
    apex_v: float = _drawn("uniform", -0.80, -0.70)
    base_v: float = _drawn("uniform", 0.56, 0.74)
    dome: float = _drawn("uniform", 0.13, 0.22)
    liver_lift: float = _drawn("uniform", 0.03, 0.09)
    heart_radius: float = _drawn("uniform", 0.24, 0.34)
    heart_tilt: float = _drawn("uniform", 0.45, 0.85)
    heart_u: float = _drawn("uniform", 0.10, 0.17)
    shoulder_v: float = _drawn("uniform", -0.80, -0.70)
    body_half_width: float = _drawn("uniform", 0.84, 0.98)
    rib_slope: float = _drawn("uniform", 0.20, 0.40)
    rib_phase: float = _drawn("uniform", 0.0, 1.0)
    clavicle_slope: float = _drawn("uniform", -0.28, -0.05)
    tissue: float = _drawn("uniform", 0.85, 1.20)
    gas_bubble: float = _drawn("uniform", 0.0, 1.0)
    texture_seed: int = _drawn("integers", 2**31)


@dataclass(frozen=True)
class Pose:
    """One image of a patient: how they stand before the detector and how deeply they breathe in."""

    rotation_rad: float = _drawn("normal", 0.0, 0.025)
    zoom: float = _drawn("uniform", 0.97, 1.03)
    shift_u: float = _drawn("normal", 0.0, 0.02)
    shift_v: float = _drawn("normal", 0.0, 0.02)
    breath: float = _drawn("normal", 0.0, 0.02)
    noise_seed: int = _drawn("integers", 2**31)


@dataclass(frozen=True)
class SiteStyle:
    """How a site's images look: the domain shift."""

    field_of_view: float  # film half-widths shown
    gamma: float
    exposure: tuple[float, float]  # grey of air and of bone, 0..1
    blur: float  # Gaussian sigma in film half-widths
    noise: float  # standard deviation of the grey level at mid exposure, 0..1
    collimation: float  # share of the image, a side, that the collimator covers
    marker: str


_STYLES = (
    SiteStyle(0.92, 0.95, (0.03, 0.90), 0.004, 0.012, 0.0, "L"),
    SiteStyle(1.10, 1.45, (0.10, 0.72), 0.022, 0.035, 0.035, "R"),
)


def write_phantom(config: PhantomConfig, folder: Path) -> None:
    """Write ``images/*.png`` (8-bit grey), ``masks/*.png`` (0/255) and ``metadata.csv`` (file, patient_id, site).

    Raises:
        InputError: a count or size that nothing can be drawn from.
    """
    import pandas

    _check(config)
    rows = []
    for site_index in range(config.n_sites):
        site, style = site_name(site_index), _style(site_index, config.seed)
        for patient_index in range(config.n_patients):
            patient = f"{site}{patient_index:03d}"
            anatomy, poses = _draw_patient(config, patient)
            for image_index, pose in enumerate(poses):
                image, mask = render(anatomy, pose, style, config.size_px)
                name = f"{patient}_{image_index}.png"
                write_array(folder / "images" / name, image)
                write_array(folder / "masks" / name, mask)
                rows.append((name, patient, site))
    table = pandas.DataFrame(rows, columns=["file", "patient_id", "site"])
    write_text(folder / "metadata.csv", table.to_csv(index=False, lineterminator="\n"))


def site_name(index: int) -> str:
    """``A`` .. ``Z``, then ``A1`` .. ``Z1`` and so on."""
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")


def render(anatomy: Anatomy, pose: Pose, style: SiteStyle, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and lung mask (0/255), both (size_px, size_px) uint8."""
    u, v = _film_coordinates(pose, style, size_px * _SUPERSAMPLING)
    lungs = lung_distance(anatomy, pose.breath, u, v)
    attenuation = _attenuation(anatomy, pose.breath, lungs, u, v)
    mask = _shrink((lungs > 0).astype(float)) >= 0.5
    return _expose(_shrink(attenuation), pose, style), mask.astype(np.uint8) * np.uint8(255)


def lung_distance(anatomy: Anatomy, breath: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Positive inside the lungs (heart and mediastinum cut out), about the distance to the border in half-widths."""
    left, right = (_one_lung(anatomy, breath, side, u, v) for side in (1.0, -1.0))
    return np.minimum(np.maximum(left, right), -heart_distance(anatomy, breath, u, v))


def heart_distance(anatomy: Anatomy, breath: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Positive inside the heart shadow, a tilted ellipse whose apex points to the image's lower right."""
    radius, cos, sin = anatomy.heart_radius, np.cos(anatomy.heart_tilt), np.sin(anatomy.heart_tilt)
    du, dv = u - anatomy.heart_u, v - (0.30 + 0.5 * breath)
    along, across = (du * cos + dv * sin) / (1.25 * radius), (dv * cos - du * sin) / (0.92 * radius)
    return (1.0 - np.hypot(along, across)) * radius


def _check(config: PhantomConfig) -> None:
    fewest, most = config.images_per_patient
    limits = {
        "n_sites": config.n_sites >= 1,
        "n_patients": config.n_patients >= 1,
        "images_per_patient": 1 <= fewest <= most,
        "size_px": config.size_px >= 16,
    }
    for name, holds in limits.items():
        if not holds:
            raise InputError(
                f"{getattr(config, name)} is too small to draw",
                where=f"phantom.{name}",
                fix="at least one site, patient and image each, and 16 px",
            )


def _style(site_index: int, seed: int) -> SiteStyle:
    """Sites A and B are fixed; each further site gets a style of its own from the seed."""
    if site_index < len(_STYLES):
        return _STYLES[site_index]
    rng = np.random.default_rng(derive_seed(seed, "phantom style", site_index))
    return SiteStyle(
        field_of_view=float(rng.uniform(0.90, 1.12)),
        gamma=float(rng.uniform(0.8, 1.5)),
        exposure=(float(rng.uniform(0.0, 0.15)), float(rng.uniform(0.65, 0.97))),
        blur=float(rng.uniform(0.004, 0.025)),
        noise=float(rng.uniform(0.01, 0.04)),
        collimation=float(rng.choice([0.0, 0.03])),
        marker=str(rng.choice(sorted(_MARKERS))),
    )


def _draw_patient(config: PhantomConfig, patient: str) -> tuple[Anatomy, tuple[Pose, ...]]:
    rng = np.random.default_rng(derive_seed(config.seed, "phantom patient", patient))
    fewest, most = config.images_per_patient
    anatomy = _draw(Anatomy, rng)
    return anatomy, tuple(_draw(Pose, rng) for _ in range(int(rng.integers(fewest, most + 1))))


Drawn = TypeVar("Drawn", Anatomy, Pose)


def _draw(cls: type[Drawn], rng: np.random.Generator) -> Drawn:
    """Its fields, in their order."""
    values = {}
    for item in fields(cls):
        distribution = getattr(rng, item.metadata["distribution"])
        values[item.name] = distribution(*item.metadata["parameters"])
    return cls(**values)


def _film_coordinates(pose: Pose, style: SiteStyle, n_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Anatomical (u, v) of every pixel centre of an n_px x n_px film."""
    axis = (np.arange(n_px) + 0.5) / n_px * 2 - 1
    v, u = np.meshgrid(axis * style.field_of_view / pose.zoom, axis * style.field_of_view / pose.zoom, indexing="ij")
    cos, sin = np.cos(pose.rotation_rad), np.sin(pose.rotation_rad)
    return cos * u + sin * v - pose.shift_u, cos * v - sin * u - pose.shift_v


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, with a soft border of about ``width``."""
    return 0.5 * (1.0 + np.tanh(distance / width))


def _one_lung(anatomy: Anatomy, breath: float, side: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the nearest of the lateral wall, the mediastinal border and the diaphragm."""
    base = anatomy.base_v + breath
    outwards = side * u
    depth = np.clip((v - anatomy.apex_v) / (base - anatomy.apex_v), 0.0, 1.0)
    opening = (1.0 - (1.0 - depth) ** 3) ** 0.6  # round apex, nearly straight walls below
    lateral = 0.30 + (anatomy.lung_half_width - 0.30) * opening + 0.04 * np.sin(np.pi * depth)
    medial = 0.30 - 0.17 * opening
    lift = anatomy.liver_lift if side < 0 else 0.0
    sag = ((outwards - 0.30) / (anatomy.lung_half_width - 0.22)) ** 2
    diaphragm = base - lift - anatomy.dome * (1.0 - sag)
    walls = np.minimum(lateral - outwards, outwards - medial)
    return np.minimum(np.minimum(walls, diaphragm - v), v - anatomy.apex_v)


def _attenuation(anatomy: Anatomy, breath: float, lungs: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """What the beam loses on its way: soft tissue, less where there is air, more where there is bone."""
    body = _body(anatomy, u, v)
    air = _soft(lungs, 0.035)
    tissue = anatomy.tissue * body * (0.55 + 0.45 * np.sqrt(np.clip(1.0 - (u / 1.15) ** 2, 0.0, 1.0)))
    belly = _soft(v - anatomy.base_v - breath + anatomy.dome, 0.10)
    centre = 0.30 * np.exp(-((u / 0.15) ** 2)) + 0.35 * _soft(heart_distance(anatomy, breath, u, v), 0.05)
    bone = _ribs(anatomy, u, v) * body + _clavicles(anatomy, u, v) + _spine(u, v) * body
    lung_markings = air * _markings(anatomy, u, v)
    loss = tissue * (1.0 - 0.66 * air) + body * (0.25 * belly + centre) + 0.8 * bone + lung_markings
    return np.clip(loss - 0.35 * _gas(anatomy, breath, u, v), 0.0, None)


def _body(anatomy: Anatomy, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Neck, shoulders and trunk, with the air above the shoulders and beside the trunk left out."""
    shoulders = _soft(v - anatomy.shoulder_v - 0.10 * np.abs(u), 0.12)
    half_width = 0.24 + (anatomy.body_half_width + 0.10 * _soft(-0.2 - v, 0.15) - 0.24) * shoulders
    return _soft(half_width - np.abs(u), 0.03)


def _ribs(anatomy: Anatomy, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Posterior ribs run down and outwards from the spine; the anterior arcs cross them, fainter."""
    outwards = np.abs(u)
    cage = _soft(anatomy.lung_half_width + 0.09 - outwards, 0.03) * _soft(0.55 - v, 0.10) * _soft(v + 0.85, 0.05)
    posterior = v - anatomy.rib_slope * (outwards - 0.35 * outwards**2) + 0.55 * np.clip(outwards - 0.45, 0, None) ** 2
    anterior = v + 0.75 * (outwards - 0.75) ** 2 + 0.35 * outwards
    back = np.cos(2 * np.pi * (posterior / 0.165 + anatomy.rib_phase))
    front = np.cos(2 * np.pi * (anterior / 0.21 + anatomy.rib_phase))
    wall = np.exp(-(((outwards - anatomy.lung_half_width - 0.05) / 0.05) ** 2))  # seen edge-on at the chest wall
    return cage * (
        0.24 * _soft(back - 0.35, 0.3) + 0.09 * _soft(front - 0.45, 0.3) * _soft(outwards - 0.2, 0.1) + 0.10 * wall
    )


def _clavicles(anatomy: Anatomy, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two slender S-curves from the sternum to the shoulders."""
    outwards = np.abs(u)
    height = anatomy.apex_v + 0.20 + anatomy.clavicle_slope * outwards - 0.03 * np.sin(7.0 * outwards)
    along = _soft(outwards - 0.09, 0.03) * _soft(0.80 - outwards, 0.05)
    thickness = 0.032 + 0.015 * np.exp(-((outwards - 0.1) ** 2) / 0.01)
    return 0.34 * along * _soft(thickness - np.abs(v - height), 0.012)


def _spine(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Vertebral bodies with lighter discs between them, and the air of the trachea above the hilum."""
    bodies = 0.20 * _soft(0.085 - np.abs(u), 0.02) * (0.72 + 0.28 * np.cos(2 * np.pi * v / 0.15))
    trachea = 0.28 * _soft(0.045 - np.abs(u + 0.01), 0.02) * _soft(-0.22 - v, 0.05)
    knob = 0.22 * _soft(0.085 - np.hypot(u - 0.13, v + 0.20), 0.02)
    return bodies - trachea + knob


def _markings(anatomy: Anatomy, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Hilar vessels: waves fixed to the patient, strong beside the mediastinum, faint in the periphery."""
    rng = np.random.default_rng(anatomy.texture_seed)
    texture = np.zeros_like(u)
    for _ in range(10):
        angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(5, 22), rng.uniform(0, 2 * np.pi)
        texture += np.cos(frequency * (np.cos(angle) * u + np.sin(angle) * v) + phase)
    hilum = np.exp(-(((np.abs(u) - 0.22) / 0.14) ** 2) - ((v - 0.02) / 0.26) ** 2)
    return hilum * (0.20 + 0.035 * texture) + 0.012 * texture


def _gas(anatomy: Anatomy, breath: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The stomach's gas bubble below the left diaphragm; absent in some patients."""
    centre_v = anatomy.base_v + breath + 0.06
    return anatomy.gas_bubble * _soft(0.10 - np.hypot(u - 0.36, 1.4 * (v - centre_v)), 0.04)


def _shrink(field: np.ndarray) -> np.ndarray:
    """Mean over the supersampled pixels."""
    n_px = len(field) // _SUPERSAMPLING
    return field.reshape(n_px, _SUPERSAMPLING, n_px, _SUPERSAMPLING).mean(axis=(1, 3))


def _expose(attenuation: np.ndarray, pose: Pose, style: SiteStyle) -> np.ndarray:
    """The detector: blur, tone curve, quantum noise (stronger where few quanta arrive), collimator, marker; uint8."""
    from scipy.ndimage import gaussian_filter

    n_px = len(attenuation)
    blurred = gaussian_filter(attenuation, style.blur / style.field_of_view * n_px / 2, mode="nearest")
    grey = (1.0 - np.exp(-1.1 * blurred)) / (1.0 - np.exp(-1.1 * 2.0))
    grey = np.clip(grey, 0.0, 1.0) ** style.gamma
    noise = np.random.default_rng(pose.noise_seed).normal(size=grey.shape)
    grey = grey + style.noise * noise * (0.6 + 0.8 * grey)
    dark, light = style.exposure
    levels = np.clip(dark + (light - dark) * grey, 0.0, 1.0)
    _stamp(levels, style)
    return np.round(levels * 255).astype(np.uint8)


def _stamp(levels: np.ndarray, style: SiteStyle) -> None:
    """Draw the collimator's borders and the lead marker into ``levels`` (n_px, n_px) in place."""
    n_px = len(levels)
    border = round(style.collimation * n_px)
    inside = np.zeros(levels.shape, bool)
    inside[border : n_px - border, border : n_px - border] = True
    levels[~inside] = 0.0
    letter = np.array([[int(bit) for bit in row] for row in _MARKERS[style.marker]], bool)
    letter = np.kron(letter, np.ones((max(1, n_px // 64),) * 2, bool))
    top = border + n_px // 16
    left = n_px - top - letter.shape[1] if style.marker == "L" else top
    levels[top : top + letter.shape[0], left : left + letter.shape[1]][letter] = 0.97
