"""The config of a model: of a directory, of the shipped table, or of the hub, config.json alone."""

from __future__ import annotations

import contextlib
import difflib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge._package import DATA
from awq_edge.artifacts.directories import MANIFEST
from awq_edge.artifacts.input_files import read_toml
from awq_edge.artifacts.paths import user_path
from awq_edge.artifacts.schema import Record
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.archs import Config, Decoder, decoder_from_config, require_known_keys
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles, read_config
from awq_edge.model.foreign_formats import refuse_foreign
from awq_edge.model.hub import download_config, resolve_model

_TABLE = DATA / "models.toml"


class KnownModel(Record):
    """One entry of the shipped table. config: the keys that sizes follow from. nulls: keys that
    are null in it, which TOML cannot say. source: of the config. parameters: as published, by
    parameters_source."""

    name: str
    hub_ids: tuple[str, ...]
    source: str
    parameters: str
    parameters_source: str
    config: dict[str, Any]
    nulls: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """name: as reports call it. source: where the config is from, in words. path: for errors.
    was_tied: see `Decoder.count_parameters`."""

    name: str
    source: str
    path: Path
    config: Config
    decoder: Decoder
    was_tied: bool = False

    @property
    def parameters(self) -> int:
        """Weights of the unquantized model, tied ones counted once; of a vision-language model
        those of its language model."""
        return self.decoder.count_parameters(was_tied=self.was_tied)


@functools.cache
def known_models() -> tuple[KnownModel, ...]:
    """The shipped table, in its order."""
    table = read_toml(_TABLE, error=ConfigError)
    return tuple(KnownModel.model_validate(entry) for entry in table["model"])


def find_model(name: str, allow_unknown_keys: bool = False) -> ModelConfig:
    """The config of MODEL: `demo`, a directory, a name or hub id of the shipped table, or another
    hub id, of which config.json is downloaded and nothing else.

    allow_unknown_keys: of a config.json that a newer transformers wrote.

    Raises ModelError where there is none, or it is not supported.
    """
    path = user_path(name, "MODEL")
    if name == "demo" or path.is_dir():
        directory = resolve_model(name)
        return _of_config(name, f"{directory / 'config.json'}", directory, allow_unknown_keys)
    known = _known(name)
    if known is not None:
        return _of_known(known)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        names = [model.name for model in known_models()]
        close = difflib.get_close_matches(name.lower(), [each.lower() for each in names], n=3)
        near = [each for each in names if each.lower() in close]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ModelError(
            f"'{name}' is no directory, no hub id (organization/name) and not in the shipped "
            f"table; {hint}`awq-edge fit --all` lists the table"
        )
    directory = download_config(name)
    source = f"config.json of {name} on the hub"
    return _of_config(name, source, directory, allow_unknown_keys)


def _known(name: str) -> KnownModel | None:
    """An entry by its name or one of its hub ids; case does not matter."""
    wanted = name.lower()
    for model in known_models():
        if wanted in (model.name.lower(), *(each.lower() for each in model.hub_ids)):
            return model
    return None


def _of_known(known: KnownModel) -> ModelConfig:
    config = {**known.config, **dict.fromkeys(known.nulls)}
    return ModelConfig(
        name=known.name,
        source=f"shipped table: {known.source}",
        path=_TABLE,
        config=config,
        decoder=decoder_from_config(config),
    )


def all_known() -> list[ModelConfig]:
    """Every entry of the shipped table."""
    return [_of_known(model) for model in known_models()]


def _of_config(name: str, source: str, directory: Path, allow_unknown_keys: bool) -> ModelConfig:
    if (directory / MANIFEST).exists():
        raise ModelError(
            f"{directory} is a bundle, whose sizes are what they are: `awq-edge inspect` shows "
            "them and `awq-edge run` predicts its memory; give the model that it was made from"
        )
    config = _read_config(directory)
    require_known_keys(config, name, allow=allow_unknown_keys)
    was_tied = False
    with contextlib.suppress(ModelError):  # the weights need not be there
        was_tied = Checkpoint.open(directory).output_layer_was_tied
    return ModelConfig(name, source, directory, config, decoder_from_config(config), was_tied)


def _read_config(directory: Path) -> Config:
    """config.json of a directory whose weights, where they are there, are read here."""
    config = read_config(directory)
    try:
        files = ModelFiles.of_foreign(directory)
    except ModelError:
        refuse_foreign(directory, config)
        return config
    # Where not all of the weights are there, sizes follow from config.json.
    refuse_foreign(directory, files.config, files.entries)
    return files.config
