"""AWQ for edge devices: quantize a language model, export it, run it.

    recipe = awq_edge.load_recipe("cpu", bits=4, group_size=64)
    awq_edge.quantize("demo", "checkpoint", recipe)               [host]
    awq_edge.export("checkpoint", "bundle", recipe)               [host]
    awq_edge.export_gguf("checkpoint", "model.gguf", recipe)      [host,gguf]
    with awq_edge.load("bundle") as model:
        print(model.generate("Once upon a time", max_new_tokens=64).text)

The command line does the same. What needs an extra is imported when it is called.
"""

# No import of another module: until `__main__` runs, Ctrl-C shows the interpreter's traceback.
TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing import Any

    from awq_edge._version import __version__
    from awq_edge.artifacts.directories import Bundle
    from awq_edge.errors import AwqEdgeError
    from awq_edge.pipeline import export, export_gguf, quantize
    from awq_edge.quantizer.run_options import RunOptions
    from awq_edge.recipe.recipes import Recipe, load_recipe
    from awq_edge.runtime.model import Model, load

__all__ = [
    "AwqEdgeError",
    "Bundle",
    "Model",
    "Recipe",
    "RunOptions",
    "__version__",
    "export",
    "export_gguf",
    "load",
    "load_recipe",
    "quantize",
]

_HOME = {
    "AwqEdgeError": "awq_edge.errors",
    "Bundle": "awq_edge.artifacts.directories",
    "Model": "awq_edge.runtime.model",
    "Recipe": "awq_edge.recipe.recipes",
    "RunOptions": "awq_edge.quantizer.run_options",
    "__version__": "awq_edge._version",
    "export": "awq_edge.pipeline",
    "export_gguf": "awq_edge.pipeline",
    "load": "awq_edge.runtime.model",
    "load_recipe": "awq_edge.recipe.recipes",
    "quantize": "awq_edge.pipeline",
}


def __getattr__(name: str) -> "Any":
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'awq_edge' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
