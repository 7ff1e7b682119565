"""Reads what the planner knows of models from config/models/*.yaml."""

from __future__ import annotations

from config.errors import ConfigError
from config.load import REPOSITORY, read_yaml
from config.validate import nearest, validated
from engine.capacity import ModelFacts
from engine.profile import Profile

MODELS = REPOSITORY / "config" / "models"


def known_models() -> list[str]:
    """Return the models of which there are facts, by name."""
    return sorted(file.stem for file in MODELS.glob("*.yaml"))


def load_model(name: str) -> ModelFacts:
    """Return the facts of a model by its name.

    Raises:
        ConfigError: There are none of that name, or a key is wrong.
    """
    known = known_models()
    if name not in known:
        raise ConfigError(
            f"there are no facts of a model {name!r}; known: {', '.join(known)}{nearest(name, known)}"
        )
    path = MODELS / f"{name}.yaml"
    model = validated(ModelFacts, read_yaml(path), path)
    if model.name != path.stem:
        raise ConfigError(f"{path}: name: {model.name!r}; expected the file's own, {path.stem!r}")
    return model


def model_of(profile: Profile) -> ModelFacts:
    """Return the facts of a profile's model.

    Raises:
        ConfigError: The profile names none.
    """
    if profile.facts is None:
        raise ConfigError(
            f"profile {profile.name!r} does not say what its model is like, so there is no plan; give it"
            f" `facts`, one of {', '.join(known_models())}"
        )
    return load_model(profile.facts)
