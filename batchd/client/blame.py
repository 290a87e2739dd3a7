"""Why supervisors leave one after the other: the batch that they were asked about is looked at, by then."""

from pathlib import Path

from batchd.errors import BatchdError, JournalDamaged, SupervisorError


def blame(folder: Path, batch: str, otherwise: str) -> BatchdError:
    """Return the error that names the batch's damage, or says `otherwise`. Reads all of the batch."""
    from batchd.edge.damage import check_batch  # noqa: PLC0415  (who meets no damage need not load it)

    place = folder / "batches" / batch
    if not (place / "data.mdb").is_file():  # It was never made.
        return SupervisorError(otherwise)
    try:
        found = check_batch(place)
    except BatchdError:
        return SupervisorError(otherwise)
    if found.is_well:
        return SupervisorError(otherwise)
    return JournalDamaged(
        f"batch {batch} is damaged, and supervisors die of it ({found.findings[0]}): `batchd journal check {batch}` "
        f"names all of it, `batchd journal salvage {batch} --to DIR` brings out what can be read"
    )
