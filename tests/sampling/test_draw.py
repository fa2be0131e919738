from __future__ import annotations

import torch

from arcvideo.sampling.decode import draw, filtered, uniforms


def test_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    noise = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens = draw(probabilities.log().expand(20_000, -1), noise=noise)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, probabilities, atol=1e-3, rtol=0)


def test_draw_never_returns_a_forbidden_token_at_the_edges_of_the_noise() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert int(draw(logits, noise=torch.tensor([0.0], dtype=torch.float64))) == 1
    assert int(draw(logits, noise=torch.tensor([1.0 - 1e-17], dtype=torch.float64))) == 2


def test_top_k_keeps_the_k_most_likely() -> None:
    kept = torch.isfinite(filtered(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), top_k=2, top_p=1.0))
    assert kept.tolist() == [[False, True, True, False]]


def test_top_p_keeps_the_smallest_nucleus_and_at_least_one() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isfinite(filtered(logits, top_k=0, top_p=0.7)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filtered(logits, top_k=0, top_p=0.01)).tolist() == [[True, False, False, False]]


def test_noise_depends_on_seed_key_and_generation_and_on_nothing_else() -> None:
    base = uniforms(seed=1, key="a/0", generation=0, count=8)
    assert torch.equal(base[:3], uniforms(seed=1, key="a/0", generation=0, count=3))
    for other in ({"seed": 2}, {"key": "a/1"}, {"generation": 1}):
        assert not torch.equal(base, uniforms(**{"seed": 1, "key": "a/0", "generation": 0, "count": 8, **other}))
