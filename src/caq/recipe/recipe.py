"""Recipes: everything that decides a run, validated at once, read from YAML, hashable. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from caq.errors import InvalidInput, nearest
from caq.options import Options, sentences
from caq.recipe.sections import (
    SELF,
    DataRecipe,
    ObjectiveRecipe,
    QuantizerRecipe,
    SchemeRecipe,
    TrainingRecipe,
    TransformRecipe,
)
from caq.recipe.text import dump_yaml, parse_yaml

PRESETS = ("default", "paper", "paper-code")


class Recipe(Options):
    """One run, completely: two equal recipes on equal inputs give equal checkpoints.

    Raises:
        InvalidInput: listing every unknown key, wrong type and contradiction, each with its way out.
    """

    scheme: SchemeRecipe = SchemeRecipe()
    transforms: TransformRecipe = TransformRecipe()
    objective: ObjectiveRecipe = ObjectiveRecipe()
    quantizer: QuantizerRecipe = QuantizerRecipe()
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Build section by section, so that a mistake in one does not hide those of the others."""
        if not isinstance(values, Mapping):
            raise InvalidInput([f"recipe: should be a mapping of sections, is {values!r}"])
        sections, problems = dict(values), []
        for name in _SECTIONS.keys() & sections.keys():
            try:
                sections[name] = _SECTIONS[name].model_validate(sections[name])
            except InvalidInput as error:
                problems += [
                    f"{name}{problem}" if problem[0] == ":" else f"{name}.{problem}" for problem in error.problems
                ]
                del sections[name]
        try:
            recipe = build(sections)
        except ValidationError as error:
            raise InvalidInput(sorted(problems + sentences(error, cls))) from error
        if found := sorted(problems) or _contradictions(recipe):
            raise InvalidInput(found)
        return recipe

    @classmethod
    def from_yaml(cls, source: Path | str) -> Self:
        """Read a recipe from a file, or from a text: a string with a colon or a line break is one.

        Raises:
            InvalidInput: no such file, not YAML, or anything that the recipe refuses.
        """
        if isinstance(source, str) and ("\n" in source or ":" in source or not source.strip()):
            return cls.model_validate(parse_yaml(source, "recipe"))
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                [f"{source}: not a readable recipe file ({error}); presets: {', '.join(PRESETS)}"]
            ) from error
        return cls.model_validate(parse_yaml(text, str(source)))

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML that `from_yaml` reads back equal."""
        return dump_yaml(self.model_dump(mode="json"))

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of the recipe's canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def with_overrides(self, overrides: Mapping[str, object]) -> Self:
        """Return a copy with dotted keys replaced, such as ``{"objective.alpha": 0.5}``, validated anew.

        Raises:
            InvalidInput: an unknown key, a wrong type or a contradiction; all of them.
        """
        values: dict[str, Any] = self.model_dump()
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if name and isinstance(values.get(section), dict):
                values[section][name] = value
            else:
                values[key] = value
        return type(self).model_validate(values)


_SECTIONS: dict[str, type[Options]] = {
    "scheme": SchemeRecipe,
    "transforms": TransformRecipe,
    "objective": ObjectiveRecipe,
    "quantizer": QuantizerRecipe,
    "data": DataRecipe,
    "training": TrainingRecipe,
}


def preset(name: str) -> Recipe:
    """Return a bundled recipe: `default`, `paper` (its text's settings) or `paper-code` (its code's).

    Raises:
        InvalidInput: no such preset.
    """
    if name not in PRESETS:
        raise InvalidInput([f"{name}: no such preset{nearest(name, PRESETS)}"])
    text = resources.files("caq.recipe").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")
    return Recipe.model_validate(parse_yaml(text, f"preset {name}"))


def parse_override(text: str) -> tuple[str, object]:
    """Split ``objective.alpha=0.5`` into the key and its value, read as YAML.

    Raises:
        InvalidInput: no `=`, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InvalidInput([f"{text}: an override is written key=value, such as objective.alpha=0.5"])
    return key.strip(), parse_yaml(f"value: {value}", text)["value"]


def _contradictions(recipe: Recipe) -> list[str]:
    """Find the settings that are each right and wrong together; every sentence names the way out."""
    scheme, transforms, quantizer = recipe.scheme, recipe.transforms, recipe.quantizer
    data, training = recipe.data, recipe.training
    exact = scheme.weight_only and scheme.value_bits == 16 and scheme.key_bits == 16
    problems = []
    if transforms.learn and not transforms.learnable:
        problems.append("transforms.learn: no transform is on; turn one on, or set transforms.learn: false")
    if transforms.learn and exact and not training.quantize_weights:
        problems.append(
            f"training.quantize_weights: {scheme.preset} quantizes weights only, and they are not quantized "
            "while learning, so there is nothing to learn from; set training.quantize_weights: true, "
            "or transforms.learn: false"
        )
    if scheme.weight_only and scheme.activations_symmetric is not None:
        problems.append(f"scheme.activations_symmetric: {scheme.preset} quantizes no activations; leave it out")
    if scheme.weight_only and scheme.output_projection_groups:
        problems.append(f"scheme.output_projection_groups: {scheme.preset} quantizes no activations; leave it out")
    if training.batch_size % training.micro_batch_size:
        problems.append(
            f"training.micro_batch_size: {training.micro_batch_size} does not divide "
            f"training.batch_size {training.batch_size}; choose a divisor"
        )
    if transforms.learn and training.validation_samples >= data.samples:
        problems.append(
            f"training.validation_samples: {training.validation_samples} of data.samples {data.samples} "
            "leave none to learn from; raise data.samples, or lower training.validation_samples"
        )
    if data.prompts is not None and data.text != SELF:
        problems.append("data.prompts: is read only where data.text is self; leave it out, or set data.text: self")
    if quantizer.samples is not None and quantizer.samples > data.samples:
        problems.append(
            f"quantizer.samples: {quantizer.samples} are more than data.samples {data.samples}; "
            "raise data.samples, or leave quantizer.samples out"
        )
    if quantizer.damping > quantizer.max_damping:
        problems.append(
            f"quantizer.damping: {quantizer.damping} is above quantizer.max_damping {quantizer.max_damping}; "
            "lower it, or raise the limit"
        )
    return problems
