"""What measuring leaves: every line is known to be as it was written, in its place, of its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from caq.errors import InvalidInput
from caq.measure import store


def test_a_damaged_line_is_named_and_made_again_with_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "BATCH", 2)
    path, starts = tmp_path / "quantized-1" / "facts.jsonl", list[int]()

    def make(batch: slice) -> list[store.Row]:
        starts.append(batch.start)
        return [{"id": number, "chosen": number % 2} for number in range(batch.start, batch.stop)]

    store.fill(path, 5, make)
    whole = path.read_bytes()
    assert store.filled(path, 5)
    assert [row["id"] for row in store.read_rows(path, 5)] == list(range(5))
    path.write_bytes(whole.replace(b'{"id": 3, "chosen": 1', b'{"id": 3, "chosen": 0'))
    assert not store.filled(path, 5)
    with pytest.raises(InvalidInput, match=r"facts\.jsonl:4: is not as it was written"):
        store.read_rows(path)
    starts.clear()
    store.fill(path, 5, make)
    assert starts == [2, 4]
    assert f"{path}:4: is damaged; it is made again from there" in capsys.readouterr().err
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["emptied", "lines exchanged", "another model's"])
def test_lines_in_another_place_do_not_count(change: str, tmp_path: Path) -> None:
    paths = [tmp_path / arm / "facts.jsonl" for arm in ("quantized-1", "quantized-2")]
    for path in paths:
        store.fill(path, 2, lambda batch: [{"id": number} for number in range(batch.start, batch.stop)])
    first, second = paths[0].read_bytes().splitlines(keepends=True)
    changed = {"emptied": b"", "lines exchanged": second + first, "another model's": paths[1].read_bytes()}
    paths[0].write_bytes(changed[change])
    assert not store.filled(paths[0], 2)


def test_reports_of_others_are_not_replaced_and_ours_are(tmp_path: Path) -> None:
    store.require_reports(tmp_path / "new", ["report.html"])
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(InvalidInput, match=r"report\.html: is not of CAQ's and would be replaced"):
        store.require_reports(tmp_path, ["report.html", "results.json"])
    store.require_reports(tmp_path, ["results.json"])
    (tmp_path / store.ARMS).mkdir()  # as a run leaves that was killed before its first report
    store.require_reports(tmp_path, ["report.html"])
    (tmp_path / store.MANIFEST).write_text("{}")
    with pytest.raises(InvalidInput, match=r"comparison\.json: is not as this version writes it"):
        store.require_reports(tmp_path, ["report.html"])
