"""The keys that transformers' classes of configurations know, as data beside the architectures.

    python scripts/config_keys.py            # writes awq_edge/model/archs/config_keys.json
    python scripts/config_keys.py --check    # ends with 1 where the file is another one

A key is known where the class has it (under that name, or another one that it maps), where the
class takes it from a file of an earlier transformers, or where code of the model asks for it. To be
run after an architecture was added, and for another transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig, masking_utils

from awq_edge.artifacts.directories import atomic_file
from awq_edge.model.archs import architectures
from awq_edge.model.archs.known_keys import FILE

_TAKEN = re.compile(r"kwargs\.(?:get|pop)\(\s*\"(\w+)\"")
_ASKED = re.compile(r"(?:getattr|hasattr)\(\s*(?:self\.)?config,\s*\"(\w+)\"")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    text = render()
    if parser.parse_args().check:
        return int(FILE.read_text(encoding="utf-8") != text)
    with atomic_file(FILE) as work:
        work.write_text(text, encoding="utf-8")
    return 0


def render() -> str:
    """The file: what every class knows once, then what each has beyond that."""
    classes = dict(_classes())
    # Keys of generation_config.json, which earlier files have here.
    generation = set(GenerationConfig._get_default_generation_params())
    generation |= set(GenerationConfig().to_dict())
    shared = set.intersection(*classes.values()) | generation
    content = {
        "transformers": transformers.__version__,
        "generation": sorted(generation),
        "shared": sorted(shared),
        "classes": {name: sorted(keys - shared) for name, keys in sorted(classes.items())},
    }
    return json.dumps(content, indent=1) + "\n"


def _classes() -> Iterator[tuple[str, set[str]]]:
    """Keys by model_type; of a text_config whose class is its own, under "<model_type>.text"."""
    for model_type, architecture in architectures().items():
        config_class = CONFIG_MAPPING[model_type]
        yield model_type, _known(config_class)
        if architecture.vision is not None and not architecture.vision.texts:
            yield f"{model_type}.text", _known(config_class.sub_configs["text_config"])


def _known(config_class: Any) -> set[str]:
    config = config_class()
    keys = set(config.to_dict()) | set(config.attribute_map) | {"quantization_config"}
    keys |= set(inspect.signature(config_class.__init__).parameters) - {"self", "args", "kwargs"}
    keys |= {field.name for field in dataclasses.fields(config_class)}
    readers = [config_class.__post_init__, PreTrainedConfig.__post_init__]
    if hasattr(config, "rope_parameters"):
        readers.append(config_class.convert_rope_params_to_dict)
        keys.add("original_max_position_embeddings")  # standardize_rope_params asks for it
    keys.update(*(_TAKEN.findall(inspect.getsource(reader)) for reader in readers))
    if not hasattr(config, "rope_parameters"):
        keys -= {"rope_scaling", "rope_theta"}
    if not hasattr(config, "num_hidden_layers"):  # what holds a decoder's configuration and others
        return keys
    modeling = config_class.__module__.replace(".configuration_", ".modeling_")
    askers = [importlib.import_module(modeling), masking_utils.create_causal_mask]
    return keys.union(*(_ASKED.findall(inspect.getsource(asker)) for asker in askers))


if __name__ == "__main__":
    sys.exit(main())
