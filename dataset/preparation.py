"""A raw download becomes a source that experiments read: in parallel, resumable, the same for any order of files.

Every case has a digest of its files' contents, its recipe and the code that converts it. A second run converts only
cases whose digest changed or whose output is not what was written; what left the download leaves the source.
``metadata.csv`` is written last: a folder that has one is whole.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import InputError, raise_all
from common.files import json_text, read_json, sha256_of_file, sha256_of_json, write_json, write_text
from common.progress import Progress, silent
from common.settings import to_dict
from dataset.about import About
from dataset.images import ENDINGS
from dataset.importer import Found, Importer, LeftOut, RawCase, Unusable
from dataset.preparation_report import Report, build_report

if TYPE_CHECKING:
    import pandas

Item = TypeVar("Item")
Result = TypeVar("Result")

TABLE, STATE, SOURCE = "metadata.csv", "preparation_state.json", "source.yaml"
_OTHER_FOLDER = "choose another folder as --out"
_OUTPUTS = (TABLE, STATE, SOURCE, "preparation.json", "preparation.txt")
_TEMPORARY = re.compile(r"\.[a-z0-9_]{8}\..+")
_SAFE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_STATE_INTERVAL_S = 2.0  # a killed run converts again at most what it did in this time


@dataclass(frozen=True)
class Prepared:
    """What a run did: the report of the source as it is now, and how many cases this run had to convert."""

    report: Report
    n_converted: int


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
    converted = _load_state(root, importer)  # case -> its digest, and the files' SHA-256 or why it is left out
    with ThreadPoolExecutor(max(1, n_workers)) as executor:
        # a case is done where its files, recipe and code are those of its last conversion, and its output is there
        code = sorted(sha256_of_file(file) for file in _code_behind(importer.convert))
        digests: dict[str, str] = {}
        for case, digest in _in_parallel(executor, partial(_digest, code), cases):
            digests[case.name] = digest
            progress(len(digests), len(cases), "case checked")
        done = executor.map(lambda case: _is_done(converted, case, digests, root), cases)
        pending = [case for case, is_done in zip(cases, done, strict=True) if not is_done]

        # what left the download leaves the source; without its table, the folder is not whole
        gone = sorted(set(converted) - set(digests))
        if pending or gone:
            (root / TABLE).unlink(missing_ok=True)
        for name in gone:
            _remove_outputs(root, name)
            del converted[name]

        # convert: problems of cases are collected, and what could be converted is kept
        problems: dict[str, InputError] = {}
        saved = time.monotonic()
        try:
            outcomes = _in_parallel(executor, partial(_convert, importer, root, bool(found.labels)), pending)
            for n_done, (case, outcome) in enumerate(outcomes, start=1):
                converted.pop(case.name, None)
                if isinstance(outcome, InputError):
                    problems[case.name] = outcome
                else:
                    converted[case.name] = {"digest": digests[case.name], **outcome}
                progress(n_done, len(pending), "case converted")
                if time.monotonic() - saved > _STATE_INTERVAL_S:
                    _save_state(root, importer, converted)
                    saved = time.monotonic()
        finally:
            _save_state(root, importer, converted)
        raise_all([problems[name] for name in sorted(problems)])
    report = _describe(importer, options, about, found, cases, converted, root, checksums)
    return Prepared(report, len(pending))


def _check_places(raw: Path, root: Path) -> None:
    if not raw.is_dir():
        raise InputError("there is no such folder", where=raw, fix="give the unpacked download as --raw")
    problem = ""
    if root.resolve().is_relative_to(raw.resolve()):
        problem = f"the output lies in the raw folder {raw}"
    elif (root / TABLE).is_file() and not (root / STATE).is_file():
        problem = f"there is a {TABLE} that this command did not write"
    if problem:
        raise InputError(problem, where=root, fix=_OTHER_FOLDER)


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
                f"its SHA-256 is {actual}, but {expected} is published", where=file, fix="download the file again"
            )
    return result


def _checked(found: Found, raw: Path) -> list[RawCase]:
    """The cases sorted by name, after a look at what an importer may get wrong."""
    cases = sorted(found.cases, key=lambda case: case.name)
    if not cases:
        reasons = "; ".join(sorted({item.reason for item in found.left_out})) or "nothing was found"
        raise InputError(f"no case can be used: {reasons}", where=raw, fix="see docs/data.md for the expected layout")
    count = Counter(case.name.lower() for case in cases)
    have_patients = any(case.columns.get("patient") for case in cases)
    for case in cases:
        problem, fix = "", "rename the raw file (A-Z a-z 0-9 _ -)"
        if count[case.name.lower()] > 1:
            problem = "occurs twice (upper and lower case count as one)"
        elif not _SAFE_NAME.fullmatch(case.name):
            problem = "is not safe as a file name"
        elif not case.columns.get("site"):
            problem, fix = "has no site", "correct the table of sites"
        elif have_patients and not case.columns.get("patient"):
            problem, fix = "has no patient, others do", "leave it out"
        if problem:
            raise InputError(f"case {case.name!r} {problem}", where=case.files[0], fix=fix)
    return cases


def _load_state(root: Path, importer: Importer) -> dict[str, dict[str, Any]]:
    if not (root / STATE).is_file():
        return {}
    stored = read_json(root / STATE)
    if stored["importer"] != importer.name:
        problem = f"the folder holds {stored['importer']!r}, not {importer.name!r}"
        raise InputError(problem, where=root, fix=_OTHER_FOLDER)
    cases: dict[str, dict[str, Any]] = stored["cases"]
    return cases


def _save_state(root: Path, importer: Importer, converted: Mapping[str, Any]) -> None:
    write_json(root / STATE, {"importer": importer.name, "cases": converted})


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


def _digest(code: Sequence[str], case: RawCase) -> str:
    missing = [file for file in case.files if not file.is_file()]
    if missing:
        raise InputError(f"case {case.name!r} needs this file", where=missing[0], fix="unpack the download again")
    of_files = [(file.name, sha256_of_file(file)) for file in case.files]
    return sha256_of_json([case.name, of_files, case.recipe, code])


def _is_done(converted: Mapping[str, Any], case: RawCase, digests: Mapping[str, str], root: Path) -> bool:
    entry = converted.get(case.name)
    if entry is None or entry["digest"] != digests[case.name]:
        return False
    files: Mapping[str, str] = entry.get("files", {})
    return all((root / name).is_file() and sha256_of_file(root / name) == sha for name, sha in files.items())


def _in_parallel(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Pairs of item and result as they come; after an error, or when nobody wants more, nothing new is begun."""
    futures = {executor.submit(function, item): item for item in items}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def _convert(importer: Importer, root: Path, has_masks: bool, case: RawCase) -> dict[str, Any] | InputError:
    """The SHA-256 of the files that were written, why the case is left out, or the problem that stops the command."""
    _remove_outputs(root, case.name)
    try:
        importer.convert(case, root)
        files = _outputs(root, case.name)
        folders, expected = [file.parent.name for file in files], ["images", "masks"] if has_masks else ["images"]
        if folders != expected:
            raise InputError(
                f"the importer {importer.name!r} wrote {folders or 'nothing'} for {case.name!r}, not {expected}",
                where=case.files[0],
                fix="correct its convert: images/<name>.<ending> and, with labels, masks/<name>.<ending>",
            )
    except (Unusable, InputError) as error:
        _remove_outputs(root, case.name)
        return error if isinstance(error, InputError) else {"left_out": str(error)}
    return {"files": {file.relative_to(root).as_posix(): sha256_of_file(file) for file in files}}


def _outputs(root: Path, name: str) -> list[Path]:
    candidates = (root / folder / f"{name}{ending}" for folder in ("images", "masks") for ending in ENDINGS)
    return [file for file in candidates if file.is_file()]


def _remove_outputs(root: Path, name: str) -> None:
    for file in _outputs(root, name):
        file.unlink()


def _describe(
    importer: Importer,
    options: Any,
    about: About,
    found: Found,
    cases: Sequence[RawCase],
    converted: Mapping[str, Mapping[str, Any]],
    root: Path,
    checksums: Mapping[str, str],
) -> Report:
    """Write what describes the source, its table last."""
    kept = [case for case in cases if "files" in converted[case.name]]
    unusable = [
        LeftOut(case.name, converted[case.name]["left_out"]) for case in cases if "left_out" in converted[case.name]
    ]
    if not kept:
        raise InputError(f"no case can be used: {unusable[0].reason}", where=unusable[0].name, fix="correct the data")
    files: dict[str, str] = {}
    same = defaultdict(list)  # all images are decoded and written the same way, so equal ones have one digest
    for case in kept:
        written: Mapping[str, str] = converted[case.name]["files"]
        files[case.name], digest = next((name, sha) for name, sha in written.items() if name.startswith("images/"))
        same[digest].append(case.name)
    table = _table(kept, files)
    report = build_report(
        importer=importer.name,
        options=options,
        about=about,
        found=found,
        table=table,
        left_out=[*found.left_out, *unusable],
        equal_images=sorted(tuple(names) for names in same.values() if len(names) > 1),
        checksums=checksums,
    )
    texts = {"preparation.json": json_text(to_dict(report)), "preparation.txt": report.text()}
    if found.labels:
        texts[SOURCE] = _source_text(found, has_patients="patient" in table)
    texts[TABLE] = table.to_csv(index=False, lineterminator="\n")
    for name, text in texts.items():
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text:
            write_text(root / name, text)
    return report


def _table(kept: Sequence[RawCase], files: Mapping[str, str]) -> pandas.DataFrame:
    """One row a case, sorted by name; image, patient and site first, then the other columns in alphabetical order."""
    import pandas

    rows = [{**case.columns, "image": files[case.name].removeprefix("images/")} for case in kept]
    table = pandas.DataFrame(rows, dtype=object).fillna("")
    first = ["image", "patient", "site"] if "patient" in table and table["patient"].any() else ["image", "site"]
    return table[[*first, *sorted(set(table.columns) - {"image", "patient", "site"})]]


def _source_text(found: Found, *, has_patients: bool) -> str:
    import yaml

    values: dict[str, Any] = {"kind": "folder", "table": TABLE, "image_column": "image", "site_column": "site"}
    if has_patients:
        values["patient_column"] = "patient"
    values |= {"image_dir": "images", "mask_dir": "masks", "labels": dict(found.labels)}
    if found.channel_names:
        values["channel_names"] = list(found.channel_names)
    return str(yaml.safe_dump(values, sort_keys=False))
