"""One key a patient, where some files name who issued the number and others do not.

A reader gives a patient's key as that of the number, and of the one who issued it behind a dash, if
the file names them. If only one issuer is known of a number, files with and without it are of one
patient; numbers that several have issued are several patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dino_x.data.index.headers import Record

# From this many series on, a single patient is remarked on.
_MANY_SERIES = 10


def one_key_a_patient(records: Sequence[Record]) -> list[Record]:
    """The records with equal keys for equal patients, by the rule at the top."""
    issuers: dict[str, set[str]] = {}
    for record in records:
        for ref in record.refs:
            if ref.patient is not None:
                number, _, issuer = ref.patient.partition("-")
                issuers.setdefault(number, set()).add(issuer)
    alone = {number for number, known in issuers.items() if len(known - {""}) == 1}
    return [_merged(record, alone) for record in records]


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
    if len(patients) != 1 or None in patients or len(series) < _MANY_SERIES:
        return None
    return (
        f"all {len(series):,} series have the same PatientID: if it stands for several patients,"
        " splits by patient mean nothing here"
    )
