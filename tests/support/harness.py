"""Task files for lm-eval over the shared data: MMLU as a group of two subjects, and a task of each output type."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lm_eval

DATA = Path(__file__).parents[3] / "shared" / "data"
SUBJECTS = ("astronomy", "high_school_biology")
ITEMS = 12
# Characters; a question of the test split fits into the bundled pair's context, five examples do not.
LONGEST = {"dev": 2000, "validation": 350}


def write_tasks(directory: Path) -> Path:
    """Write the files and the data that they name; return the directory."""
    for split in ("dev", "validation"):
        rows = [row for row in read_lines(DATA / "mmlu" / f"{split}.jsonl") if len(str(row)) < LONGEST[split]]
        for subject in SUBJECTS:
            own = [row for row in rows if row["subject"] == subject]
            write_lines(directory / f"{subject}_{split}.jsonl", own[:ITEMS])
            (directory / f"{subject}.yaml").write_text(mmlu_subject(subject, directory), encoding="utf-8")
    (directory / "group.yaml").write_text(
        f"group: mmlu_two\ntask: [{', '.join(f'two_{one}' for one in SUBJECTS)}]\n"
        "aggregate_metric_list:\n  - metric: acc\n",
        encoding="utf-8",
    )
    lambada = [*read_lines(DATA / "multiple_choice" / "lambada_openai.jsonl")][:ITEMS]
    write_lines(directory / "lambada.jsonl", lambada)
    for name, text in TASKS.items():
        content = f"task: {name}\n{source({'test': str(directory / 'lambada.jsonl')})}test_split: test\n{text}"
        (directory / f"{name}.yaml").write_text(content, encoding="utf-8")
    return directory


def mmlu_subject(subject: str, directory: Path) -> str:
    """lm-eval's own prompt for MMLU, on local files."""
    files = {split: str(directory / f"{subject}_{name}.jsonl") for split, name in SPLITS.items()}
    template = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default" / "_default_template_yaml"
    return f"include: {template}\ntask: two_{subject}\n{source(files)}"


SPLITS = {"test": "validation", "dev": "dev"}
TASKS = {
    "last_word": """output_type: loglikelihood
doc_to_text: context
doc_to_target: "{{' ' + continuation}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
    "story": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context[:200]}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
""",
    "ending": """output_type: generate_until
doc_to_text: context
doc_to_target: continuation
generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


def source(files: Mapping[str, str]) -> str:
    return f"dataset_path: json\ndataset_kwargs: {{data_files: {json.dumps(files)}}}\n"


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    return map(json.loads, path.read_text(encoding="utf-8").rstrip("\n").split("\n"))


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
