"""Where text comes from: the data sets known by name, or a local path.

A source is one running text (a text file, or a name whose rows are joined as the field's tables do) or documents of
their own (a file of rows, a directory, the other names). What a name gives is kept in `{cache}/texts`:
the next run needs no network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from caq.data.documents import KINDS
from caq.data.files import holds_records, read_rows
from caq.errors import InvalidInput, first_line, nearest
from caq.files.cache import cache_root
from caq.files.content import located
from caq.files.content import read_text as read_file
from caq.files.kept import used
from caq.files.lock import turn
from caq.files.records import Record
from caq.files.seals import SealedObject
from caq.recipe.sections import SELF

#: Documents that are streamed and kept together: at some 450 tokens a document, one batch of C4 fills 128 × 2,048.
BATCH = 2_000


@dataclass(frozen=True)
class Named:
    """A data set of the hub.

    Attributes:
        repository: on the hub.
        configuration: of the repository; None takes its only one.
        split: of the data set.
        files: read only these of the repository; None reads all of the split's.
        joined: the rows are one running text, joined by this; None: they are documents of their own.
        first: read only so many rows.
    """

    repository: str
    configuration: str | None = None
    split: str = "train"
    files: str | None = None
    joined: str | None = None
    first: int | None = None


SOURCES: Mapping[str, Named] = {
    "wikitext2": Named("Salesforce/wikitext", "wikitext-2-raw-v1", joined="\n\n"),
    "wikitext2-test": Named("Salesforce/wikitext", "wikitext-2-raw-v1", "test", joined="\n\n"),
    "c4": Named("allenai/c4", files="en/c4-train.00000-of-01024.json.gz"),
    # GPTQ's convention, less its cut after 256 windows of 2,048 tokens, which these documents hardly exceed.
    "c4-test": Named("allenai/c4", files="en/c4-validation.00000-of-00008.json.gz", joined=" ", first=1_100),
    "pile": Named("NeelNanda/pile-10k"),
    "ultrachat": Named("HuggingFaceH4/ultrachat_200k", split="train_sft"),
}


def holds_documents(source: str | Path) -> bool:
    """Return whether `source` holds documents of their own rather than one running text.

    Raises:
        InvalidInput: no such file, directory or name.
    """
    located = _find(source)
    return located.joined is None if isinstance(located, Named) else holds_records(located)


def read_text(source: str | Path, *, cache_dir: str | Path | None = None) -> str:
    """Return a source as one text: a file as it is; the texts of documents joined by blank lines.

    A name's text is kept in `cache_dir`, by default `$CAQ_CACHE` or `~/.cache/caq`.

    Raises:
        InvalidInput: no such file or name, unreadable, not text, or nothing but white space.
    """
    located = _find(source)
    text = _named_text(str(source), located, cache_dir) if isinstance(located, Named) else _local_text(located)
    if not text.strip():
        raise InvalidInput(f"{source}: is empty; give a text")
    return text


def read_documents(source: str | Path, *, cache_dir: str | Path | None = None) -> Iterator[Sequence[Record]]:
    """Yield the documents of a source in batches: a local one's all at once, a name's as they are asked for.

    Raises:
        InvalidInput: no such file or name, unreadable, or no documents.
    """
    located = _find(source)
    if isinstance(located, Named):
        yield from _named_batches(str(source), located, cache_root(cache_dir) / "texts" / str(source))
    else:
        yield read_rows(located)


def _find(source: str | Path) -> Path | Named:
    """Return the path if it exists, or else the data set of that name."""
    place = located(source)
    if os.path.exists(place):  # Path's own raises at a name that is too long
        return place
    if str(source) in SOURCES:
        return SOURCES[str(source)]
    if str(source) == SELF:
        raise InvalidInput(f"{SELF}: names the aligned model's responses, to calibrate on; here, give a text")
    known = nearest(str(source), (*SOURCES, SELF))
    raise InvalidInput(f"{source}: no such file or directory, and no text of that name{known}")


def _local_text(path: Path) -> str:
    if not holds_records(path):
        return read_file(path)
    texts = [record.fields.get("text") for record in read_rows(path)]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidInput(f"{path}: not every row has a text; give a file of plain text")
    return "\n\n".join(map(str, texts))


def _named_text(name: str, source: Named, cache_dir: str | Path | None) -> str:
    if source.joined is None:
        running = ", ".join(known for known, named in SOURCES.items() if named.joined is not None)
        raise InvalidInput(f"{name}: holds documents, not one running text; give a file, or one of {running}")

    joined = source.joined

    def made() -> dict[str, object]:
        return {"text": joined.join(row["text"] for row in _download(name, source, 0, source.first))}

    texts = cache_root(cache_dir) / "texts"
    return str(_kept(texts / f"{name}.json", name, texts, made)["text"])


def _named_batches(name: str, source: Named, directory: Path) -> Iterator[Sequence[Record]]:
    for number in count():

        def made(skipped: int = number * BATCH) -> dict[str, object]:
            return {"rows": _download(name, source, skipped, BATCH)}

        # One turn for all texts: the sweep reaches into every directory.
        rows = _kept(directory / f"{number:05d}.json", f"{name} {number}", directory.parent, made)["rows"]
        start = number * BATCH + 1
        yield [Record(f"{name}: document {place:,}", row) for place, row in enumerate(rows, start)]
        if len(rows) < BATCH:
            return


def _kept(path: Path, identity: str, held: Path, make: Callable[[], dict[str, object]]) -> dict[str, Any]:
    """Return what is kept of a name, or else make it while a directory is held; what is damaged is made again."""
    file = SealedObject(path, f"text {identity}")
    kept = file.peek()
    if kept is None:
        with turn(held):
            # Another run may have made it in the meantime.
            kept = file.read()
            if kept is None:
                kept = make()
                file.write(kept)
    used(path)
    return kept


def _download(name: str, source: Named, skipped: int, wanted: int | None) -> list[dict[str, Any]]:
    """Return rows of the hub's data set, in its order, less the columns that are not read here."""
    from datasets import load_dataset
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    files: dict[str, Any] = {} if source.files is None else {"data_files": {source.split: source.files}}
    try:
        # Only a data set that was loaded whole is in datasets' own cache.
        options = {"split": source.split, "streaming": not offline, **files}
        rows = load_dataset(source.repository, source.configuration, **options).skip(skipped)
        chosen = rows if wanted is None else rows.take(wanted)
        return [{kind: row[kind] for kind in KINDS if kind in row} for row in chosen]
    except Exception as error:  # datasets documents no closed set of errors
        note = "; HF_HUB_OFFLINE is set, so only caches were searched" if offline else ""
        problem = f"{name}: cannot be downloaded from the hub ({source.repository}{note}): {first_line(error)}"
        way_out = "give the path of a .txt, .jsonl or .parquet file or of a data set's directory instead"
        raise InvalidInput(f"{problem}; {way_out}") from error
