"""Checkpoints of facebookresearch/hiera -> timm's names."""

from torch import Tensor

from vidtrain.models.weights.renaming import Rules, renamed

_RULES: Rules = (
    (r"^(encoder_)?norm\.", "head.norm."),
    (r"^head\.projection\.", "head.fc."),
)


def convert(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns the weights under the names of `vidtrain.models.hiera`.

    Args:
        state: Checkpoint of a classifier, or of a masked autoencoder: its decoder keeps its names.
        own: Weights of the network they are for.

    Returns:
        The same tensors; None where the names are not Hiera's, or the network is another one.

    Source: facebookresearch/hiera, hiera/hiera.py and hiera/hiera_mae.py.
    """
    positions = {"pos_embed_spatial", "pos_embed_temporal"}
    if not positions <= state.keys() & own.keys() or "head.norm.weight" in state:
        return None
    return renamed(state, _RULES)
