"""The schemes: which sample goes to which client. Every scheme gives every sample to exactly one client.

A scheme is a plain function ``(labels (N,), n_clients, seed, *, options) -> n_clients sorted int64 index arrays``.
The same seed gives the same parts on every machine. A scheme that cannot be satisfied is refused, with the numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedloom.errors import DataError, UsageError, unknown
from fedloom.rng import derive, stream

Indices = NDArray[np.int64]
Parts = list[Indices]

_TRIES = 1000


def stratified(labels: ArrayLike, n_clients: int, seed: int) -> Parts:
    """Give every client the same share of every class: the test folds of scikit-learn's StratifiedKFold.

    They are those of ``StratifiedKFold(n_clients, shuffle=True, random_state=seed)``; one client gets everything.

    Raises:
        DataError: A class has fewer samples than there are clients.
    """
    labels, classes, ids = _classes(labels, n_clients)
    sizes = np.bincount(ids)
    if sizes.min() < n_clients:
        label = classes[sizes.argmin()]
        raise DataError(
            f"stratified: class {label} has {sizes.min()} samples for {n_clients} clients, at least one each is needed",
            expected=n_clients,
            found=int(sizes.min()),
        )
    if n_clients == 1:
        return [np.arange(len(labels), dtype=np.int64)]
    from sklearn.model_selection import StratifiedKFold

    state = seed if 0 <= seed < 2**32 else derive(seed) % 2**32
    folds = StratifiedKFold(n_clients, shuffle=True, random_state=state)
    return [test.astype(np.int64) for _, test in folds.split(np.zeros((len(labels), 1)), labels)]


def iid(labels: ArrayLike, n_clients: int, seed: int) -> Parts:
    """Deal the samples at random, the same number to each client (or one more)."""
    labels, _, _ = _classes(labels, n_clients)
    owner = np.empty(len(labels), dtype=np.int64)
    owner[_rng(seed, "iid").permutation(len(labels))] = np.arange(len(labels)) % n_clients
    return _parts(owner, n_clients)


def dirichlet(
    labels: ArrayLike, n_clients: int, seed: int, *, alpha: float = 0.5, min_size: int = 10, balance: bool = False
) -> Parts:
    """Divide each class among the clients in proportions drawn from Dirichlet(alpha): label skew.

    For each class k, p_k ~ Dir_n(alpha, ..., alpha), and client j receives the share p_kj of its samples. The draw is
    repeated until every client has ``min_size`` samples. Large alpha is IID, small alpha leaves few classes per client.

    Args:
        labels: The class of each sample, (N,).
        n_clients: How many clients.
        seed: The seed.
        alpha: The concentration, > 0.
        min_size: The fewest samples of a client.
        balance: Let a client that has N / n samples already take no part in the classes that follow, as the code of
            Li et al. does.

    Raises:
        DataError: No draw of 1000 gave every client ``min_size`` samples; the best of them is named.

    Source: Hsu, Qi, Brown 2019 (arXiv:1909.06335); divided by class as in Li, Diao, Chen, He 2022 (arXiv:2102.02079).
    """
    labels, classes, ids = _classes(labels, n_clients)
    _above("dirichlet: alpha", alpha, 0)
    _at_least("dirichlet: min_size", min_size, 1)
    _enough("dirichlet", len(labels), n_clients, min_size)
    _several("dirichlet", classes)
    rng = _rng(seed, "dirichlet")
    members = [np.flatnonzero(ids == k) for k in range(ids.max() + 1)]
    best = -1
    for _ in range(_TRIES):
        sizes = _dirichlet_sizes(rng, [len(m) for m in members], n_clients, alpha, balance)
        smallest = int(sizes.sum(axis=0).min())
        if smallest >= min_size:
            break
        best = max(best, smallest)
    else:
        raise DataError(
            f"dirichlet: no draw of {_TRIES} gave each of {n_clients} clients {min_size} samples "
            f"(best: {best} for the smallest); take a larger alpha than {alpha:g}, fewer clients or a smaller min_size",
            expected=min_size,
            found=best,
        )
    owner = np.empty(len(labels), dtype=np.int64)
    for rows, shares in zip(members, sizes, strict=True):
        owner[rng.permutation(rows)] = np.repeat(np.arange(n_clients), shares)
    return _parts(owner, n_clients)


def shards(labels: ArrayLike, n_clients: int, seed: int, *, per_client: int = 2) -> Parts:
    """Sort the samples by class, cut them into ``n_clients * per_client`` shards, and deal each client ``per_client``.

    The shards have equal sizes (or one sample more).

    Raises:
        DataError: There are fewer samples than shards.

    Source: McMahan et al. 2017 (arXiv:1602.05629), section 3: 200 shards of 300 digits, two for each of 100 clients.
    """
    labels, classes, ids = _classes(labels, n_clients)
    _at_least("shards: per_client", per_client, 1)
    _several("shards", classes)
    total = n_clients * per_client
    if total > len(labels):
        raise DataError(
            f"shards: {n_clients} clients with {per_client} shards each need {total} samples, found {len(labels)}",
            expected=total,
            found=len(labels),
        )
    owner_of_shard = _rng(seed, "shards").permutation(np.arange(total) % n_clients)
    sizes = np.full(total, len(labels) // total)
    sizes[: len(labels) % total] += 1
    owner = np.empty(len(labels), dtype=np.int64)
    owner[np.argsort(ids, kind="stable")] = np.repeat(owner_of_shard, sizes)
    return _parts(owner, n_clients)


def by_labels(labels: ArrayLike, n_clients: int, seed: int, *, per_client: int = 2) -> Parts:
    """Let each client hold ``per_client`` classes; each class is divided equally among the clients that hold it.

    The classes are dealt in turn until each has a holder, and each client one; the rest of the hands is random.

    Raises:
        DataError: More classes per client than there are, fewer hands than classes, or a class with fewer samples than
            holders.

    Source: Li, Diao, Chen, He 2022 (arXiv:2102.02079), quantity-based label imbalance (#C = k). Deviation: no class is
    ever left without a holder.
    """
    labels, classes, ids = _classes(labels, n_clients)
    _at_least("labels: per_client", per_client, 1)
    _several("labels", classes)
    if per_client > len(classes):
        raise DataError(
            f"labels: {per_client} classes per client, but the data have {len(classes)}",
            expected=per_client,
            found=len(classes),
        )
    if per_client * n_clients < len(classes):
        raise DataError(
            f"labels: {n_clients} clients with {per_client} classes each hold {n_clients * per_client} at most, "
            f"the data have {len(classes)}",
            expected=len(classes),
            found=n_clients * per_client,
        )
    rng = _rng(seed, "labels")
    held = _deal_classes(rng, len(classes), n_clients, per_client)
    owner = np.empty(len(labels), dtype=np.int64)
    for k, label in enumerate(classes):
        rows, holders = np.flatnonzero(ids == k), np.flatnonzero(held[:, k])
        if len(rows) < len(holders):
            raise DataError(
                f"labels: class {label} has {len(rows)} samples for the {len(holders)} clients that hold it",
                expected=len(holders),
                found=len(rows),
            )
        owner[rng.permutation(rows)] = rng.permutation(holders)[np.arange(len(rows)) % len(holders)]
    return _parts(owner, n_clients)


def quantity(
    labels: ArrayLike,
    n_clients: int,
    seed: int,
    *,
    distribution: str = "lognormal",
    sigma: float = 1.0,
    exponent: float = 1.0,
    min_size: int = 1,
) -> Parts:
    """Give the clients different numbers of samples, with IID classes: quantity skew.

    The sizes above ``min_size`` are proportional to exp(sigma z) with z ~ N(0, 1) ("lognormal"), or to
    rank^-exponent with the ranks 1 to n dealt at random ("powerlaw"), rounded so that they add up.

    Raises:
        DataError: There are fewer samples than ``n_clients * min_size``.
        UsageError: An unknown distribution.
    """
    labels, _, _ = _classes(labels, n_clients)
    _at_least("quantity: min_size", min_size, 1)
    _enough("quantity", len(labels), n_clients, min_size)
    rng = _rng(seed, "quantity")
    if distribution == "lognormal":
        _at_least("quantity: sigma", sigma, 0)
        logs = sigma * rng.standard_normal(n_clients)
    elif distribution == "powerlaw":
        _at_least("quantity: exponent", exponent, 0)
        logs = -exponent * np.log(1.0 + rng.permutation(n_clients))
    else:
        raise unknown("distribution", distribution, ["lognormal", "powerlaw"])
    weights = np.exp(logs - logs.max())
    sizes = min_size + _apportion(weights / weights.sum(), len(labels) - n_clients * min_size)
    owner = np.empty(len(labels), dtype=np.int64)
    owner[rng.permutation(len(labels))] = np.repeat(np.arange(n_clients), sizes)
    return _parts(owner, n_clients)


def by_column(column: ArrayLike) -> tuple[Parts, tuple[str, ...]]:
    """Make one client of each distinct value of a column of the data: the natural split.

    Args:
        column: The value of each sample, (N,).

    Returns:
        The parts in the order of the sorted values, and the values as texts, for the clients' names.

    Raises:
        DataError: The column is empty.

    Example:
        >>> parts, names = by_column(["north", "south", "north"])
        >>> [part.tolist() for part in parts], names
        ([[0, 2], [1]], ('north', 'south'))
    """
    values, owner = np.unique(np.asarray(column), return_inverse=True)
    if len(values) == 0:
        raise DataError("by-column: the column is empty")
    return _parts(owner.reshape(-1), len(values)), tuple(str(value) for value in values)


def _classes(labels: ArrayLike, n_clients: int) -> tuple[NDArray[Any], NDArray[Any], Indices]:
    """Return the labels, the distinct ones, and the place of each label among these."""
    array = np.asarray(labels)
    _at_least("the number of clients", n_clients, 1)
    if array.ndim != 1 or len(array) == 0:
        raise DataError(f"labels of shape {array.shape}: one class per sample is expected", found=array.shape)
    if len(array) < n_clients:
        raise DataError(
            f"{len(array)} samples cannot be divided among {n_clients} clients", expected=n_clients, found=len(array)
        )
    classes, ids = np.unique(array, return_inverse=True)
    return array, classes, ids.reshape(-1)


def _rng(seed: int, scheme: str) -> np.random.Generator:
    return stream(seed, "partition", scheme)


def _parts(owner: Indices, n_clients: int) -> Parts:
    """Turn the owner of each sample into one sorted index array per client."""
    sizes = np.bincount(owner, minlength=n_clients)
    order = np.argsort(owner, kind="stable").astype(np.int64)
    return np.split(order, np.cumsum(sizes)[:-1])


def _dirichlet_sizes(
    rng: np.random.Generator, class_sizes: list[int], n_clients: int, alpha: float, balance: bool
) -> Indices:
    """Draw how many samples of each class go to each client: (C, n)."""
    target = sum(class_sizes) / n_clients
    sizes = np.zeros((len(class_sizes), n_clients), dtype=np.int64)
    for k, total in enumerate(class_sizes):
        shares = rng.dirichlet(np.full(n_clients, alpha))
        if balance:
            open_to = sizes.sum(axis=0) < target
            shares = np.where(open_to, shares, 0)
            if shares.sum() == 0:  # with a tiny alpha the whole class may have fallen to clients that are full
                shares = open_to.astype(float)
            shares /= shares.sum()
        cuts = np.rint(np.cumsum(shares)[:-1] * total).astype(np.int64)
        sizes[k] = np.diff(np.minimum(cuts, total), prepend=0, append=total)
    return sizes


def _deal_classes(rng: np.random.Generator, n_classes: int, n_clients: int, per_client: int) -> NDArray[np.bool_]:
    """Deal ``per_client`` classes to each client so that every class is dealt: (n, C)."""
    dealt = max(n_classes, n_clients)
    held = np.zeros((n_clients, n_classes), dtype=bool)
    held[np.arange(dealt) % n_clients, rng.permutation(n_classes)[np.arange(dealt) % n_classes]] = True
    keys = np.where(held, -1.0, rng.random(held.shape))
    hands = np.argsort(keys, axis=1)[:, :per_client]
    np.put_along_axis(held, hands, values=True, axis=1)
    return held


def _apportion(shares: NDArray[np.float64], total: int) -> Indices:
    """Round ``shares * total`` so that the sum is ``total``: the largest remainders are rounded up."""
    exact = shares * total
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]] += 1
    return sizes


def _enough(scheme: str, n_samples: int, n_clients: int, min_size: int) -> None:
    if n_samples < n_clients * min_size:
        raise DataError(
            f"{scheme}: {n_clients} clients with at least {min_size} samples each need {n_clients * min_size} samples, "
            f"found {n_samples}",
            expected=n_clients * min_size,
            found=n_samples,
        )


def _several(scheme: str, classes: NDArray[Any]) -> None:
    if len(classes) == 1:
        raise DataError(
            f"{scheme}: all samples are of class {classes[0]}, so there are no classes to skew; take iid or quantity"
        )


def _at_least(what: str, value: float, least: int) -> None:
    if not least <= value < np.inf:
        raise UsageError(f"{what} must be at least {least} and finite, found {value:g}", expected=least, found=value)


def _above(what: str, value: float, bound: float) -> None:
    if not bound < value < np.inf:
        raise UsageError(f"{what} must be above {bound:g} and finite, found {value:g}", found=value)
