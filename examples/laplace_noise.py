"""A token mode of one's own: Laplace noise on the mixture, in the place of Gaussian noise.

    x = h + b L, with h = softmax(z / tau) E and L ~ Laplace(0, 1)      log pi = -|x - h|_1 / b   (up to a constant)

b = sigma / sqrt(2), so that the noise has the standard deviation sigma that `noise_scale` asks for. In config.yaml:

    training_modes:
      laplace: {tokens: "examples/laplace_noise.py:LaplaceNoise", temperature: 0.5, noise_scale: 0.33}
"""

import torch

from softtok.method.token_modes import SoftTokens


class LaplaceNoise(SoftTokens):
    """Soft tokens with Laplace noise, drawn by its inverse CDF."""

    noise_draws = "uniform"

    @property
    def scale(self) -> float:
        """b, the mean absolute value of the noise."""
        return float(self.noise_std / 2**0.5)

    def noise(self, draw_ND: torch.Tensor) -> torch.Tensor:
        centred_ND = (draw_ND - 0.5).clamp(min=2.0**-25 - 0.5)  # a uniform of 0 would be an infinite step
        return -self.scale * centred_ND.sign() * torch.log1p(-2 * centred_ND.abs())

    def log_density(self, action_MD: torch.Tensor, mean_MD: torch.Tensor) -> torch.Tensor:
        return -(action_MD.detach() - mean_MD).abs().sum(-1) / self.scale

    def noise_size(self, noise_MD: torch.Tensor) -> torch.Tensor:
        return noise_MD.abs() / self.scale
