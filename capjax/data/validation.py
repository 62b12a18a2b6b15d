"""Checks of a dataset before training, of a source before it is prepared or of what was prepared."""

from tqdm import tqdm

from capjax.data import CaptionDataset
from capjax.data.caption_text import clean_caption
from capjax.data.findings import KINDS, Findings
from capjax.data.image_files import ImageFile
from capjax.data.ingestion import DuplicateWatch, Verdict, examine, in_parallel, note_verdict, verdict_of
from capjax.data.listing import Listing
from capjax.images import ImageError


def validate_listing(listing: Listing, num_workers: int) -> Findings:
    """Decode every image of a source in full and add the trouble to `listing.found`, which is returned.

    Args:
        listing: of the source; without files, only its captions were checked.
        num_workers: threads that decode.
    """
    watch = DuplicateWatch(listing.found)
    for split, records in listing.splits.items():
        if listing.files is None:
            continue
        files = [listing.files[record.file_name] for record in records]
        verdicts = tqdm(in_parallel(_examine_file, files, num_workers), split, len(files), unit=" images", disable=None)
        for record, verdict in zip(records, verdicts, strict=True):
            note_verdict(record.file_name, verdict, listing.found)
            watch.see(split, record.file_name, verdict)
    return listing.found


def validate_dataset(dataset: CaptionDataset, num_workers: int) -> Findings:
    """Decode every image of a prepared dataset in full and check its captions.

    Args:
        dataset: as loaded.
        num_workers: threads that decode.

    Raises:
        CapjaxError: if the dataset cannot be read.
    """
    found = Findings()
    watch = DuplicateWatch(found)
    for split in dataset.splits:
        records = dataset.records(split)
        for record in records:
            for caption in record.captions:
                clean_caption(caption, record.file_name, found)
        if not dataset.has_images:
            continue
        verdicts = in_parallel(_examine_bytes, dataset.images(split), num_workers)
        progress = tqdm(verdicts, split, len(records), unit=" images", disable=None)
        for record, verdict in zip(records, progress, strict=True):
            note_verdict(record.file_name, verdict, found)
            watch.see(split, record.file_name, verdict)
    return found


def passes(found: Findings) -> bool:
    """Tell whether everything reaches the dataset, if converted or repaired, and no split leaks into another."""
    return not found.count("duplicate") and all(KINDS[kind].action != "left out" for kind, _ in found)


def _examine_file(file: ImageFile) -> Verdict:
    try:
        data = file.read()
    except ImageError as error:
        return verdict_of(error)
    return _examine_bytes(data)


def _examine_bytes(data: bytes) -> Verdict:
    return examine(data, convert=False)[0]
