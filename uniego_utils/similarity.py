"""How alike two encoders see the same clips."""

from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment: likeness of two feature sets, blind to rotation and scale.

    Computed in feature space, hence linear in clips.

    Args:
        x: (n, p) features; row i describes clip i.
        y: (n, q) features of the same n clips in the same order; q may differ from p.

    Returns:
        A unitless score in [0, 1]; 1 means the same geometry. Small n inflates it, so compare scores only
        at equal n.

    Raises:
        ValueError: the rows do not pair up, or one side is constant or not finite.

    Source: Kornblith et al. 2019, arXiv:1905.00414; the paper's Figure 3.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"expected (n, p) and (n, q), got {tuple(x.shape)} and {tuple(y.shape)}")
    for name, features in (("x", x), ("y", y)):
        if not features.isfinite().all() or (features == features[:1]).all():
            raise ValueError(f"{name} is constant or not finite")
    x, y = x.double(), y.double()  # float32 loses digits in sums over many clips
    x, y = x - x.mean(0), y - y.mean(0)
    shared = (x.T @ y).square().sum()
    return (shared / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def direction_spread(features: Tensor) -> float:
    """How far the clips' directions differ: 1 - |mean of the unit vectors|^2, in [0, 1].

    0: all (n, d) rows point the same way, so that a cosine distance to them tells clips apart no longer;
    near 1: they spread evenly. Raises ValueError for rows without a direction.
    """
    norms = features.double().norm(dim=1, keepdim=True)
    if not norms.isfinite().all() or (norms == 0).any():
        raise ValueError("a row is zero or not finite: it has no direction")
    return 1 - (features.double() / norms).mean(0).square().sum().item()
