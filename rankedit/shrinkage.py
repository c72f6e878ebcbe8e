"""Shrinkage intensities from a moment alone.

Shrinking replaces `C` by `(1 − s) C + s μ I` with `μ = tr(C)/dim`. It matters when few vectors were
seen: sample eigenvalues spread too far, and inverting them amplifies the error. Both estimators
treat the moment as uncentred (mean known to be zero), and equal scikit-learn's functions of the
same name with `assume_centered=True`. Weights are frequencies, so that n is their sum,
`SecondMoment.count`: a weight of 2 says the same as the vector twice.
"""

from __future__ import annotations

from rankedit.moments import SecondMoment
from rankedit.shapes import check_kind


def ledoit_wolf(moment: SecondMoment) -> float:
    """Shrinkage intensity of Ledoit and Wolf (2004), lemma 3.2 to theorem 3.2, in [0, 1].

    With `d² = ‖C − μI‖²_F` and `b² = (E‖x‖⁴ − ‖C‖²_F)/n`, the intensity is `min(b², d²)/d²`.
    Only `n`, `C` and `Σ‖x‖⁴` enter, so no second pass over the data is needed.

    Source: "A well-conditioned estimator for large-dimensional covariance matrices",
    J. Multivariate Analysis 88 (2004) 365-411.
    """
    check_kind("ledoit_wolf", "moment", moment, SecondMoment)
    matrix = moment.matrix
    square = float(matrix.square().sum())
    # `‖C − μI‖² = ‖C‖² − tr(C)²/dim`: no second matrix is made.
    distance = square - float(matrix.trace()) ** 2 / moment.dim
    noise = (moment.fourth - square) / moment.count
    # Rounding may leave `b²` a little below zero, and beyond `d²` all of C is noise.
    return min(max(noise, 0.0), distance) / distance if distance > 0 else 0.0


def oas(moment: SecondMoment) -> float:
    """Oracle approximating shrinkage of Chen et al. (2010), equation 23, in [0, 1].

    As in scikit-learn, terms of order `1/dim` of the numerator are dropped:
    `s = min(1, (a + μ²) / ((n + 1)(a − μ²/dim)))` with `a = ‖C‖²_F/dim²` and `μ = tr(C)/dim`.

    Source: "Shrinkage algorithms for MMSE covariance estimation", IEEE Trans. Signal Processing 58
    (2010) 5016-5029.
    """
    check_kind("oas", "moment", moment, SecondMoment)
    matrix = moment.matrix
    square = float(matrix.square().mean())
    mean_square = (float(matrix.trace()) / moment.dim) ** 2
    numerator = square + mean_square
    denominator = (moment.count + 1) * (square - mean_square / moment.dim)
    if moment.dim == 1:  # nothing to shrink towards: C is its own mean eigenvalue
        return 0.0
    return 1.0 if denominator <= 0 else min(1.0, numerator / denominator)
