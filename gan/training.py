"""A training at some step: its snapshots, what is on disk, and how to go back to it. ``gan.train_step`` is one step.

Every random number of step i comes from a generator seeded by (seed, i, purpose), so that a resumed training needs no
generator state to draw what an undisturbed one draws. Whether a snapshot is scored follows from its step alone.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.files import atomic_path
from common.seeds import derive_seed
from common.settings import from_dict, to_dict
from gan.batches import Batches
from gan.pictures import INTERPOLATION, draw_fixed_samples, draw_interpolation, draw_sheet, write_pictures
from gan.privacy import Population, derive_mechanism, privacy_record
from gan.private_batches import PrivateBatches
from gan.schedule import derive_schedule, snapshot_interval
from gan.secret import Secret
from gan.settings import GanSettings
from gan.train_step import PrivateReals, TrainStep
from training.alarms import (
    ALARMS,
    LAST_GOOD,
    N_ATTEMPTS,
    N_COMPARED,
    N_SHOWN_ROWS,
    Health,
    TrainingFailedError,
    check_measured,
    check_weights,
    pixel_diversity,
    seed_of_attempt,
    write_alarms,
)
from training.batch_shard import SINGLE_PROCESS, BatchShard
from training.curves import is_curve_point, write_curves
from training.monitor import DIVERSITY, NEVER, Monitor, MonitorSchedule
from training.pictures import SHEET
from training.snapshots import (
    Candidate,
    choose,
    chosen_as_metadata,
    load_candidate,
    remove_candidates,
    save_candidate,
    still_eligible,
)
from training.training_state import RESULT, check_same_run

log = logging.getLogger(__name__)

CHECKPOINT = "training.safetensors"
BOUNDED = ("loss_g", "loss_d", "real_logit", "fake_logit")
FIX_DIVERGENCE = "raise generator.settings.r1_gamma or lower generator.settings.learning_rate"
FIX_COLLAPSE = (
    "raise generator.settings.r1_gamma, keep generator.settings.augment complete, "
    "or lower generator.settings.learning_rate"
)


class Training:
    """A training at some step: its networks, what was measured, and how to leave and find it on disk."""

    def __init__(
        self,
        batches: Batches,
        settings: GanSettings,
        seed: int,
        device: torch.device,
        monitor: Monitor | None = None,
        shard: BatchShard = SINGLE_PROCESS,
        patients: Sequence[str] | None = None,
    ) -> None:
        self.batches, self.settings, self.seed, self.monitor, self.shard = batches, settings, seed, monitor, shard
        self.dtype, self.patients = str(batches.images.dtype), patients
        self.population = Population.of(len(batches.images), patients)
        self.mechanism = derive_mechanism(settings, self.population)
        self.private_batches: PrivateBatches | None = None
        if self.mechanism is not None:
            self.private_batches = self._private_batches(Secret.new())
        self.schedule = NEVER
        if monitor is not None and self.mechanism is None:  # with privacy, scores would tell of real images
            self.schedule = derive_schedule(settings, monitor.seconds_per_image, monitor.n_references, device.type)
            if self.schedule == NEVER:
                log.info("%g kimg are too short for a monitor: the last snapshot will be taken", settings.kimg)
        self.alarms: list[dict[str, Any]] = []
        self.monitor_s, self.started_s = 0.0, time.monotonic()  # for the log alone
        self._begin(0, device)

    def _begin(self, attempt: int, device: torch.device) -> None:
        self.train_step = TrainStep(self.settings, seed_of_attempt(self.seed, attempt), device, self.shard)
        self.step = 0
        self.rows: list[dict[str, float | str]] = []
        self.measured: dict[str, float] = {}
        self.candidates: list[Candidate] = []
        self.health = Health()
        self._set_attempt(attempt)

    def _set_attempt(self, attempt: int) -> None:
        self.attempt = attempt
        if attempt:
            self.batches = Batches(self.batches.images, self.settings, seed_of_attempt(self.seed, attempt))

    def _private_batches(self, secret: Secret) -> PrivateBatches:
        assert self.mechanism is not None
        rate = self.mechanism.sampling_rate
        return PrivateBatches(self.batches.images, self.settings, rate, secret, self.patients)

    def _reals(self) -> torch.Tensor | PrivateReals:
        """Those of the step."""
        if self.mechanism is None or self.private_batches is None:
            return self.batches.at(self.step)
        noise = self.private_batches.secret.stream(self.step, "noise")
        return PrivateReals(self.mechanism, self.private_batches.at(self.step), noise)

    def advance(self) -> None:
        """One step, and every now and then a row in the curves.

        Raises:
            TrainingFailedError: what it measured is no number any more, or too large.
        """
        measured = self.train_step.update(self.step, self._reals(), self._draws)
        self.step += 1
        values = torch.stack(list(measured.values())).tolist()  # one wait for the device
        self.measured |= dict(zip(measured, values, strict=True))
        check_measured(self.measured, BOUNDED, self.step, FIX_DIVERGENCE)
        if is_curve_point(self.step, self.settings.n_steps):
            self.rows.append({"step": self.kimg_at(self.step), "unit": "kimg", **self.measured})

    def kimg_at(self, step: int) -> float:
        """Thousand images shown after ``step`` steps."""
        return round(step * self.settings.config.batch_size / 1000, 6)

    def _draws(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(seed_of_attempt(self.seed, self.attempt), self.step, purpose))

    def is_snapshot_due(self) -> bool:
        """Whether the step that was just done ends with a snapshot."""
        return self.step % snapshot_interval(self.settings) == 0 or self.step == self.settings.n_steps

    def snapshot(self, out: Path) -> None:
        """Scores, curves and sheet first, then the checkpoint: what is on disk is never ahead of it for good.

        Raises:
            TrainingFailedError: weights that exploded, or samples that collapsed; nothing is written then.
        """
        check_weights(self.train_step.modules(), self.step, FIX_DIVERGENCE)
        was_good = self.health.n_collapsed == 0
        scores, diversity = self._scores()
        if diversity is not None:
            self.health = self.health.after(diversity)
            self.health.check(diversity, self.step, FIX_COLLAPSE)
        if scores:
            self.rows.append({"step": self.kimg_at(self.step), "unit": "kimg", **scores})
        is_good = self.health.n_collapsed == 0
        # the averaged weights of a snapshot are kept as long as it may still be chosen
        if is_good and scores:
            candidate = Candidate(self.step, self.kimg_at(self.step), scores)
            self.candidates = still_eligible([*self.candidates, candidate], self.settings.config.snapshot)
            if candidate in self.candidates:
                save_candidate(candidate, self.train_step.average.state_dict(), out)
        # at the first sign of a collapse the checkpoint before it is kept, until a good snapshot follows
        if was_good and not is_good and (out / CHECKPOINT).is_file():
            with atomic_path(out / LAST_GOOD) as temporary:
                shutil.copyfile(out / CHECKPOINT, temporary)
        write_pictures(self.train_step.average, self.seed, out, self.kimg_at(self.step))
        self._save(out)
        remove_candidates(out, but=self.candidates)
        if is_good:
            (out / LAST_GOOD).unlink(missing_ok=True)

    def _scores(self) -> tuple[dict[str, float], float | None]:
        """The scores, where this snapshot is to have some, and the samples' diversity, where it was measured."""
        if self.mechanism is not None:
            return {}, None
        dtype = self.batches.images.dtype
        if self.monitor is None or not self.schedule.every:
            samples = draw_fixed_samples(self.train_step.average, self.seed, N_COMPARED, dtype)
            chosen = np.unique(np.linspace(0, len(self.batches.images) - 1, N_COMPARED).round().astype(int))
            return {}, pixel_diversity(samples, self.batches.images[chosen])
        interval = snapshot_interval(self.settings)
        if not self.schedule.is_due(-(-(self.settings.n_steps - self.step) // interval)):
            return {}, None
        started_s = time.monotonic()
        samples = draw_fixed_samples(self.train_step.average, self.seed, self.schedule.n_samples, dtype)
        scores = dict(self.monitor.measure(samples, self.schedule.n_references))
        seconds = time.monotonic() - started_s
        self.monitor_s += seconds
        log.info("scored at %g kimg in %.1f s: %s", self.kimg_at(self.step), seconds, scores)
        return scores, scores.get(DIVERSITY)

    def fall_back(self, out: Path, failure: TrainingFailedError) -> None:
        """Go on from the last good snapshot, or the start, as another attempt.

        Raises:
            RuntimeError: there were enough attempts.
        """
        # a collapse is seen late: the checkpoint may hold the first sign of it, LAST_GOOD then holds the one before
        good = out / (LAST_GOOD if (out / LAST_GOOD).is_file() else CHECKPOINT)
        attempt, kimg, rows = self.attempt, self.kimg_at(self.step), self.rows
        if good.is_file():
            self.load(good)
        else:
            self._begin(0, self.train_step.device)
        alarm = {"step": kimg, "unit": "kimg", "alarm": failure.kind, "message": str(failure), "attempt": attempt}
        alarm |= {"back_to": self.kimg_at(self.step), "curve": rows[-N_SHOWN_ROWS:]}
        self.alarms = [*self.alarms, alarm]
        write_alarms(self.alarms, out)
        n_attempts = N_ATTEMPTS if self.mechanism is None else 1  # each would spend the same epsilon again
        if attempt + 1 >= n_attempts:
            raise RuntimeError(f"{failure} (attempt {attempt + 1} of {n_attempts}; see {out / ALARMS})") from failure
        log.warning(
            f"alarm at {kimg:g} kimg: {failure}. The training goes back to {self.kimg_at(self.step):g} kimg and on "
            f"with other random numbers (attempt {attempt + 2} of {N_ATTEMPTS}). The curve so far: {alarm['curve']}"
        )
        if self.step == 0:
            self._begin(attempt + 1, self.train_step.device)
        self._set_attempt(attempt + 1)
        self._save(out)
        (out / LAST_GOOD).unlink(missing_ok=True)

    def _identity(self) -> dict[str, Any]:
        return {"settings": to_dict(self.settings), "seed": self.seed, "dtype": self.dtype}

    def _save(self, out: Path) -> None:
        """Curves and alarms, then everything a resumed training needs."""
        write_curves(out, self.rows)
        write_alarms(self.alarms, out)
        metadata = {
            **self._identity(),
            "step": self.step,
            "rows": self.rows,
            "measured": self.measured,
            "attempt": self.attempt,
            "alarms": self.alarms,
            "candidates": [to_dict(candidate) for candidate in self.candidates],
            "health": to_dict(self.health),
            "schedule": to_dict(self.schedule),
        }
        if self.private_batches is not None:
            metadata["secret"] = self.private_batches.secret.hexadecimal
            metadata["data_digest"] = self.private_batches.digest
        save_tensors(out / CHECKPOINT, self.train_step.tensors(), metadata)

    def resume(self, out: Path) -> None:
        """Go on from the last checkpoint in ``out``, if there is one."""
        if not (out / CHECKPOINT).is_file():
            return
        self.load(out / CHECKPOINT)
        if self.health.n_collapsed == 0:
            (out / LAST_GOOD).unlink(missing_ok=True)  # of a fall that is over
        log.info("resumed at step %d of %d", self.step, self.settings.n_steps)

    def load(self, path: Path) -> None:
        """Take over everything from a checkpoint; InputError if it is of other settings or another seed.

        Under differential privacy also if it is of other images: the same noise on both would give the difference away.
        """
        tensors, metadata = load_tensors(path)
        check_same_run(path, metadata, self.settings, self.seed)
        if self.private_batches is not None and metadata.get("data_digest") != self.private_batches.digest:
            raise InputError(
                "this private training began with other images, other patients or an earlier version",
                where=path,
                fix="delete its folder: a new training draws a new secret",
            )
        self.train_step.load(tensors)
        self.step, self.rows, self.measured = metadata["step"], metadata["rows"], metadata["measured"]
        self.alarms, self.health = metadata["alarms"], from_dict(Health, metadata["health"])
        self.candidates = [from_dict(Candidate, one) for one in metadata["candidates"]]
        self.schedule = from_dict(MonitorSchedule, metadata["schedule"])
        self._set_attempt(metadata["attempt"])
        if self.private_batches is not None:
            self.private_batches = self._private_batches(Secret(metadata["secret"]))

    def choose(self, out: Path) -> dict[str, Any]:
        """Make the chosen snapshot's weights the averaged ones, draw its pictures; returns which it is and why."""
        rule = self.settings.config.snapshot
        candidate, reason = choose(self.candidates, rule)
        last = Candidate(self.step, self.kimg_at(self.step))
        if candidate is not None:
            self.train_step.average.load_state_dict(load_candidate(candidate, out))
            draw_sheet(self.train_step.average, self.seed, out / SHEET)
            draw_interpolation(self.train_step.average, self.seed, out / INTERPOLATION)
        chosen = chosen_as_metadata(candidate, last, rule, reason)
        log.info("chose the snapshot at %g of %g kimg: %s; %s", chosen["kimg"], last.kimg, reason, chosen["scores"])
        share = self.monitor_s / max(time.monotonic() - self.started_s, 1e-9)
        log.info("the monitor took %.2f %% of the time (%s)", 100 * share, self.schedule)
        return chosen

    def finish(self, out: Path, chosen: Mapping[str, Any]) -> None:
        """Write the averaged generator and which snapshot it is; what was kept for resuming goes."""
        metadata = {**self._identity(), "snapshot": dict(chosen), "n_alarms": len(self.alarms)}
        metadata["privacy"] = privacy_record(self.settings, self.population, self.step)
        save_tensors(out / RESULT, self.train_step.average.state_dict(), metadata)
        remove_state(out)


def remove_state(out: Path) -> None:
    """Delete what a finished training does not need: checkpoints and the weights of other snapshots."""
    for name in (CHECKPOINT, LAST_GOOD):
        (out / name).unlink(missing_ok=True)
    remove_candidates(out)
