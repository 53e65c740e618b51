"""`caq compare`: measure what is not measured yet, one model in memory at a time; decide; draw the report.

Everything that may hold a mistake is read first: every checkpoint, every task file, the judge, the formats, the
earlier report. What was measured stays in the output directory (see `measure.store`), so that a stopped comparison
continues, a report can be redrawn without a model, and models are added to those compared before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from caq.errors import InvalidInput, attempt, nearest, refuse
from caq.items.tasks import Tasks
from caq.measure.assemble import read_comparison
from caq.measure.judges import DEFAULT_JUDGE, find_judge
from caq.measure.run import Named, measure_into, prepare, running_on
from caq.measure.store import locked, require_reports
from caq.report.analyse import analyse
from caq.report.document import read_report
from caq.report.problems import settings_problems
from caq.report.render import RENDERERS, report_files, write_report
from caq.report.types import Report, Settings

FORMATS = tuple(RENDERERS)
_DEFAULTS = Settings()


def compare(
    models: Sequence[str | Path],
    *,
    reference: str | Path,
    base: str | Path | None = None,
    tasks: Tasks,
    judge: str = DEFAULT_JUDGE,
    settings: Settings = _DEFAULTS,
    formats: Sequence[str] = FORMATS,
    output: str | Path,
    baseline: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Report:
    """Compare quantized models with the aligned model that they were made from, item by item.

    Args:
        models: the models to judge: directories or hub names of anything that Transformers loads, or GGUF files.
            Models that were compared with the same aligned model, base and items in `output` before stay in the report.
        reference: the aligned model.
        base: its base, which shows how much alignment there is to lose.
        tasks: what to measure.
        judge: who calls a response a refusal: a name of `caq.measure.judges`, or `NAME@REVISION`, `NAME@DIRECTORY`.
        settings: what decides.
        formats: of the report: html, md, json, junit.
        output: directory of the report and of all that was measured.
        baseline: results.json of an earlier release, to show changes from.
        device: None takes CUDA where there is one.
        dtype: float32, bfloat16 or float16; None takes float32 on a CPU, and elsewhere each checkpoint's own.
        quiet: show no progress.
        say: what to do with lines that a person should read.

    Raises:
        InvalidInput: every problem of models, files and settings at once, before a model is loaded; or later, what
            only a loaded model shows.
    """
    output = Path(output)
    # By itself, before a model is looked for on the hub.
    require_reports(output, report_files())
    problems, earlier = _check(settings, formats, baseline)
    problems += _repeated(models)
    if not models:
        problems.append("there is no model to judge; name at least one")
    if not any((tasks.perplexity_text, tasks.safety, tasks.facts, tasks.prompts)):
        problems.append("nothing to measure: name --safety, --prompts, --facts or --perplexity-text")
    named = attempt(problems, lambda: find_judge(judge))
    given: Named = [("aligned", reference), ("base", base), *(("quantized", model) for model in models)]
    setup = prepare(given, tasks, named, running_on(device, tasks, dtype), problems)
    for line in setup.lines:
        say(line)
    with locked(output):
        manifest = measure_into(output, setup, quiet=quiet)
        if manifest.judge_missing:
            say(manifest.judge_missing)
        return _draw(output, settings, formats, earlier)


def redraw(
    output: str | Path,
    *,
    settings: Settings = _DEFAULTS,
    formats: Sequence[str] = FORMATS,
    baseline: str | Path | None = None,
) -> Report:
    """Redraw the report of what is stored in `output`, perhaps with other settings or formats; run no model.

    Raises:
        InvalidInput: there is nothing stored, or a setting, a format or the baseline is wrong.
    """
    output = Path(output)
    problems, earlier = _check(settings, formats, baseline)
    if not output.is_dir():
        problems.append(f"{output}: no such directory; name a model and its --reference to compare")
    refuse(problems)
    with locked(output):
        return _draw(output, settings, formats, earlier)


def _check(settings: Settings, formats: Sequence[str], baseline: str | Path | None) -> tuple[list[str], Report | None]:
    problems = [*settings_problems(settings), *_unknown_formats(formats)]
    return problems, attempt(problems, lambda: None if baseline is None else read_report(baseline))


def _unknown_formats(formats: Sequence[str]) -> Iterator[str]:
    if not formats:
        yield f"the report has no format; name some of {', '.join(RENDERERS)}"
    for name in formats:
        if name not in RENDERERS:
            yield f"{name}: no such format{nearest(name, RENDERERS)}"


def _repeated(models: Sequence[str | Path]) -> Iterator[str]:
    given = [str(model) for model in models]
    yield from (f"{model}: is named twice" for model in dict.fromkeys(given) if given.count(model) > 1)


def _draw(output: Path, settings: Settings, formats: Sequence[str], baseline: Report | None) -> Report:
    comparison = read_comparison(output)
    if not any(arm.role == "aligned" for arm in comparison.arms):
        raise InvalidInput(f"{output}: holds measures and no aligned model to compare with; name it by --reference")
    report = analyse(comparison, settings, baseline)
    write_report(output, report, comparison, formats)
    return report
