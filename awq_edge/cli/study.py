"""`awq-edge study`: where it went."""

from awq_edge.errors import ConfigError


def study() -> None:
    """Moved: `python -m experiments`, in a checkout of the source."""
    raise ConfigError(
        "the paper's experiments are no part of the installed package any more; in a checkout of "
        "the source: python -m experiments, with the same arguments"
    )
