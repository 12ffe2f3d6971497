"""The errors that a user can cause and mend.

    AwqEdgeError                 anything below; the CLI prints its text in one line, exit code 2
    ├── ConfigError              a recipe, a flag or a combination of flags is wrong
    ├── ModelError               a model or checkpoint cannot be read, or is not supported
    │   └── KeyValueError        one of its keys is missing or has a value that it cannot have
    ├── ArtifactError            a checkpoint, bundle or engine is damaged or does not match
    ├── RuntimeUnavailableError  this machine cannot execute what was asked for
    ├── ResourceError            not enough disk, memory or context
    ├── DeviceError              a call of CUDA or TensorRT failed on this machine's GPU
    └── KernelError              a CUDA kernel refused its arguments, or CUDA its launch

Every message says what failed, with the actual values, and what to do about it.
"""

from __future__ import annotations


class AwqEdgeError(Exception):
    """Base of all errors that are the input's or the machine's, not this program's."""


class ConfigError(AwqEdgeError):
    """A recipe, a flag or a combination of flags is wrong."""


class ModelError(AwqEdgeError):
    """A model or a checkpoint cannot be read, or is not supported."""


class KeyValueError(ModelError):
    """A key of a model's configuration is missing, or has a value that it cannot have."""


class ArtifactError(AwqEdgeError):
    """A checkpoint, bundle or engine is damaged, incomplete or does not match its manifest."""


class RuntimeUnavailableError(AwqEdgeError):
    """This machine cannot execute the runtime that was asked for."""


class ResourceError(AwqEdgeError):
    """Not enough disk space, memory or context length for what was asked."""


class DeviceError(AwqEdgeError):
    """A call of CUDA or TensorRT failed on this machine's GPU."""


class KernelError(AwqEdgeError):
    """A function of the kernel library refused its arguments, or CUDA the launch."""
