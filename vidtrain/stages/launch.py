"""Start a training on a cluster."""

from vidtrain.config_launch import LaunchConfig


def launch(config: LaunchConfig) -> None:
    """Writes what an engine takes, and hands it over."""
    raise NotImplementedError
