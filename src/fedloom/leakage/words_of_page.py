"""What the page of the gallery says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from fedloom.report import words
from fedloom.report.comparison import Finding

if TYPE_CHECKING:
    from fedloom.leakage.gallery import Attempt
    from fedloom.leakage.leak import Leak
    from fedloom.leakage.lessons import Learned

VERDICTS: Final = {"recovered": "The picture is seen", "traces": "Traces are seen", "nothing": "No better than a guess"}

NOISE: Final = (
    "drawn from the seed, so that the page can be made again; a real run takes the operating system's randomness"
)
SOURCES: Final = (
    "Zhu et al. 2019 and Geiping et al. 2020 (gradient inversion); Phong et al. 2018 and Fowl et al. 2022 (division); Zhao "
    "et al. 2020 (labels); Yeom et al. 2018, Watson et al. 2022 and Carlini et al. 2022 (membership)"
)

_ORDER: Final = ("problem", "warning", "info", "good")

_WHY: Final = {
    "plain": "The server sees the update as the client made it.",
    "clipped": "The update is cut to half of its length. Its direction stays, and the picture is in the direction.",
    "top-k": "Only the largest 1 % of the numbers are sent: less to work with, though they say most.",
    "sum-of-10": "The server learns only the sum of 10 clients' updates, and looks for all their pictures at once.",
    "sum-of-100": "The same with 100 clients: one sum has to explain 100 pictures.",
    "sum-of-10-noise-1": "Everybody who sees the result sees the sum, with noise of one clipping bound on every number.",
}


def lead(found: Leak) -> str:
    """Say in two sentences what the page shows."""
    plain = next(attempt for attempt in found.searches if attempt.protection.name == "plain")
    first = {
        "recovered": "From one unprotected update, the server can draw the picture that it was computed from.",
        "traces": "From one unprotected update, the server can draw something of the picture that it was computed from.",
        "nothing": "Gradient inversion did not find this picture. That proves nothing: another search may.",
    }[plain.verdict]
    return f"{first} Data that stay at home are not enough: what is sent has to be protected as well."


def figures(attempt: Attempt) -> str:
    """Say how near the attack came."""
    text = f"{attempt.psnr.mean():.1f} dB, a guess has {attempt.guess.mean():.1f} dB."
    if attempt.psnr.mean() >= 60:
        text = f"{attempt.psnr.mean():.0f} dB: every pixel is right. A guess has {attempt.guess.mean():.1f} dB."
    if attempt.pictures > len(attempt.psnr):
        text += f" The clearest of all {attempt.pictures} pictures: {attempt.best:.1f} dB."
    if np.isfinite(attempt.labels):
        text += f" Labels read off the update: {words.percent(attempt.labels, 0)} right."
    return text


def why(attempt: Attempt, found: Leak) -> str:
    """Explain a protection, and what its noise guarantees."""
    one = attempt.protection
    text = _WHY.get(one.name, "")
    if one.noise and one.clients == 1:
        text = f"On each number lies noise whose standard deviation is {one.noise:g} times the clipping bound."
    if one.name in found.epsilons:
        text += f" One such round has an epsilon of {_epsilon(found.epsilons[one.name])}."
    return text


def findings(found: Leak) -> list[Finding]:
    """Say what happened, the worst first."""
    by = {attempt.protection.name: attempt for attempt in found.searches}
    told = []
    seen = [a.protection.title.lower() for a in found.searches if a.verdict == "recovered"]
    if seen:
        text = f"The search found the victim's picture behind: {_listed(seen)}."
        if by["clipped"].verdict == "recovered":
            text += " Clipping alone does not help: it makes the update shorter and leaves its direction."
        told.append(Finding("problem", "An update holds the picture", text))
    told += _divided(found)
    if by["noise-0.01"].verdict != "recovered":
        text = (
            "Noise far below what the theory asks for blinds this attack already. That is no guarantee: the epsilon on the "
            "card says what is proven, and a number in the thousands proves nothing. Noise 1 is what real runs use, on a sum "
            "of many clients, where it costs each of them little."
        )
        told.append(Finding("good", "Noise blinds the search", text))
    if by["sum-of-100"].verdict != "recovered":
        text = (
            "With secure aggregation the server learns the sum of all updates and nothing else. "
            f"{by['sum-of-100'].protection.clients} clients hide each other from the search; a few may not. It promises "
            "nothing about what the sum itself says, which is what noise is for: the two belong together."
        )
        told.append(Finding("good", "A client hides among many", text))
    told += _members(found)
    told += [Finding("info", "Not trained", text) for text in found.left_out]
    return sorted(told, key=lambda finding: _ORDER.index(finding.level))


def _divided(found: Leak) -> list[Finding]:
    plain = [a for a in found.divisions if a.protection.name == "plain" and a.verdict == "recovered"]
    if not plain:
        return []
    text = f"With {found.divided}, whose first layer is fully connected, one division gives the picture, without any search."
    leaking = [a for a in found.divisions if a.protection.clients > 1 and not a.protection.noise and a.best >= 30]
    if leaking:
        text += (
            f" Even of a sum of {leaking[-1].pictures} pictures at least one comes out clean: secure aggregation hides whose "
            "it is, not what it shows."
        )
    return [Finding("problem", "A fully connected first layer copies its input into the update", text)]


def _members(found: Leak) -> list[Finding]:
    by = {one.lesson.name: one for one in found.lessons}
    told = []
    if "few" in by and by["few"].calibrated.auc.low > 0.5:
        one = by["few"]
        text = (
            f"Trained on {one.samples} samples until it knew them by heart, the model tells its members from others: of a "
            f"member and another sample, the attack picks the first {words.percent(one.calibrated.auc.value, 0)} of the time."
        )
        if "many" in by:
            text += (
                f" With {by['many'].samples:,} samples it is {words.percent(by['many'].calibrated.auc.value, 0)}: what is "
                "not learned by heart cannot be told."
            )
        told.append(Finding("warning", "A model remembers who it was trained on", text))
    if "many-private" in by and "many" in by:
        plain, private = by["many"], by["many-private"]
        text = (
            f"With DP-SGD{_guaranteed(private)} the attack picks the member "
            f"{words.percent(private.calibrated.auc.value, 0)} of the time. Its price is accuracy: "
            f"{words.percent(private.loss.accuracy)} instead of {words.percent(plain.loss.accuracy)}. "
            "The more samples or clients take part, the smaller that price."
        )
        told.append(Finding("good", "Differential privacy bounds what anybody can learn", text))
    return told


def costs(found: Leak) -> list[tuple[str, str, str]]:
    """Return a row for every protection: its name, what it does, what it costs."""
    by = {one.lesson.name: one for one in found.lessons}
    measured = ""
    if {"many", "many-private"} <= set(by):
        plain, private = (words.percent(by[name].loss.accuracy) for name in ("many", "many-private"))
        measured = f" Here: {private} instead of {plain}."
    return [
        (
            "Clipping",
            "Nothing by itself. It bounds how much one client can count, so that noise can be measured by it.",
            "Long updates count less, so that learning is a little slower.",
        ),
        (
            "Noise (differential privacy)",
            "The only protection with a proof, against every attack, today's and tomorrow's.",
            f"Accuracy, unless very many take part.{measured}",
        ),
        (
            "Secure aggregation",
            "The server sees nothing but the sum of many updates, and never one of them.",
            "Keys and masks for every round, and rules that look at single updates (median, Krum) cannot be used.",
        ),
        (
            "Compression",
            "Fewer bytes, and less for an attacker to work with. It is no protection: nothing is proven.",
            "A little accuracy.",
        ),
        (
            "More samples, less training",
            "What is not learned by heart cannot be told. Larger batches mix pictures, too.",
            "Nothing but the samples; there is no proof either.",
        ),
    ]


def _guaranteed(one: Learned) -> str:
    return f" (epsilon {one.epsilon:.1f} per sample)" if one.epsilon is not None else ""


def _epsilon(value: float) -> str:
    return f"{value:,.0f}, which guarantees nothing" if value > 20 else f"{value:.1f}"


def _listed(texts: Iterable[str]) -> str:
    return "; ".join(texts)
