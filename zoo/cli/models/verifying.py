"""`zoo verify`: compares a model's code and files with the official ones on this machine."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from zoo.registry.manifest import MANIFEST_FILE, Manifest, read_manifest
from zoo.registry.store import builtin_manifests, verify_folder
from zoo.runs import catalogue
from zoo.runs.console import Console, format_table
from zoo.storage.cache import cache_root
from zoo.storage.safetensors_file import DamagedModelError
from zoo.verification.proof import Proof, families, prove

HEADER = ("compared", "cases", "numbers", "largest difference", "tolerance", "")
FAIL = "FAIL"
# what a pulled copy of a built-in model must have in common with the manifest of this package
SAME_AS_BUILTIN = ("name", "version", "family", "model", "label_map", "input")


def verify(
    name: str | None,
    every: bool,
    golden: Path | None,
    markdown: bool,
    registry: Path | None,
    console: Console,
) -> bool:
    """Compares a model's family with the official numbers; of a model with files here, hashes each too.

    Args:
        name: model of the zoo, name in the registry, or a family.
        every: all families instead.
        golden: directory of official numbers; None for those that come with the package.
        markdown: print the table of zoo/verification/README.md.
        registry: the user's.
        console: for the user.

    Returns:
        Whether everything is equal and no file differs from its manifest.

    Raises:
        ValueError: no such model or family.
    """
    files: list[dict[str, Any]] | None = None
    chosen = families()
    if not every:
        if name is None:
            raise ValueError(f"verify what? a model of `zoo list`, or --all for {', '.join(chosen)}")
        family, folder = (name, None) if name in chosen else place_of(name, registry)
        if folder is not None:
            files = check_files(folder, console)
        if family not in chosen:
            missing = f"no official numbers of {family} to compare with"
            if files is None:
                raise ValueError(f"{name} is not pulled, and there are {missing}; there is nothing to verify")
            console.say(missing)
        elif files is None and name != family:
            console.say(f"{name} is not pulled, so there is no file to check; its code is compared below")
        chosen = [family] if family in chosen else []
    proofs = [run(family, golden, markdown, console) for family in chosen]
    passed = all(proof.passed for proof in proofs) and all(f["passed"] for f in files or [])
    if markdown:
        console.say(readme_table(proofs))
    console.result({"files": files, "proofs": [proof.to_dict() for proof in proofs], "passed": passed})
    if not passed:
        print("error: not equal: see the FAIL rows", file=sys.stderr)
    return passed


def place_of(name: str, registry: Path | None) -> tuple[str, Path | None]:
    """Family of a model and the folder of its files, None for one of the zoo that is not pulled.

    Raises:
        ValueError: no such model.
    """
    registered = catalogue.find_registered(name, registry)
    if registered is not None:
        return registered["family"], Path(registered["folder"])
    entry = catalogue.find(name, registry)
    folder = cache_root() / entry["full_name"] / str(entry.get("version"))
    return entry["family"], folder if (folder / MANIFEST_FILE).is_file() else None


def check_files(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Reads the manifest strictly, hashes every file, and compares with the package's manifest if it has one.

    Raises:
        ManifestError: the manifest itself breaks a rule.
    """
    manifest = read_manifest(folder / MANIFEST_FILE)
    facts = [_manifest_row(manifest)]
    for file in manifest.files:
        fault = ""
        try:
            verify_folder(folder, msgspec.structs.replace(manifest, files=[file]))
        except DamagedModelError as error:
            fault = str(error)
        facts.append({"path": file.path, "size": file.size, "sha256": file.sha256, "fault": fault})
    rows = [
        (f["path"], f["size"], f["sha256"][:16], FAIL if f["fault"] else "pass") for f in facts
    ]  # fmt: skip
    console.say(f"{manifest.name}:{manifest.version}  {folder}")
    _table(("file", "bytes", "sha256", ""), rows, [f["fault"] for f in facts if f["fault"]], console)
    return [{**f, "passed": not f["fault"]} for f in facts]


def _manifest_row(manifest: Manifest) -> dict[str, Any]:
    """Whether the manifest lists files and agrees with the one in this package, if there is one."""
    fault = "" if manifest.files else "the manifest lists no files"
    builtin = builtin_manifests().get(manifest.name)
    if builtin is not None:
        ours = read_manifest(builtin)
        differ = [key for key in SAME_AS_BUILTIN if getattr(ours, key) != getattr(manifest, key)]
        if differ:
            fault = f"{MANIFEST_FILE} differs from this package's in {', '.join(differ)}"
    return {"path": MANIFEST_FILE, "size": None, "sha256": "", "fault": fault}


def run(family: str, golden: Path | None, quiet: bool, console: Console) -> Proof:
    """Proves one family and prints its table."""
    proof = prove(family) if golden is None else prove(family, golden)
    if quiet:
        return proof
    console.say(f"{family} against {proof.source}")
    rows = [
        (s.name, len(s.cases), len(s.comparisons), f"{s.worst.difference:.1e}", f"{s.worst.tolerance:.0e}",
         "pass" if s.passed else FAIL)
        for s in proof.subjects
    ]  # fmt: skip
    faults = [
        f"{failure.what}: {failure.difference:.3g} > {failure.tolerance:.0e}"
        for subject in proof.subjects
        for failure in subject.failures[:5]
    ]
    _table(HEADER, rows, faults, console)
    for subject in proof.subjects:
        if subject.source != proof.source:
            console.say(
                f"  {subject.name}: numbers of {subject.source}, whose code this family's repository copied"
            )
    console.say()
    return proof


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]], faults: list[str], console: Console) -> None:
    """Rows that fail are red on a terminal; the faults follow."""
    stream = sys.stderr if console.as_json else sys.stdout
    colour = stream.isatty() and "NO_COLOR" not in os.environ
    for line in [*format_table(header, rows).splitlines(), *(f"  {FAIL} {fault}" for fault in faults)]:
        red = colour and (line.endswith(FAIL) or line.startswith(f"  {FAIL} "))
        console.say(line, red=red)


def readme_table(proofs: list[Proof]) -> str:
    """What is compared with what: the parts of a proof that no machine's rounding moves."""
    lines = ["| family | official code | compared | cases | numbers | result |", "|---|---|---|---|---|---|"]
    for proof in proofs:
        for subject in proof.subjects:
            result = "equal" if subject.passed else "**not equal**"
            lines.append(
                f"| {proof.family} | {short(subject.source)} | {subject.name} | {len(subject.cases)} | "
                f"{len(subject.comparisons)} | {result} |"
            )
    return "\n".join(lines)


def short(source: str) -> str:
    """`repository @ commit` with seven digits of the commit."""
    return re.sub(r" @ ([0-9a-f]{7})[0-9a-f]*", r"@\1", source)
