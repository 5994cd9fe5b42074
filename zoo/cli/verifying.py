"""`zoo verify`: the user's own proof, on their machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.cli import catalogue
from zoo.cli.console import Console
from zoo.registry.manifest import read_manifest
from zoo.registry.store import MANIFEST_FILE, verify_folder
from zoo.verification.proof import Proof, families, prove

HEADER = ("compared", "cases", "numbers", "largest difference", "tolerance", "")


def verify(
    name: str | None, every: bool, golden: Path | None, markdown: bool, registry: Path | None, console: Console
) -> None:
    """Compares a model's family with the official numbers; of a registered model, hashes every file too.

    Args:
        name: model of the zoo, name in the registry, or a family.
        every: all families instead.
        golden: directory of official numbers; None for those that come with the package.
        markdown: print README's table.
        registry: the user's.
        console: for the user.

    Raises:
        ValueError: no such model or family.
        VerificationError: a number is outside its tolerance.
        DamagedModelError: a file is not what its manifest says.
    """
    document: dict[str, Any] = {"files": None}
    chosen = families()
    if not every:
        if name is None:
            raise ValueError(f"verify what? a model of `zoo list`, or --all for {', '.join(chosen)}")
        registered = catalogue.find_registered(name, registry) if name not in chosen else None
        if registered is not None:
            document["files"] = check_files(Path(registered["folder"]), console)
        chosen = [name if name in chosen else (registered or catalogue.find(name))["family"]]
    proofs = [run(family, golden, markdown, console) for family in chosen]
    document["proofs"] = [proof.to_dict() for proof in proofs]
    document["passed"] = all(proof.passed for proof in proofs)
    if markdown:
        console.say(readme_table(proofs))
    console.result(document)
    if not document["passed"]:
        raise VerificationError("not equal to the official code: see the failed rows above")


class VerificationError(ValueError):
    """A family is not equal to its official code."""


def check_files(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Reads the manifest strictly and hashes every file of a registered version."""
    manifest = read_manifest(folder / MANIFEST_FILE)
    verify_folder(folder, manifest)
    for file in manifest.files:
        console.say(f"{file.path}  {file.size} bytes  sha256 {file.sha256[:16]}... checked")
    return [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.files]


def run(family: str, golden: Path | None, quiet: bool, console: Console) -> Proof:
    """Proves one family and prints its table."""
    arguments = {} if golden is None else {"root": golden}
    proof = prove(family, **arguments)
    if quiet:
        return proof
    console.say(f"{family} against {proof.source}")
    rows = [
        (s.name, len(s.cases), len(s.comparisons), f"{s.worst.difference:.1e}", f"{s.worst.tolerance:.0e}",
         "pass" if s.passed else "FAIL")
        for s in proof.subjects
    ]  # fmt: skip
    console.table(HEADER, rows)
    for subject in proof.subjects:
        for failure in subject.failures[:5]:
            console.say(f"  FAIL {failure.what}: {failure.difference:.3g} > {failure.tolerance:.0e}")
    return proof


def readme_table(proofs: list[Proof]) -> str:
    """What is compared with what: the parts of a proof that no machine's rounding moves."""
    lines = ["| family | official code | compared | cases | numbers | result |", "|---|---|---|---|---|---|"]
    for proof in proofs:
        for subject in proof.subjects:
            result = "equal" if subject.passed else "**not equal**"
            lines.append(
                f"| {proof.family} | {proof.source} | {subject.name} | {len(subject.cases)} | "
                f"{len(subject.comparisons)} | {result} |"
            )
    return "\n".join(lines)
