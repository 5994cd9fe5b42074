"""Terms of use: of the code, the weights and the training data of a model, and what they say of commercial use.

Each is a fact with its source and date, and so is what is not known. `commercial` tells whether the terms let
the model be used commercially: `unclear` is never `allowed`. Terms of a data set that bind who holds a copy of the
images (Flickr's, the photographers') stand in its licence and do not make a model of it unclear. What a backbone
was trained on before is told in the note of the weights, and not judged.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

Commercial = Literal["allowed", "unclear", "forbidden"]
NOT_STATED = "not stated"
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Terms(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One licence: an SPDX id, or what the owner's own terms say in words; where that was read, and when.

    `source` and `date` are null where somebody only says so; `commercial` is then `unclear`.
    """

    licence: Text
    source: Text | None
    date: Text | None
    commercial: Commercial
    note: str = ""


class ModelTerms(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Terms of the code that made the weights, of the weights, and of each data set that they were trained on."""

    code: Terms
    weights: Terms
    data: Annotated[dict[Text, Terms], msgspec.Meta(min_length=1)]

    def parts(self) -> Iterator[tuple[str, Terms]]:
        """(name, terms) of code, weights and every data set."""
        yield "code", self.code
        yield "weights", self.weights
        for name, terms in self.data.items():
            yield f"data {name}", terms


_COCO = Terms(
    licence="annotations CC-BY-4.0; images under Flickr's terms of use and the licences of their photographers",
    source="cocodataset.org, terms of use",
    date="2026-11-29",
    commercial="allowed",
    note="no term reaches a model; a copy of the images is another matter, for many of them are CC BY-NC",
)
DATA_TERMS: Mapping[str, Terms] = {
    "coco_2017": _COCO,
    "coco_2017_panoptic": _COCO,
    "objects365": Terms(
        licence="Objects365's own terms of use; images belong to their owners on Flickr",
        source="objects365.org, as others report it; not read",
        date="2026-11-29",
        commercial="unclear",
        note="reported as oriented to research, and as CC BY 4.0 for the annotations: ask before selling a model",
    ),
}


def not_stated(note: str = "") -> Terms:
    """Terms that nobody has told."""
    return Terms(licence=NOT_STATED, source=None, date=None, commercial="unclear", note=note)


def stated(licence: str, note: str = "") -> Terms:
    """What somebody says, without a source."""
    return Terms(licence=licence, source=None, date=None, commercial="unclear", note=note)


def told(licence: str, note: str) -> Terms:
    """What somebody says without a source, under the SPDX id if it has one in other spelling."""
    return stated(_spdx(licence) or (licence if " " in licence else f"stated as {licence}"), note)


def check_terms(terms: ModelTerms) -> None:
    """Rules of each licence.

    Raises:
        ValueError: naming the licence and the rule.
    """
    for part, one in terms.parts():
        where = f"terms, {part}:"
        if " " not in one.licence and _spdx(one.licence) != one.licence:
            near = _spdx(one.licence)
            raise ValueError(
                f"{where} {one.licence!r} is no SPDX id{f'; write {near}' if near else ''}, as Apache-2.0 is; the "
                "owner's own terms are told in more than one word"
            )
        if one.commercial != "unclear" and (one.source is None or one.date is None):
            missing = " and ".join(key for key in ("source", "date") if getattr(one, key) is None)
            raise ValueError(
                f"{where} commercial use is {one.commercial!r} and {missing} is null; without source and date it is "
                "'unclear'"
            )
        if one.commercial == "allowed" and "-NC" in one.licence and " " not in one.licence:
            raise ValueError(f"{where} {one.licence} does not allow commercial use")
        if one.date is not None and not _is_date(one.date):
            raise ValueError(f"{where} date {one.date!r} is no day, as 2026-11-29 is")


def commercial(terms: ModelTerms | None) -> Commercial:
    """What all terms together say of commercial use; a manifest without any is unclear."""
    found = {one.commercial for _, one in terms.parts()} if terms is not None else {"unclear"}
    return "forbidden" if "forbidden" in found else "unclear" if "unclear" in found else "allowed"


def restriction(terms: ModelTerms | None, licence: str) -> str:
    """One line that tells why commercial use is forbidden or unclear; empty where it is allowed.

    Args:
        terms: of a manifest, None for one without.
        licence: the manifest's statement.
    """
    if terms is None:
        return (
            f"commercial use is unclear: the licence ({' '.join(licence.split())}) is told without a source"
        )
    because = {
        word: ", ".join(f"{part} ({one.licence})" for part, one in terms.parts() if one.commercial == word)
        for word in ("forbidden", "unclear")
    }
    text = "; ".join(f"commercial use is {word}: {why}" for word, why in because.items() if why)
    return " ".join(text.split())


def inherited(
    of_weights: tuple[str, ModelTerms | None, str, str] | None,
    code: Terms,
    licence: str | None,
    data: tuple[str, Terms],
) -> ModelTerms:
    """Terms of weights that were trained further: what bound the parent binds them too, and the new data.

    Args:
        of_weights: (name, terms, licence, data set) of the parent's manifest; None for weights from scratch, and for
            those of unknown origin.
        code: of the training.
        licence: of the new weights, as their maker states it; None for the parent's.
        data: name and terms of the new data.
    """
    if of_weights is None:
        return ModelTerms(code=code, weights=stated(licence) if licence else not_stated(), data=dict([data]))
    parent, terms, statement, data_name = of_weights
    if terms is None:
        words = " " in statement or _spdx(statement) == statement
        weights = stated(
            statement if words else f"stated as {statement}", f"as {parent} states it, without a source"
        )
        every = {data_name: not_stated()}
    else:
        weights, every = terms.weights, dict(terms.data)
    if licence is not None and licence != weights.licence:
        bound = f"the parent {parent} is under {weights.licence} ({weights.source or 'no source'})"
        kept: Commercial = "forbidden" if weights.commercial == "forbidden" else "unclear"
        source, date = (weights.source, weights.date) if kept == "forbidden" else (None, None)
        weights = Terms(licence=licence, source=source, date=date, commercial=kept, note=bound)
    name, of_data = data
    while every.get(name, of_data) != of_data:
        name = f"{name}, again"
    return ModelTerms(code=code, weights=weights, data={**every, name: of_data})


def _spdx(text: str) -> str | None:
    """The id as SPDX spells it, None if it has none like it."""
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return None


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
