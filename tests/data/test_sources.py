"""Where text comes from: names, their kept copies, and every kind of local file; with and without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from caq.data import SOURCES, read_text, sources
from caq.data.sources import BATCH, Named, holds_documents, read_documents
from caq.errors import InvalidInput

TEXTS = ["the cat sat on the mat", "a dog ran to the house", "how do I bake a cake"]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in TEXTS]
WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2"


def parquet(directory: Path, data: Dataset) -> Path:
    data.to_parquet(directory / "rows.parquet")
    return directory / "rows.parquet"


def json_lines(directory: Path, data: Dataset) -> Path:
    data.to_json(directory / "rows.jsonl")
    return directory / "rows.jsonl"


def json_array(directory: Path, data: Dataset) -> Path:
    (directory / "rows.json").write_text(json.dumps(list(data)))
    return directory / "rows.json"


def saved(directory: Path, data: Dataset) -> Path:
    data.save_to_disk(directory / "saved")
    return directory / "saved"


def saved_splits(directory: Path, data: Dataset) -> Path:
    DatasetDict(test=data.select([0]), train=data).save_to_disk(directory / "splits")
    return directory / "splits"


def repository(directory: Path, data: Dataset) -> Path:
    (directory / "repository" / "data").mkdir(parents=True)
    data.to_parquet(directory / "repository" / "data" / "train-00000-of-00001.parquet")
    data.select([0]).to_parquet(directory / "repository" / "data" / "test-00000-of-00001.parquet")
    return directory / "repository"


def folder_of_lines(directory: Path, data: Dataset) -> Path:
    (directory / "folder").mkdir()
    for index in range(len(data)):
        data.select([index]).to_json(directory / "folder" / f"part-{index}.jsonl")
    return directory / "folder"


def rows_of(source: str | Path, kind: str) -> list[object]:
    return [record.fields[kind] for lot in read_documents(source) for record in lot]


def problems_of(read: Callable[[], object]) -> Sequence[str]:
    with pytest.raises(InvalidInput) as caught:
        read()
    return caught.value.problems


@pytest.mark.parametrize("write", [parquet, json_lines, json_array, saved, saved_splits, repository, folder_of_lines])
def test_every_kind_of_data_set_gives_its_rows_in_order(write: Callable[[Path, Dataset], Path], tmp_path: Path) -> None:
    data = Dataset.from_dict({"text": TEXTS, "messages": CHATS, "source": ["x", "y", "z"]})
    texts = write(tmp_path, data.remove_columns("messages"))
    assert holds_documents(texts)
    assert rows_of(texts, "text") == TEXTS
    assert read_text(texts) == "\n\n".join(TEXTS)
    (tmp_path / "chats").mkdir()
    chats = write(tmp_path / "chats", data.remove_columns("text"))
    assert rows_of(chats, "messages") == CHATS
    assert "not every row has a text" in problems_of(lambda: read_text(chats))[0]


def test_wrong_columns_splits_and_files_are_refused_by_name(tmp_path: Path) -> None:
    wrong = parquet(tmp_path, Dataset.from_dict({"prompt": ["x"], "answer": ["y"]}))
    (problem,) = problems_of(lambda: list(read_documents(wrong)))
    assert problem.endswith(
        "rows.parquet: has the columns prompt, answer; needs text, messages, conversations or conversation"
    )
    splits = DatasetDict({name: Dataset.from_dict({"text": TEXTS}) for name in ("even", "odd")})
    splits.save_to_disk(tmp_path / "splits")
    assert "has the splits even, odd" in problems_of(lambda: list(read_documents(tmp_path / "splits")))[0]
    assert rows_of(tmp_path / "splits" / "odd", "text") == TEXTS
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / "empty").mkdir()
    for name, kind in {"broken.parquet": "Parquet", "empty": "a data set"}.items():
        (problem,) = problems_of(lambda name=name: list(read_documents(tmp_path / name)))  # type: ignore[misc]
        assert problem.startswith(f"{tmp_path / name}: not readable as {kind}: ")
        assert "caq-data-" not in problem
    nothing = parquet(tmp_path, Dataset.from_dict({"text": TEXTS}).select([]))
    assert "is empty" in problems_of(lambda: list(read_documents(nothing)))[0]


@pytest.mark.parametrize("name", ["run [v2]", "with spaces", "st*r", "qu?", "{a,b}", "100%", "x::y"])
@pytest.mark.parametrize("write", [repository, folder_of_lines, saved])
def test_a_name_is_no_pattern(name: str, write: Callable[[Path, Dataset], Path], tmp_path: Path) -> None:
    plain = write(tmp_path, Dataset.from_dict({"text": TEXTS}))
    named = plain.rename(tmp_path / name)
    (named / ".git").mkdir()
    assert rows_of(named, "text") == TEXTS


def test_a_csv_and_rows_without_a_suffix_are_documents(tmp_path: Path) -> None:
    for name, content in {"rows.csv": "id;text\n1;a, b\n2;c\n", "rows": '{"text": "a, b"}\n{"text": "c"}\n'}.items():
        (tmp_path / name).write_text(content)
        assert holds_documents(tmp_path / name)
        assert rows_of(tmp_path / name, "text") == ["a, b", "c"]


def test_plain_text_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b" a\r\n\nb \n")
    assert not holds_documents(tmp_path / "text.txt")
    assert read_text(tmp_path / "text.txt") == " a\r\n\nb \n"
    (tmp_path / "binary.txt").write_bytes(b"\x80\xfe\x00")
    assert "not UTF-8 text" in problems_of(lambda: read_text(tmp_path / "binary.txt"))[0]


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    for source, nearest in {"wikitext": "wikitext2", "ultra-chat": "ultrachat", "slef": "self"}.items():
        (problem,) = problems_of(lambda source=source: read_text(source))  # type: ignore[misc]
        assert problem.endswith(f"no text of that name; did you mean {nearest}?")
    (problem,) = problems_of(lambda: holds_documents("/no/such/thing"))
    assert problem.endswith("known: wikitext2, wikitext2-test, c4, c4-test, pile, ultrachat, self")
    assert "responses, to calibrate on" in problems_of(lambda: read_text("self"))[0]


def test_a_local_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wikitext2").write_text("a local file")
    monkeypatch.chdir(tmp_path)
    assert read_text("wikitext2") == "a local file"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands in for the hub: its rows come through `datasets`, streamed, as the hub's do."""
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    rows = Dataset.from_dict(
        {"text": [f"text {number}\n" for number in range(2 * BATCH + 1)], "id": range(2 * BATCH + 1)}
    )
    rows.to_parquet(tmp_path / "hub" / "train.parquet")
    named = {
        "joined": Named(str(tmp_path / "hub"), joined="\n\n"),
        "first": Named(str(tmp_path / "hub"), joined=" ", first=2),
        "streamed": Named(str(tmp_path / "hub"), files="train.parquet"),
    }
    monkeypatch.setattr(sources, "SOURCES", {**SOURCES, **named})
    return tmp_path / "hub"


def test_a_named_text_is_joined_and_kept(hub: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    text = "\n\n".join(f"text {number}\n" for number in range(2 * BATCH + 1))
    assert read_text("joined", cache_dir=cache) == text
    assert read_text("first", cache_dir=cache) == "text 0\n text 1\n"
    (hub / "train.parquet").unlink()
    assert read_text("joined", cache_dir=cache) == text
    kept = cache / "texts" / "joined.json"
    kept.write_text(kept.read_text().replace("text 7", "text 8", 1))
    assert "cannot be downloaded" in problems_of(lambda: read_text("joined", cache_dir=cache))[0]


def test_a_named_set_of_documents_is_streamed_and_kept_lot_by_lot(hub: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = next(iter(read_documents("streamed", cache_dir=cache)))
    assert [len(first), first[0].fields] == [BATCH, {"text": "text 0\n"}]
    assert [path.name for path in (cache / "texts" / "streamed").iterdir()] == ["00000.json"]
    lots = list(read_documents("streamed", cache_dir=cache))
    assert [len(lot) for lot in lots] == [BATCH, BATCH, 1]
    assert lots[2][0].fields == {"text": f"text {2 * BATCH}\n"}
    (hub / "train.parquet").unlink()
    assert [record.fields for lot in read_documents("streamed", cache_dir=cache) for record in lot] == [
        record.fields for lot in lots for record in lot
    ]
    (problem,) = problems_of(lambda: read_text("streamed", cache_dir=cache))
    assert problem.startswith("streamed: holds documents, not one running text; give a file, or one of wikitext2, ")


def test_a_kept_batch_that_was_damaged_is_named_and_downloaded_again(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read() -> list[object]:
        return [record.fields for lot in read_documents("streamed", cache_dir=tmp_path / "cache") for record in lot]

    whole, kept = read(), tmp_path / "cache" / "texts" / "streamed" / "00001.json"
    content = kept.read_bytes()
    for broken in (content[:-5], b"\xff" + content):
        kept.write_bytes(broken)
        assert read() == whole
        assert f"{kept}: is damaged, or of another run; it is made again" in capsys.readouterr().err
        assert kept.read_bytes() == content


def test_what_a_killed_writer_left_in_the_cache_is_swept(hub: Path, tmp_path: Path) -> None:
    texts = tmp_path / "cache" / "texts"
    (texts / "streamed").mkdir(parents=True)
    for partial in (texts / ".joined.json.partial-01234567", texts / "streamed" / ".00000.json.partial-01234567"):
        partial.write_text("half")
        next(iter(read_documents("streamed", cache_dir=tmp_path / "cache")))
        read_text("first", cache_dir=tmp_path / "cache")
        assert not partial.exists()
        (texts / "first.json").unlink()
    assert sorted(path.name for path in texts.rglob("*")) == ["00000.json", "streamed"]


OFFLINE = """
import sys
from caq.data import read_text
from caq.data.sources import read_documents
from caq.errors import InvalidInput
for name in ("wikitext2", "c4", "ultrachat"):
    try:
        list(read_documents(name)) if name != "wikitext2" else read_text(name)
    except InvalidInput as error:
        print(error)
for path in sys.argv[1:]:
    print(sum(len(lot) for lot in read_documents(path)))
"""


def test_without_a_network_names_are_refused_and_paths_are_read(tmp_path: Path) -> None:
    data = Dataset.from_dict({"text": TEXTS})
    paths = [str(write(tmp_path, data)) for write in (parquet, saved, repository, folder_of_lines)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "CAQ_CACHE": str(tmp_path / "caq")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *paths], env=environment, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert said[3:] == ["3"] * 4
    for name, line in zip(("wikitext2", "c4", "ultrachat"), said[:3], strict=True):
        hub = SOURCES[name].repository
        assert line.startswith(f"{name}: cannot be downloaded from the hub ({hub}; HF_HUB_OFFLINE is set")
        assert line.endswith("give the path of a .txt, .jsonl or .parquet file or of a data set's directory instead")


@pytest.mark.skipif(not WIKITEXT.exists(), reason="shared data is not here")
def test_wikitext2_by_rows_is_the_text_that_the_convention_joins(tmp_path: Path) -> None:
    # The hub's rows are the raw file's lines, the blank ones emptied.
    lines = (WIKITEXT / "wiki.test.raw").read_text(encoding="utf-8")[:20_000].splitlines(keepends=True)
    rows = [line if line.strip() else "" for line in lines]
    path = parquet(tmp_path, Dataset.from_dict({"text": rows}))
    assert read_text(path) == "\n\n".join(rows)
