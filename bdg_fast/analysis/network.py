"""From fingerprints to kinds and levels: the networks of training (`bdg_fast.models`), smaller."""

from __future__ import annotations

from torch import Tensor, nn

from bdg_fast.models import DegradationClassifier, GLCMEncoder

LEVELS = 32
"""Gray levels of `bdg_fast.fingerprint`'s matrices."""
WIDTH, BASE = 64, 8


class FingerprintReader(nn.Module):
    """Kind and level of a degradation from a fingerprint.

    Args:
        kinds: how many are told apart.
    """

    def __init__(self, kinds: int) -> None:
        """Random weights."""
        super().__init__()
        self.encoder = GLCMEncoder(LEVELS, 2, WIDTH, BASE)
        self.kind = DegradationClassifier(WIDTH, kinds)
        self.level = DegradationClassifier(WIDTH, kinds)

    def forward(self, fingerprints: Tensor) -> tuple[Tensor, Tensor]:
        """Read.

        Args:
            fingerprints: float32 ``[B, 2048]`` of `bdg_fast.fingerprint`.

        Returns:
            Logits of kinds ``[B, kinds]``, and for each kind the level it would have, as a share of its range.
        """
        # the encoder takes fourth roots, as the fingerprint did
        features = self.encoder(fingerprints.view(-1, 2, LEVELS, LEVELS) ** 4)
        return self.kind(features), self.level(features).sigmoid() * 1.1 - 0.05
