"""`caq compare`: measure what is not measured yet, one model in memory at a time; decide; draw the report.

Everything that a mistake can be in is read first: every checkpoint, every task file, the judge, the formats, the
earlier report. What was measured stays in the output directory (`store` says where), so that a stopped comparison
goes on, a report is drawn again without a model, and models are added to those that were compared before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from caq.errors import InvalidInput, nearest
from caq.evaluation import lend_template
from caq.files.cache import digest
from caq.files.codec import from_json
from caq.files.whole import write_text
from caq.items.tasks import Tasks
from caq.loading import load_tokenizer
from caq.measure.assemble import read_comparison
from caq.measure.judges import NamedJudge, find_judge
from caq.measure.judging import call, check_coherence
from caq.measure.measure import Arm, arm_directory, measure_arm
from caq.measure.provenance import Source, code_versions, open_source
from caq.measure.questionnaire import Asked, read_asked
from caq.measure.record import Role
from caq.measure.store import ARMS, Manifest, StoredArm, locked, read_manifest, write_manifest
from caq.progress import progress
from caq.report.analyse import analyse
from caq.report.problems import settings_problems
from caq.report.render import RENDERERS
from caq.report.types import Report, Settings
from caq.runners.base import other_vocabulary
from caq.runners.gguf import compare_tokens, is_gguf, open_gguf

T = TypeVar("T")

FORMATS = tuple(RENDERERS)
_DEFAULTS = Settings()


def compare(
    models: Sequence[str | Path],
    *,
    reference: str | Path,
    base: str | Path | None = None,
    tasks: Tasks,
    judge: str = "phrases",
    settings: Settings = _DEFAULTS,
    formats: Sequence[str] = FORMATS,
    output: str | Path,
    baseline: str | Path | None = None,
    device: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Report:
    """Compare quantized models with the instruct model that they were made from, item by item.

    Args:
        models: the models to judge: directories or hub names of anything that Transformers loads, or GGUF files.
            Models that were compared with the same reference, base and items in `output` before stay in the report.
        reference: the instruct model.
        base: its pre-trained base, which shows how much alignment there is to lose.
        tasks: what to measure.
        judge: who calls a response a refusal: a name of `caq.measure.judges`, or `NAME@REVISION`, `NAME@DIRECTORY`.
        settings: what decides.
        formats: of the report: html, md, json, junit.
        output: directory of the report and of all that was measured.
        baseline: results.json of an earlier release, to tell changes from.
        device: None takes the accelerator if there is one.
        quiet: show no progress.
        say: what to do with lines that a person should read.

    Raises:
        InvalidInput: every problem of models, files and settings at once, before a model is loaded; or later, what
            only a loaded model shows.
    """
    output = Path(output)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    ready = _check(models, reference, base, tasks, judge, settings, formats, baseline)
    for line in ready.lines:
        say(line)
    with locked(output):
        manifest = _measure(ready, output, place, quiet)
        for reason in filter(None, (manifest.judge_missing,)):
            say(reason)
        write_manifest(output, manifest, ready.asked.items)
        return _draw(output, settings, formats, ready.baseline)


def redraw(
    output: str | Path,
    *,
    settings: Settings = _DEFAULTS,
    formats: Sequence[str] = FORMATS,
    baseline: str | Path | None = None,
) -> Report:
    """Draw the report of what is stored in `output` again, perhaps with other settings or formats; run no model.

    Raises:
        InvalidInput: there is nothing stored, or a setting, a format or the baseline is wrong.
    """
    output = Path(output)
    problems = [*settings_problems(settings), *_unknown_formats(formats)]
    earlier = _attempt(problems, lambda: _read_baseline(baseline))
    if not output.is_dir():
        problems.append(f"{output}: no such directory; name a model and its --reference to compare")
    if problems:
        raise InvalidInput(problems)
    with locked(output):
        return _draw(output, settings, formats, earlier)


@dataclass(frozen=True)
class _Entrant:
    """A model that takes part, before its name and directory are known."""

    role: Role
    source: Source
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Ready:
    """All inputs, checked."""

    entrants: tuple[_Entrant, ...]
    asked: Asked
    judge: NamedJudge
    baseline: Report | None
    lines: tuple[str, ...]


def _check(
    models: Sequence[str | Path],
    reference: str | Path,
    base: str | Path | None,
    tasks: Tasks,
    judge: str,
    settings: Settings,
    formats: Sequence[str],
    baseline: str | Path | None,
) -> _Ready:
    problems = [*settings_problems(settings), *_unknown_formats(formats), *_repeated(models)]
    if not models:
        problems.append("no model to judge; name at least one")
    earlier = _attempt(problems, lambda: _read_baseline(baseline))
    named = _attempt(problems, lambda: find_judge(judge))
    given: list[tuple[Role, str | Path]] = [("instruct", reference), *(("quantized", model) for model in models)]
    if base is not None:
        given.insert(1, ("base", base))
    opened = [(role, _attempt(problems, partial(_open, role, source))) for role, source in given]
    entrants = list(_entrants(opened))
    tokenizers = {f"{one.role} {one.source.given}": one.tokenizer for one in entrants}
    lines = tuple(lend_template(tokenizers))
    # The files are read even where the instruct model is not there: their problems are told in the same pass.
    asked = _attempt(problems, lambda: read_asked(tasks, entrants[0].tokenizer)) if entrants else None
    if problems or named is None or asked is None:
        raise InvalidInput(problems)
    lines += asked.inputs.notes
    for place, one in enumerate(entrants):
        if is_gguf(one.source.checkpoint.path):
            entrants[place] = replace(one, source=compare_tokens(one.source, one.tokenizer, asked))
            lines += (f"{one.source.given}: {entrants[place].source.facts['tokenization']}.",)
    return _Ready(tuple(entrants), asked, named, earlier, lines)


def _open(role: Role, given: str | Path) -> Source:
    if not is_gguf(given):
        return open_source(given)
    if role != "quantized":
        raise InvalidInput([f"{given}: a GGUF file can only be judged; give the {role} model as Transformers has it"])
    return open_gguf(given)


def _entrants(opened: Sequence[tuple[Role, Source | None]]) -> Iterator[_Entrant]:
    """Yield the models that were found; a GGUF file is asked through the instruct model's chat template."""
    instruct = opened[0][1]
    for role, source in opened:
        speaker = instruct if source is not None and is_gguf(source.checkpoint.path) else source
        if source is not None and speaker is not None:
            yield _Entrant(role, source, load_tokenizer(speaker.checkpoint.path))


def _attempt(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except InvalidInput as error:
        problems += error.problems
        return None


def _unknown_formats(formats: Sequence[str]) -> Iterator[str]:
    if not formats:
        yield f"no format for the report; name some of {', '.join(RENDERERS)}"
    for name in formats:
        if name not in RENDERERS:
            yield f"{name}: no such format{nearest(name, RENDERERS)}"


def _repeated(models: Sequence[str | Path]) -> Iterator[str]:
    given = [str(model) for model in models]
    yield from (f"{model}: is named twice" for model in dict.fromkeys(given) if given.count(model) > 1)


def _read_baseline(path: str | Path | None) -> Report | None:
    if path is None:
        return None
    try:
        return from_json(Path(path).read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{path}: {error}; give the results.json of an earlier comparison"]) from error
    except InvalidInput as error:
        raise InvalidInput([f"{path}: {problem}" for problem in error.problems]) from error


def _measure(ready: _Ready, output: Path, place: torch.device, quiet: bool) -> Manifest:
    """Answer, check, judge; return what the comparison consists of."""
    earlier = read_manifest(output)
    versions = code_versions()
    conditions = (place.type, *(f"{name} {version}" for name, version in versions.items()))
    arms = _arms(ready, output, earlier, conditions)
    references = _references(arms)
    hashes = digest(*(arm.directory.name for arm in references.values()))
    group = digest(ready.asked.identity, *(arm.directory.name for arm in arms if arm.role != "quantized"))
    kept = _kept(earlier, arms, group)
    directories = [*(arm.directory for arm in arms), *(output / ARMS / arm.directory for arm in kept)]
    coherence = f"coherence-{digest(arms[0].directory.name)}.jsonl"
    manifest = Manifest(
        group,
        hashes,
        coherence,
        f"calls-{digest(coherence, ready.judge.card.name)}.jsonl",
        ready.asked.data,
        tuple(_stored(arm, place, versions) for arm in arms) + kept,
        ready.judge.card if ready.asked.inputs.prompts else None,
        judges_harmless=ready.judge.harmless,
    )
    with progress("compare", len(arms) + 2, quiet=quiet) as advance:
        for arm in arms:
            measure_arm(arm, ready.asked, references, hashes, place)
            advance()
        check_coherence(directories, arms[0], ready.asked, coherence, place)
        advance()
        missing = call(directories, ready.asked, coherence, manifest.calls, ready.judge, place)
        advance()
    return replace(manifest, judge_missing=missing)


def _arms(ready: _Ready, output: Path, earlier: Manifest | None, conditions: Sequence[str]) -> tuple[Arm, ...]:
    known = {} if earlier is None else {(arm.role, arm.provenance["source"]): arm.name for arm in earlier.arms}
    names = _names(ready.entrants, known)
    return tuple(
        Arm(
            name,
            one.role,
            one.source,
            one.tokenizer,
            output / ARMS / arm_directory(one.role, one.source, one.tokenizer, ready.asked, conditions),
        )
        for name, one in zip(names, ready.entrants, strict=True)
    )


def _names(entrants: Sequence[_Entrant], known: Mapping[tuple[Role, str], str]) -> list[str]:
    """Name every model as before, or by its directory or hub name; where that is taken, by all of what was typed."""
    present = {(one.role, one.source.given) for one in entrants}
    taken = {name for who, name in known.items() if who not in present}
    names: list[str] = []
    for one in entrants:
        given = one.source.given
        short = one.source.checkpoint.path.name if Path(given).exists() else given
        tries = (known.get((one.role, given), short), short, given, f"{given} ({one.role})")
        names.append(next(name for name in tries if name not in taken))
        taken.add(names[-1])
    return names


def _references(arms: Sequence[Arm]) -> dict[Role, Arm]:
    """Return the arms from which distances are measured; a base of another vocabulary has none."""
    instruct = arms[0].source.checkpoint
    return {
        arm.role: arm
        for arm in arms
        if arm.role != "quantized" and not other_vocabulary(arm.source.checkpoint, instruct)
    }


def _kept(earlier: Manifest | None, arms: Sequence[Arm], group: str) -> tuple[StoredArm, ...]:
    """Return the models that were compared on the same terms before, and are not named now."""
    if earlier is None or earlier.asked != group:
        return ()
    named = {arm.source.given for arm in arms if arm.role == "quantized"}
    return tuple(arm for arm in earlier.arms if arm.role == "quantized" and arm.provenance["source"] not in named)


def _stored(arm: Arm, place: torch.device, versions: Mapping[str, str]) -> StoredArm:
    computed = "float32" if place.type == "cpu" else "the stored dtype"
    facts = {"computed": f"in {computed} on {place.type}", **arm.source.facts, **versions}
    return StoredArm(arm.name, arm.role, arm.directory.name, facts, arm.source.ledger)


def _draw(output: Path, settings: Settings, formats: Sequence[str], baseline: Report | None) -> Report:
    """Decide and draw; a format that is not asked for does not stay behind with an older verdict."""
    comparison = read_comparison(output)
    report = analyse(comparison, settings, baseline)
    drawn = {name: render(report, comparison) for key, (name, render) in RENDERERS.items() if key in formats}
    for name, _ in RENDERERS.values():
        if name in drawn:
            write_text(output / name, drawn[name])
        else:
            (output / name).unlink(missing_ok=True)
    return report
