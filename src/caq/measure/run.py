"""Measuring several arms on the same items, one after another: every command that measures does it so.

Of the models that are asked here, one is in memory at a time. The aligned model comes back after the others where there
are new responses to check. Besides them a table, which measures cell by cell, keeps the aligned model it quantizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from caq.chat import find_template, manner_of, render_prompt, unknown_options
from caq.checkpoint.pair import same_weights
from caq.errors import InvalidInput, attempt
from caq.files.cache import digest
from caq.items.tasks import WINDOW, Tasks
from caq.loading import load_tokenizer
from caq.measure.judges import NamedJudge
from caq.measure.judging import call, check_coherence
from caq.measure.measure import AbilityMeasure, Arm, Plan, measure_arm
from caq.measure.questionnaire import Questionnaire, read_questionnaire
from caq.measure.record import Role
from caq.measure.store import ARMS, Manifest, StoredArm, read_manifest, write_manifest
from caq.progress import progress
from caq.runners import find_source, runner_module
from caq.runners.base import Running, Source
from caq.runners.transformers import NAME as TRANSFORMERS
from caq.runners.transformers import checkpoint_mismatch
from caq.world import computed_on, find_device, find_dtype

#: The fact of a model that says how chats are put to it.
CHATS = "chats"
#: Under which role, which model: a directory, a file or a hub name; None takes no part.
Named = Sequence[tuple[Role, str | Path | None]]


@dataclass(frozen=True)
class Entrant:
    """A model that takes part, before its name and directory are known."""

    role: Role
    source: Source
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Setup:
    """Everything that was checked before a model is loaded.

    Attributes:
        entrants: the aligned model first, if there is one, then the base, then the models to judge.
        abilities: what else is measured, or None.
        lines: what a person should read.
    """

    entrants: tuple[Entrant, ...]
    questionnaire: Questionnaire
    judge: NamedJudge
    how: Running
    abilities: AbilityMeasure | None
    lines: tuple[str, ...]


def running_on(device: str | None, tasks: Tasks, dtype: str | None = None) -> Running:
    """Return how models are run; without a device, on CUDA where there is one, and without a dtype, see `Running`.

    Raises:
        InvalidInput: no such device, or no dtype that models are run in.
    """
    return Running(find_device(device), find_dtype(dtype), longest=tasks.window or WINDOW)


def prepare(
    models: Named,
    tasks: Tasks,
    judge: NamedJudge | None,
    how: Running,
    problems: list[str],
    abilities: AbilityMeasure | None = None,
) -> Setup:
    """Check every model and every file; load none.

    Args:
        models: in the order of a `Setup`'s.
        judge: None where what was named is no judge, which the problems say.
        problems: of what was checked before; these are raised with the others.

    Raises:
        InvalidInput: all problems at once.
    """
    named = [(role, given) for role, given in models if given is not None]
    sources = [(role, attempt(problems, partial(_find, role, given))) for role, given in named]
    problems += _without_tokenizer(sources)
    problems += _no_base(sources)
    contexts = {source.given: source.context for _, source in sources if source is not None}
    tasks = attempt(problems, partial(tasks.fitted, contexts)) or tasks
    entrants = list(_entrants(sources))
    tokenizers = {f"{entrant.role} model {entrant.source.given}": entrant.tokenizer for entrant in entrants}
    lines = [*lend_template(tokenizers)]
    # The files are read even where a model is missing: their problems are reported in the same pass.
    asked = attempt(problems, lambda: read_questionnaire(tasks, entrants[0].tokenizer)) if entrants else None
    if asked is not None:
        entrants = [*_asked_through_templates(entrants, asked, problems)]
        lines += [f"{one.source.given}: {one.source.facts[CHATS]}." for one in entrants if CHATS in one.source.facts]
    if problems or judge is None or asked is None:
        raise InvalidInput(problems)
    lines += asked.notes
    how = replace(how, longest=asked.window)
    entrants = [_with_tokenization(entrant, asked) for entrant in entrants]
    own = [entrant.source for entrant in entrants if not entrant.source.own_tokenizer]
    lines += [f"{source.given}: {source.facts['tokenization']}." for source in own]
    return Setup(tuple(entrants), asked, judge, how, abilities, tuple(lines))


def _find(role: Role, given: str | Path) -> Source:
    source = find_source(given)
    if role != "quantized" and source.runner != TRANSFORMERS:
        raise InvalidInput(
            f"{given}: {source.runner} models can only be judged; give the {role} model as Transformers has it"
        )
    return source


def _without_tokenizer(sources: Sequence[tuple[Role, Source | None]]) -> Iterator[str]:
    if not any(role == "aligned" for role, _ in sources):
        for _, source in sources:
            if source is not None and not source.own_tokenizer:
                yield f"{source.given}: is asked through the aligned model's chat template; name that by --reference"


def _no_base(sources: Sequence[tuple[Role, Source | None]]) -> Iterator[str]:
    """Yield what is wrong with a base that is the aligned model, perhaps in another type."""
    full = {role: source for role, source in sources if source is not None and role != "quantized"}
    if len(full) < 2 or any("quantization_config" in source.checkpoint.config for source in full.values()):
        return
    aligned, base = full["aligned"].checkpoint, full["base"].checkpoint
    shapes = [{name: info.shape for name, info in one.tensors.items()} for one in (aligned, base)]
    if shapes[0] == shapes[1] and same_weights(aligned, base):
        yield f"{base.path}: has the weights of {aligned.path}; give the base that it was trained from"


def _entrants(sources: Sequence[tuple[Role, Source | None]]) -> Iterator[Entrant]:
    """Yield the models that were found; one without a tokenizer of its own is asked through the aligned model's."""
    aligned = next((source for role, source in sources if role == "aligned"), None)
    for role, source in sources:
        speaker = source if source is None or source.own_tokenizer else aligned
        if source is not None and speaker is not None:
            yield Entrant(role, source, load_tokenizer(speaker.checkpoint.path))


def lend_template(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> Iterator[str]:
    """Give tokenizers without a chat template the first one that another has; yield a line for each."""
    lender = next((name for name, tokenizer in tokenizers.items() if tokenizer.chat_template), None)
    for name, tokenizer in tokenizers.items():
        if lender and not tokenizer.chat_template:
            tokenizer.chat_template = tokenizers[lender].chat_template
            yield f"The {name} has no chat template; it is asked through the one of the {lender}."


def _asked_through_templates(
    entrants: Sequence[Entrant], asked: Questionnaire, problems: list[str]
) -> Iterator[Entrant]:
    """Yield the models with a fact: what their chat templates are given, and where answers begin; find what is wrong.

    Problems are an option that no template names, and a template that renders no plain question.
    """
    options = asked.tasks.chat_options
    if options and not asked.chats:
        problems.append("nothing is asked through a chat template: leave out --chat-option, or add --prompts or --chat")
    if not asked.chats:
        yield from entrants
        return
    templates = attempt(problems, lambda: [find_template(one.tokenizer) for one in entrants]) or []
    unknown = partial(unknown_options, [one for one in templates if one is not None], options)
    problems += attempt(problems, lambda: [*unknown()]) or []
    for entrant, template in zip(entrants, templates, strict=False):
        if template is not None:
            attempt(problems, partial(render_prompt, entrant.tokenizer, "Is it dusk?", options))
        found = template and attempt(problems, partial(manner_of, entrant.tokenizer, options))
        source = entrant.source
        facts = {**source.facts, CHATS: found.words} if found and found.words else source.facts
        yield replace(entrant, source=replace(source, facts=facts))


def _with_tokenization(entrant: Entrant, asked: Questionnaire) -> Entrant:
    """Return a model without a tokenizer of its own with a fact: whether it reads the prompts as the aligned model."""
    source = entrant.source
    if source.own_tokenizer:
        return entrant
    chats, plain = asked.texts(entrant.tokenizer)
    tokenization = partial(runner_module(source.runner).tokenization, source, entrant.tokenizer)
    problems = [tokenization(chats, add_special_tokens=False), tokenization(plain, add_special_tokens=True)]
    said = "; ".join(filter(None, problems)) or "the prompts have the aligned model's tokens"
    return replace(entrant, source=replace(source, facts={**source.facts, "tokenization": said}))


def place_arms(setup: Setup, output: Path, earlier: Manifest | None = None) -> tuple[Arm, ...]:
    """Return the models with their names and the directories of their answers in `output`.

    A model that was measured there `earlier` keeps its name.
    """
    known = {} if earlier is None else {(arm.role, arm.provenance["source"]): arm.name for arm in earlier.arms}
    names = _names(setup.entrants, known)
    computed = {**_versions(), **computed_on(setup.how.device)}
    conditions = [f"{name} {number}" for name, number in computed.items()]
    conditions += [] if setup.how.dtype is None else [str(setup.how.dtype)]
    arms = output / ARMS
    return tuple(
        Arm(name, entrant.role, entrant.source, entrant.tokenizer, arms / _directory(entrant, setup, conditions))
        for name, entrant in zip(names, setup.entrants, strict=True)
    )


def _names(entrants: Sequence[Entrant], known: Mapping[tuple[Role, str], str]) -> list[str]:
    """Name every model as before, or by its directory or hub name; where that is taken, by all of what was typed."""
    present = {(entrant.role, entrant.source.given) for entrant in entrants}
    taken = {name for who, name in known.items() if who not in present}
    names: list[str] = []
    for entrant in entrants:
        given = entrant.source.given
        short = entrant.source.checkpoint.path.name if Path(given).exists() else given
        tries = (known.get((entrant.role, given), short), short, given, f"{given} ({entrant.role})")
        names.append(next(name for name in tries if name not in taken))
        taken.add(names[-1])
    return names


def _directory(entrant: Entrant, setup: Setup, conditions: Sequence[str]) -> str:
    """Return the name of the directory of a model's answers: its role, and the hash of all that decides them."""
    # Batches are in it: they move the last bits of a logit, and two arms are to be computed alike.
    batches = f"{setup.how.choices} {setup.how.prompts} {setup.how.tokens}"
    asked = (setup.questionnaire.identity, str(entrant.tokenizer.chat_template or ""))
    return f"{entrant.role}-{digest(entrant.source.sha256, *asked, batches, *conditions)}"


def _versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {name: version(name) for name in ("caq", "transformers", "torch", "compressed-tensors", "py3langid")}


def measure_arms(
    arms: Sequence[Arm], setup: Setup, earlier: Manifest | None = None, *, quiet: bool = False
) -> Manifest:
    """Answer, check and judge what is not stored yet of arms, in the setup's order; return what was measured.

    Models that were measured `earlier` in the same directory and on the same terms stay.

    Raises:
        InvalidInput: as `measure_arm`.
    """
    asked, device = setup.questionnaire, setup.how.device
    references = _references(arms)
    aligned = references.get("aligned")
    distances = digest(*(arm.directory.name for arm in references.values()))
    group = digest(asked.identity, *(arm.directory.name for arm in arms if arm.role != "quantized"))
    same = earlier if earlier is not None and earlier.group == group else None
    kept = _kept(same, arms)
    directories = [arm.directory for arm in arms] + [arms[0].directory.with_name(arm.directory) for arm in kept]
    options = asked.tasks.chat_options
    coherence = f"coherence-{digest(aligned.directory.name if aligned is not None else '')}.jsonl"
    calls = f"calls-{digest(coherence, setup.judge.card.name)}.jsonl"
    with progress("measure", len(arms) + 2, quiet=quiet) as advance:
        for arm in arms:
            measure_arm(arm, Plan(asked, setup.how, references, distances, setup.abilities))
            advance()
        check_coherence(directories, aligned, asked.prompts, coherence, setup.how, options)
        advance()
        missing = call(directories, asked.prompts, coherence, calls, setup.judge, device)
        advance()
    identity = setup.abilities.identity if setup.abilities else same.abilities if same else ""
    return Manifest(
        group=group, distances=distances, coherence=coherence, calls=calls, abilities=identity, data=asked.data,
        arms=(*(_stored(arm, setup.how) for arm in arms), *kept), judge=setup.judge.card if asked.prompts else None,
        judge_missing=missing, judges_harmless=setup.judge.harmless,
    )  # fmt: skip


def measure_into(output: Path, setup: Setup, *, quiet: bool = False) -> Manifest:
    """Measure a setup's models in a directory that is locked, beside what is there, and write down what was measured.

    Raises:
        InvalidInput: as `measure_arms`; or the directory holds what another version left.
    """
    earlier = read_manifest(output)
    manifest = measure_arms(place_arms(setup, output, earlier), setup, earlier, quiet=quiet)
    write_manifest(output, manifest, setup.questionnaire.items)
    return manifest


def _kept(same: Manifest | None, arms: Sequence[Arm]) -> tuple[StoredArm, ...]:
    """Return the models that were measured on the same terms before, and are not named now."""
    if same is None:
        return ()
    named = {arm.source.given for arm in arms if arm.role == "quantized"}
    return tuple(arm for arm in same.arms if arm.role == "quantized" and arm.provenance["source"] not in named)


def _references(arms: Sequence[Arm]) -> dict[Role, Arm]:
    """Return the arms from which distances are measured; a base of another vocabulary has none."""
    aligned = next((arm for arm in arms if arm.role == "aligned"), None)
    if aligned is None:
        return {}
    checkpoint = aligned.source.checkpoint
    references = (arm for arm in arms if arm.role != "quantized")
    return {arm.role: arm for arm in references if not checkpoint_mismatch(arm.source.checkpoint, checkpoint)}


def _stored(arm: Arm, how: Running) -> StoredArm:
    device = how.device
    usual = "float32" if device.type == "cpu" else "the stored dtype"
    computed = usual if how.dtype is None else str(how.dtype).removeprefix("torch.")
    facts = {"computed": f"in {computed} on {device.type}", **arm.source.facts, **_versions()}
    facts["threads"] = computed_on(device)["threads"]
    return StoredArm(arm.name, arm.role, arm.directory.name, facts, arm.source.ledger)
