"""MODEL of the commands: a directory, `demo`, or what is downloaded from the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from awq_edge._package import DATA
from awq_edge.artifacts.file_names import TOKENIZER_FILES
from awq_edge.artifacts.gguf_header import is_gguf
from awq_edge.artifacts.paths import user_path
from awq_edge.errors import ModelError
from awq_edge.model.files import EARLY_CONFIGS
from awq_edge.model.foreign_formats import GGUF_FILE, of_names
from awq_edge.process.interruption import keeping


def resolve_model(name: str, *, weights: bool = True) -> Path:
    """The local directory of MODEL: `demo`, an existing directory, or a Hugging Face hub id.

    A hub id is downloaded into the hub's cache (HF_TOKEN is respected); weights=False takes the
    configuration and tokenizer only. Raises ModelError when it cannot be had.
    """
    if name == "demo":
        return DATA / "demo"
    path = user_path(name, "MODEL")
    if path.is_dir():
        return path
    if is_gguf(path):
        raise GGUF_FILE.refusal(path)
    if path.exists():
        raise ModelError(f"{path} is a file; give the model's directory")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_path or os.sep in name[name.find("/") + 1 :]:
        raise ModelError(
            f"model directory {path} does not exist; give a directory, a hub id "
            "(organization/name) or 'demo'"
        )
    return _download(name, weights)


def download_config(name: str) -> Path:
    """The directory of a hub id's config.json in the hub's cache; nothing else is downloaded.

    Raises ModelError as `resolve_model`.
    """
    return _download_files(name, ["config.json", "hf_quant_config.json"])


def _download(name: str, weights: bool) -> Path:
    patterns = ["config.json", "hf_quant_config.json", *EARLY_CONFIGS, *TOKENIZER_FILES]
    if weights:
        patterns += ["*.safetensors", "model.safetensors.index.json"]
    return _download_files(name, patterns)


def _refuse_other_files(name: str) -> None:
    """Raise ModelError where a hub model has files of another format alone, none of which were
    downloaded."""
    from huggingface_hub import list_repo_files

    foreign = of_names(list_repo_files(name))
    if foreign is not None:
        raise foreign.refusal(f"hub model '{name}'")


def _download_files(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        with keeping(lambda: "what was downloaded is kept; the same command goes on with it"):
            path = Path(snapshot_download(name, allow_patterns=patterns))
            if not any(path.glob("*.safetensors" if "*.safetensors" in patterns else "*.json")):
                _refuse_other_files(name)
            return path
    except ModelError:
        raise
    except GatedRepoError:
        raise ModelError(
            f"hub model '{name}' is gated: accept its licence on its page, then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no directory and no hub model '{name}' (a private one needs HF_TOKEN)"
        ) from None
    except HFValidationError as error:
        raise ModelError(f"'{name}' is no directory and no hub id: {error}") from None
    except Exception as error:
        raise ModelError(
            f"hub model '{name}' cannot be downloaded ({type(error).__name__}); check the network, "
            "or copy the model here and give its directory"
        ) from None
