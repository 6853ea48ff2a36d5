"""The small C3D: what its options make of a clip."""

import torch

from vidtrain.models.c3d import MeanAndMax, c3d


def test_c3d_sees_only_what_moves() -> None:
    net = c3d(num_classes=2, differences=True, pool="mean_max").eval()
    still = torch.rand(1, 3, 1, 16, 16).expand(1, 3, 6, 16, 16)
    other = torch.rand(1, 3, 1, 16, 16).expand(1, 3, 6, 16, 16)
    assert torch.equal(net(still), net(other)), "nothing moves in either"
    assert not torch.equal(net(still), net(torch.rand(1, 3, 6, 16, 16)))
    features = torch.zeros(1, 2, 3, 4, 4)
    features[0, 1, :, 2, 3] = 8.0
    pooled = MeanAndMax()(features)
    assert pooled.tolist() == [[0.0, 8.0 + 8.0 / 16]]
    for frames, side in ((3, 8), (16, 112)):
        assert net(torch.rand(2, 3, frames, side, side)).shape == (2, 2)
