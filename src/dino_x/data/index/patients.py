"""One key a patient, where some files name who issued the number and others do not.

A reader gives a patient's key as that of the number, and of the one who issued it behind a dash, if
the file names them. If only one issuer is known of a number, files with and without it are of one
patient; numbers that several have issued are several patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dino_x.data.index.headers import Record

# From this many series on, a single patient is remarked on.
_MANY_SERIES = 10


def one_key_a_patient(records: Sequence[Record]) -> list[Record]:
    """The records with equal keys for equal patients, by the rule at the top."""
    keys = (ref.patient for record in records for ref in record.refs if ref.patient is not None)
    alone = sole_issuers(keys)
    return [_merged(record, alone) for record in records]


def sole_issuers(keys: Iterable[str]) -> set[str]:
    """The keys of numbers that one issuer alone is known of.

    Args:
        keys: of patients; those that name no issuer make no difference.
    """
    issuers: dict[str, set[str]] = {}
    for key in keys:
        number, dash, issuer = key.partition("-")
        if dash:
            issuers.setdefault(number, set()).add(issuer)
    return {number for number, known in issuers.items() if len(known) == 1}


def _merged(record: Record, alone: set[str]) -> Record:
    """The record with the issuer taken off the keys of numbers that only one has issued."""
    if not any(ref.patient is not None and "-" in ref.patient for ref in record.refs):
        return record
    refs = []
    for ref in record.refs:
        number, dash, _ = (ref.patient or "").partition("-")
        refs.append(replace(ref, patient=number) if dash and number in alone else ref)
    return replace(record, refs=tuple(refs))


def remark_on_patients(records: Sequence[Record]) -> str | None:
    """A sentence if all images seem to be of one patient although they are many; else None."""
    patients, series = set(), set()
    for record in records:
        for ref in record.refs:
            patients.add(ref.patient)
            series.add((ref.series, None if ref.series else ref.path))
    if len(patients) != 1 or None in patients:
        return None
    return one_patient_in_words(len(series))


def one_patient_in_words(series: int) -> str | None:
    """The sentence about one patient of so many series; None if they are few."""
    if series < _MANY_SERIES:
        return None
    return (
        f"all {series:,} series have the same PatientID: if it stands for several patients,"
        " splits by patient mean nothing here"
    )
