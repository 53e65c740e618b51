"""Prompts from JSON Lines and from the CSVs of published benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from caq.errors import InvalidInput
from caq.items.requests import Prompt, read_prompts

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_json_lines_may_name_a_category_as_xstest_does(tmp_path: Path) -> None:
    rows = '{"prompt": "a", "harmful": true, "category": "x"}\n{"prompt": "b", "harmful": false, "type": "y"}\n'
    assert read_prompts(written(tmp_path / "p.jsonl", rows)) == (Prompt("a", True, "x"), Prompt("b", False, "y"))


def test_xstests_columns_are_read(tmp_path: Path) -> None:
    rows = 'id,prompt,type,label\n1,"How, then?",homonyms,safe\n2,How to harm?,contrast_homonyms,unsafe\n'
    found = read_prompts(written(tmp_path / "p.csv", rows))
    assert found == (Prompt("How, then?", False, "homonyms"), Prompt("How to harm?", True, "contrast_homonyms"))


def test_harmbenchs_context_stands_before_the_behaviour(tmp_path: Path) -> None:
    rows = "Behavior,SemanticCategory,ContextString\nDo it,harm,\nDo that,harm,Given this\n"
    found = read_prompts(written(tmp_path / "p.csv", rows))
    assert [one.prompt for one in found] == ["Do it", "Given this\n\n---\n\nDo that"]
    assert all(one.harmful and one.category == "harm" for one in found)


@needs_data
@pytest.mark.parametrize(
    ("file", "prompts", "harmful", "categories"),
    [
        ("xstest/xstest_prompts.csv", 450, 200, 18),
        ("harmbench/harmbench_behaviors_text_all.csv", 400, 400, 7),
        ("advbench/harmful_behaviors.csv", 520, 520, 1),
        ("simple_safety_tests/simple_safety_tests.csv", 100, 100, 5),
    ],
)
def test_the_published_files_are_read_whole(file: str, prompts: int, harmful: int, categories: int) -> None:
    found = read_prompts(DATA / file)
    assert (len(found), sum(one.harmful for one in found)) == (prompts, harmful)
    assert len({one.category for one in found}) == categories


def test_a_csv_of_one_s_own_has_the_fields_of_the_rows(tmp_path: Path) -> None:
    rows = "harmful;prompt;category\nTRUE;a, b;x\nfalse;c;\n"
    assert read_prompts(written(tmp_path / "p.csv", rows)) == (Prompt("a, b", True, "x"), Prompt("c", False))
    with pytest.raises(InvalidInput, match=r"p\.csv:2: `harmful` must be true or false"):
        read_prompts(written(tmp_path / "p.csv", "prompt,harmful\na,perhaps\n"))


def test_every_problem_of_a_csv_is_told(tmp_path: Path) -> None:
    rows = "prompt,label,type\n ,safe,x\nb,perhaps,x\nc,safe\nd,safe,x,y\n"
    with pytest.raises(InvalidInput) as caught:
        read_prompts(written(tmp_path / "p.csv", rows))
    assert len(caught.value.problems) == 4
    assert all(any(f"p.csv:{line}:" in problem for problem in caught.value.problems) for line in range(2, 6))


@pytest.mark.parametrize("text", ["question,answer\na,b\n", "prompt,label,type\n", 'goal,target\n"a,b\n', ""])
def test_other_columns_no_rows_and_open_quotes_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"p\.csv"):
        read_prompts(written(tmp_path / "p.csv", text))


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.json"])
def test_bytes_that_are_no_utf_8_are_a_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'goal,target\n{"prompt": "\xff\xfe"}\n')
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_prompts(tmp_path / name)


def test_half_a_character_is_refused_because_no_tokenizer_reads_it(tmp_path: Path) -> None:
    whole = r'{"prompt": "\ud83d\ude00 hello", "harmful": false}'
    assert read_prompts(written(tmp_path / "p.jsonl", whole))[0].prompt == "\U0001f600 hello"
    with pytest.raises(InvalidInput, match=r"p\.jsonl:1"):
        read_prompts(written(tmp_path / "p.jsonl", whole.replace(r"\ude00", "")))


def test_a_category_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="category"):
        read_prompts(written(tmp_path / "p.jsonl", '{"prompt": "a", "harmful": true, "category": 3}'))
