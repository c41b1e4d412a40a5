"""A raw download as a source that experiments read: in parallel, resumable, the same for any order of files.

Every case has a digest of its files' contents, its recipe and the code that converts it. A second run converts only
cases whose digest changed or whose output is not what was written; what left the download leaves the source.
``metadata.csv`` is written last: a folder that has one is whole.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError
from common.files import read_json, sha256_of_file, sha256_of_json, write_json, write_text
from common.progress import Progress, silent
from dataset.about import About
from dataset.images import ENDINGS
from dataset.importer import Found, Importer, LeftOut, RawCase, Unusable
from dataset.preparation_report import Report, build_report
from dataset.source import SourceConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

TABLE, STATE, SOURCE = "metadata.csv", "preparation_state.json", "source.yaml"
_OUTPUTS = (TABLE, STATE, SOURCE, "preparation.json", "preparation.txt")
_TEMPORARY = re.compile(r"\.[a-z0-9_]{8}\..+")
_SAFE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_STATE_INTERVAL_S = 2.0  # a killed run converts again at most what it did in this time
_MAX_LISTED = 20


@dataclass(frozen=True)
class Prepared:
    """What a run did: the report of the source as it is now, and how many cases this run had to convert."""

    report: Report
    n_converted: int


@dataclass
class _State:
    """What is known of cases converted so far: name -> digest and either the files' SHA-256 or why it is left out."""

    importer: str
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)


def prepare_source(
    importer: Importer,
    raw: Path,
    root: Path,
    options: Any,
    about: About | None = None,
    n_workers: int = 1,
    progress: Progress = silent,
) -> Prepared:
    """Convert the download ``raw`` into ``root``: ``images/ masks/ metadata.csv source.yaml preparation.json .txt``.

    Raises:
        InputError: a download that is not laid out as the importer expects, data that must not be used without a
            decision (the first problem and a list of the others), or a ``root`` that holds something else.
    """
    about = about or About()
    _check_places(raw, root)
    _remove_leftovers(root)
    checksums = _verify_checksums(raw, about.sha256)
    found = importer.find(raw, options)
    cases = _checked(found, raw)
    state = _load_state(root, importer)
    with ThreadPoolExecutor(max(1, n_workers)) as executor:
        digests, done = _examine(executor, cases, importer, state, root, progress)
        pending = [case for case in cases if case.name not in done]
        gone = sorted(set(state.cases) - {case.name for case in cases})
        if pending or gone:
            (root / TABLE).unlink(missing_ok=True)
        for name in gone:
            _remove_outputs(root, name)
            del state.cases[name]
        _convert_all(executor, pending, digests, importer, found, root, state, progress)
    return _finish(importer, options, about, found, cases, state, root, checksums, len(pending))


def source_config(root: Path) -> SourceConfig:
    """The keys in ``root/source.yaml``, with ``root`` itself.

    Raises:
        InputError: no such file: the folder was not prepared, or holds images without masks.
    """
    import yaml

    from common.settings import from_dict

    path = root / SOURCE
    if not path.is_file():
        raise InputError("no prepared source here", where=path, fix="run python -m dataset.prepare")
    return from_dict(SourceConfig, {**yaml.safe_load(path.read_text(encoding="utf-8")), "root": str(root.resolve())})


def _check_places(raw: Path, root: Path) -> None:
    if not raw.is_dir():
        raise InputError("there is no such folder", where=raw, fix="give the unpacked download as --raw")
    if root.resolve().is_relative_to(raw.resolve()):
        raise InputError(f"the output lies in the raw folder {raw}", where=root, fix="choose another folder as --out")
    if (root / TABLE).is_file() and not (root / STATE).is_file():
        raise InputError(
            f"there is a {TABLE} that this command did not write", where=root, fix="choose another folder as --out"
        )


def _remove_leftovers(root: Path) -> None:
    """Temporary files that a killed run could not remove (``common.files.atomic_path``)."""
    for folder in (root, root / "images", root / "masks"):
        for file in folder.glob(".*") if folder.is_dir() else ():
            ours = folder != root or file.name.endswith(_OUTPUTS)
            if ours and file.is_file() and _TEMPORARY.fullmatch(file.name):
                file.unlink()


def _verify_checksums(raw: Path, published: Mapping[str, str]) -> dict[str, str]:
    """File -> ``verified`` or ``not there``; a download is often unpacked and its archive deleted."""
    result = {}
    for name, expected in sorted(published.items()):
        file = raw / name
        result[name] = "verified" if file.is_file() else "not there"
        if file.is_file() and (actual := sha256_of_file(file)) != expected.lower():
            raise InputError(
                f"SHA-256 {actual}, but {expected} is published", where=file, fix="download the file again"
            )
    return result


def _checked(found: Found, raw: Path) -> list[RawCase]:
    """The cases sorted by name, after a look at what an importer may get wrong."""
    cases = sorted(found.cases, key=lambda case: case.name)
    if not cases:
        reasons = "; ".join(sorted({item.reason for item in found.left_out})) or "nothing was found"
        raise InputError(f"no case can be used: {reasons}", where=raw, fix="see docs/data.md for the expected layout")
    lower = Counter(case.name.lower() for case in cases)
    for case in cases:
        if not _SAFE_NAME.fullmatch(case.name) or lower[case.name.lower()] > 1:
            what = "occurs twice (upper and lower case count as one)" if lower[case.name.lower()] > 1 else "is not safe"
            raise InputError(
                f"the case name {case.name!r} {what}", where=case.files[0], fix="rename the raw file (A-Z a-z 0-9 _ -)"
            )
        if not case.columns.get("site"):
            raise InputError(f"case {case.name!r} has no site", where=case.files[0], fix="correct the table of sites")
    without = [case for case in cases if not case.columns.get("patient")]
    if without and len(without) < len(cases):
        raise InputError(
            f"case {without[0].name!r} has no patient, others do", where=without[0].files[0], fix="leave it out"
        )
    return cases


def _load_state(root: Path, importer: Importer) -> _State:
    if not (root / STATE).is_file():
        return _State(importer.name)
    stored = read_json(root / STATE)
    if stored["importer"] != importer.name:
        raise InputError(
            f"the folder holds {stored['importer']!r}, not {importer.name!r}",
            where=root,
            fix="choose another folder as --out",
        )
    return _State(importer.name, stored["cases"])


def _save_state(root: Path, state: _State) -> None:
    write_json(root / STATE, {"importer": state.importer, "cases": state.cases})


def _examine(
    executor: Executor, cases: Sequence[RawCase], importer: Importer, state: _State, root: Path, progress: Progress
) -> tuple[dict[str, str], set[str]]:
    """Every case's digest, and the names of those whose output is already there."""
    of_code = sorted(sha256_of_file(file) for file in _code_behind(importer.convert))

    def look(case: RawCase) -> tuple[str, bool]:
        digest = _digest(of_code, case)
        return digest, _is_done(state.cases.get(case.name), digest, root)

    digests, done = {}, set()
    for case, (digest, is_done) in _in_parallel(executor, look, cases):
        digests[case.name] = digest
        done |= {case.name} if is_done else set()
        progress(len(digests), len(cases), "case checked")
    return digests, done


def _code_behind(function: Callable[..., object]) -> set[Path]:
    """The file of ``function`` and those of this package that it uses, directly or not."""
    waiting, seen = [function.__module__], {function.__module__}
    while waiting:
        for value in vars(sys.modules[waiting.pop()]).values():
            used = getattr(value, "__module__", None)
            if isinstance(used, str) and used.startswith(f"{__package__}.") and used not in seen:
                seen.add(used)
                waiting.append(used)
    return {Path(str(sys.modules[name].__file__)) for name in seen}


def _digest(of_code: Sequence[str], case: RawCase) -> str:
    missing = [file for file in case.files if not file.is_file()]
    if missing:
        raise InputError(f"case {case.name!r} needs this file", where=missing[0], fix="unpack the download again")
    of_files = [(file.name, sha256_of_file(file)) for file in case.files]
    return sha256_of_json([case.name, of_files, case.recipe, of_code])


def _is_done(entry: Mapping[str, Any] | None, digest: str, root: Path) -> bool:
    if entry is None or entry["digest"] != digest:
        return False
    files: Mapping[str, str] = entry.get("files", {})
    return all((root / name).is_file() and sha256_of_file(root / name) == sha for name, sha in files.items())


def _in_parallel(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterable[tuple[Item, Result]]:
    """Pairs of item and result as they come; after an error, or when nobody wants more, nothing new is begun."""
    futures = {executor.submit(function, item): item for item in items}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def _convert_all(
    executor: Executor,
    pending: Sequence[RawCase],
    digests: Mapping[str, str],
    importer: Importer,
    found: Found,
    root: Path,
    state: _State,
    progress: Progress,
) -> None:
    """Convert what is pending; problems of cases are collected, and what could be converted is kept."""
    problems: dict[str, InputError] = {}
    saved = time.monotonic()
    try:
        converted = _in_parallel(executor, partial(_convert, importer, root, bool(found.labels)), pending)
        for done, (case, outcome) in enumerate(converted):
            if isinstance(outcome, InputError):
                problems[case.name] = outcome
                state.cases.pop(case.name, None)
            else:
                state.cases[case.name] = {"digest": digests[case.name], **outcome}
            progress(done + 1, len(pending), "case converted")
            if time.monotonic() - saved > _STATE_INTERVAL_S:
                _save_state(root, state)
                saved = time.monotonic()
    finally:
        _save_state(root, state)
    _raise_first([problems[name] for name in sorted(problems)])


def _convert(importer: Importer, root: Path, has_masks: bool, case: RawCase) -> dict[str, Any] | InputError:
    _remove_outputs(root, case.name)
    try:
        importer.convert(case, root)
        files = _outputs(root, case.name)
        _check_outputs(files, has_masks, importer, case)
    except (Unusable, InputError) as error:
        _remove_outputs(root, case.name)
        return error if isinstance(error, InputError) else {"left_out": str(error)}
    return {"files": {file.relative_to(root).as_posix(): sha256_of_file(file) for file in files}}


def _check_outputs(files: Sequence[Path], has_masks: bool, importer: Importer, case: RawCase) -> None:
    folders = [file.parent.name for file in files]
    expected = ["images", "masks"] if has_masks else ["images"]
    if folders != expected:
        raise InputError(
            f"the importer {importer.name!r} wrote {folders or 'nothing'} for {case.name!r}, not {expected}",
            where=case.files[0],
            fix="correct its convert: images/<name>.<ending> and, with labels, masks/<name>.<ending>",
        )


def _outputs(root: Path, name: str) -> list[Path]:
    candidates = (root / folder / f"{name}{ending}" for folder in ("images", "masks") for ending in ENDINGS)
    return [file for file in candidates if file.is_file()]


def _remove_outputs(root: Path, name: str) -> None:
    for file in _outputs(root, name):
        file.unlink()


def _raise_first(problems: Sequence[InputError]) -> None:
    if not problems:
        return
    first, others = problems[0], problems[1:]
    listed = "".join(f"\n  - {error.where}: {error.problem}" for error in others[:_MAX_LISTED])
    unlisted = f"\n  - and {len(others) - _MAX_LISTED} more" if len(others) > _MAX_LISTED else ""
    more = f"\n  and {len(others)} more:{listed}{unlisted}" if others else ""
    raise InputError(f"{first.problem}{more}", where=first.where, fix=first.fix)


def _finish(
    importer: Importer,
    options: Any,
    about: About,
    found: Found,
    cases: Sequence[RawCase],
    state: _State,
    root: Path,
    checksums: Mapping[str, str],
    n_converted: int,
) -> Prepared:
    """Write what describes the source, its table last."""
    kept = [case for case in cases if "files" in state.cases[case.name]]
    unusable = [
        LeftOut(case.name, state.cases[case.name]["left_out"]) for case in cases if "left_out" in state.cases[case.name]
    ]
    if not kept:
        raise InputError(f"no case can be used: {unusable[0].reason}", where=unusable[0].name, fix="correct the data")
    report = build_report(
        importer.name, options, about, found, kept, [*found.left_out, *unusable], _equal_images(kept, state), checksums
    )
    _write_if_changed(root / "preparation.json", report.json_text())
    _write_if_changed(root / "preparation.txt", report.text())
    if found.labels:
        _write_if_changed(root / SOURCE, _source_text(found, kept))
    _write_if_changed(root / TABLE, _table_text(kept, state))
    return Prepared(report, n_converted)


def _equal_images(kept: Sequence[RawCase], state: _State) -> list[tuple[str, ...]]:
    """Names of images that are equal: all were decoded and written anew the same way, so their bytes tell."""
    names: dict[str, list[str]] = defaultdict(list)
    for case in kept:
        names[_image_of(case, state)[1]].append(case.name)
    return sorted(tuple(group) for group in names.values() if len(group) > 1)


def _image_of(case: RawCase, state: _State) -> tuple[str, str]:
    files: Mapping[str, str] = state.cases[case.name]["files"]
    return next((name, digest) for name, digest in files.items() if name.startswith("images/"))


def _source_text(found: Found, kept: Sequence[RawCase]) -> str:
    import yaml

    values: dict[str, Any] = {"kind": "folder", "table": TABLE, "image_column": "image", "site_column": "site"}
    if kept[0].columns.get("patient"):
        values["patient_column"] = "patient"
    values |= {"image_dir": "images", "mask_dir": "masks", "labels": dict(found.labels)}
    if found.channel_names:
        values["channel_names"] = list(found.channel_names)
    return str(yaml.safe_dump(values, sort_keys=False))


def _table_text(kept: Sequence[RawCase], state: _State) -> str:
    """One row a case, sorted by name; patient and site first, then the other columns in alphabetical order."""
    present = {column for case in kept for column, value in case.columns.items() if column != "patient" or value}
    first = [column for column in ("patient", "site") if column in present]
    columns = [*first, *sorted(present - set(first))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for case in kept:
        image = _image_of(case, state)[0].removeprefix("images/")
        writer.writerow([image, *(case.columns.get(column, "") for column in columns)])
    return text.getvalue()


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
