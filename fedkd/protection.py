"""What a scenario may ask of the room `privacy`: the settings only; the work is done there.

A client tells of its data in three ways: by what it *trained*, by which proxy samples it accepts
(its *filter*), and by the answers that it *releases*. Each has its own table of protections here,
and `privacy` has the row's work under the same name. What the *server* does to the sum is a fourth.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedkd.errors import FedkdError
from fedkd.section import Section, table


class PlainTraining(Section):
    """Local training as it is: no guarantee for any record."""

    name: Literal["plain"] = "plain"


class DpSgd(Section):
    """DP-SGD: each record's gradient is clipped, and Gaussian noise is added to their sum."""

    name: Literal["dp-sgd"] = "dp-sgd"
    clip: float = Field(1.0, gt=0)
    """C: the largest L2 norm of one record's gradient, over all weights together."""
    epsilon: float | None = Field(None, gt=0)
    """Of a record, for the whole run at `privacy.delta`: the noise is calibrated to it, once."""
    noise_multiplier: float = Field(1.0, ge=0)
    """Of the noise on a sum, in units of `clip`, if there is no `epsilon`; 0 guarantees nothing."""
    error_clip: float = Field(0.0, ge=0)
    """C2 of DiceSGD's error feedback, in units of the mean gradient; 0 is plain DP-SGD."""

    @model_validator(mode="after")
    def _calibrates_what_is_proved(self) -> DpSgd:
        if self.epsilon is not None and self.error_clip:
            raise FedkdError(
                "no noise is calibrated for DP-SGD with error feedback",
                value=f"epsilon {self.epsilon}, error_clip {self.error_clip}",
                fix="set privacy.training.noise_multiplier instead of epsilon, or no error_clip",
            )
        return self

    @property
    def noisy(self) -> bool:
        """Whether there is any noise, without which nothing is guaranteed."""
        return self.epsilon is not None or self.noise_multiplier > 0

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise on each coordinate of a sum of gradients."""
        return self.noise_multiplier * math.sqrt(self.clip**2 + 2 * self.clip * self.error_clip)


class Nfdp(Section):
    """FedMD-NFDP: train on a part of the records, drawn once. A cautionary baseline: see docs."""

    name: Literal["nfdp"] = "nfdp"
    fraction: float = Field(0.5, gt=0, lt=1)


class PlainFilter(Section):
    """The method's own score and gate: which samples a client accepts tells of its data."""

    name: Literal["plain"] = "plain"


class _PrivateFilter(Section):
    epsilon: float = Field(2.0, gt=0)
    """Of a record, for the summary and its threshold together; asked once, for the whole run."""
    axes: int = Field(20, ge=1)
    """Principal axes of the proxy set that are looked at; noise grows with their number."""


class DpKMeans(_PrivateFilter):
    """Centroids by noisy Lloyd steps from public seeds; a private threshold."""

    name: Literal["dp-kmeans"] = "dp-kmeans"
    k: int = Field(30, ge=1)


class DpClassMeans(_PrivateFilter):
    """Noisy class means of random features; a private threshold."""

    name: Literal["dp-class-means"] = "dp-class-means"


class DpKernel(_PrivateFilter):
    """Sums of L1 distances from noisy interval trees (Backurs et al.); a private threshold."""

    name: Literal["dp-kernel"] = "dp-kernel"


class PlainRelease(Section):
    """The answers as the method makes them."""

    name: Literal["plain"] = "plain"


class TopOne(Section):
    """The arg-max alone. Empirical: less leaves, but nothing is proved."""

    name: Literal["top-1"] = "top-1"


class _Noised(Section):
    bound: float = Field(5.0, gt=0)
    """Logits are centred and clipped at +- this; the temperature is the method's."""
    epsilon: float = Field(8.0, gt=0)
    """Of a whole client, for all answers of the run; the noise is calibrated to it, once."""


class GaussianRelease(_Noised):
    """Clipped soft labels plus Gaussian noise: a whole client is protected."""

    name: Literal["gaussian"] = "gaussian"


class LaplaceRelease(_Noised):
    """Clipped soft labels plus Laplace noise: a whole client is protected, with delta = 0."""

    name: Literal["laplace"] = "laplace"


class SampledLabel(Section):
    """One label drawn from each clipped soft label: the exponential mechanism."""

    name: Literal["sampled-label"] = "sampled-label"
    bound: float = Field(5.0, gt=0)


class RandomisedResponse(Section):
    """The arg-max, told truly or at random; the server takes the bias off the mean (PrivateKT)."""

    name: Literal["randomised-response"] = "randomised-response"
    epsilon: float = Field(1.0, gt=0)
    """Of a whole client, for one answer."""


class SummaryRelease(Section):
    """What a private summary of the records says, never the model: asked once, answers all."""

    name: Literal["summary"] = "summary"
    by: Literal["dp-kmeans", "dp-class-means", "dp-kernel"] = "dp-class-means"
    """Which summary, as the filter of that name makes it, but by class."""
    epsilon: float = Field(2.0, gt=0)
    """Of a record, for all answers of the run."""
    axes: int = Field(20, ge=1)
    """Principal axes of the proxy set that are looked at; noise grows with their number."""

    @property
    def made_as(self) -> DpKMeans | DpClassMeans | DpKernel:
        """The filter's row that makes such a summary."""
        match self.by:
            case "dp-kmeans":
                return DpKMeans(epsilon=self.epsilon, axes=self.axes)
            case "dp-class-means":
                return DpClassMeans(epsilon=self.epsilon, axes=self.axes)
            case "dp-kernel":
                return DpKernel(epsilon=self.epsilon, axes=self.axes)


PUBLIC_DEGREES = ("patterns", "rarity")
"""Degrees of privacy that are read off the proxy set's texts, so that everybody knows them."""
TEXT_DEGREES = (*PUBLIC_DEGREES, "divergence", "memorization")
"""Degrees of texts: the last two compare the client's model with one of the proxy set's texts."""


class Swing(Section):
    """A temperature for each position by how private it is, and noise. Formulas are ours."""

    name: Literal["swing"] = "swing"
    degree: Literal["patterns", "rarity", "divergence", "memorization", "classes", "density"] = (
        "patterns"
    )
    private_classes: tuple[int, ...] = ()
    """Of the degree `classes` only."""
    coefficients: tuple[float, float, float, float] = (-4.5, 0.0, 0.0, 0.0)
    """Of `memorization` only: of a text's zlib entropy, perplexities of the public and the client's
    model, and KL, standardised over the texts; only the first was published."""
    bound: float = Field(5.0, gt=0)
    t_min: float = Field(1.0, gt=0)
    t_max: float = Field(20.0, gt=0)
    sharpness: float = Field(1.0, gt=0)
    noise: Literal["none", "gaussian", "laplace"] = "none"
    scale: float = Field(0.1, gt=0)
    """Of the noise on a soft label: its standard deviation, or Laplace scale."""
    noise_from: float = Field(0.0, ge=0, le=1)
    """The least degree that is noised. Above 0 nothing is claimed: it is empirical."""
    pooled: str = ""
    """Of texts: characters that answers never tell apart, as the alphabet of secrets."""

    @model_validator(mode="after")
    def _swings(self) -> Swing:
        if self.t_max < self.t_min:
            raise FedkdError(
                "the highest temperature is below the lowest in privacy.release.t_max",
                value=self.t_max,
                allowed=f"{self.t_min} or more",
            )
        if (self.degree == "classes") != bool(self.private_classes):
            raise FedkdError(
                "the degree classes needs private classes, and no other has them",
                value=f"{self.degree}, {self.private_classes}",
                fix='privacy.release.degree = "classes" with private_classes = [3, 5], for example',
            )
        return self

    @property
    def reads_records(self) -> bool:
        """Whether temperatures depend on private records themselves, and not on a model alone."""
        return self.degree == "density"


class PlainServer(Section):
    """The server sees every answer, and tells the consensus as it is."""

    name: Literal["plain"] = "plain"


class GnMax(Section):
    """Confident-GNMax: the noisy winner of the votes where it is clear; the server is trusted."""

    name: Literal["gnmax"] = "gnmax"
    threshold: float = Field(gt=0)
    """Votes that a sample's winner must reach, noise included."""
    sigma_threshold: float = Field(gt=0)
    sigma: float = Field(gt=0)


class SecureAggregation(Section):
    """Answers leave under masks that cancel in the sum: the server sees the sum alone."""

    name: Literal["secure-aggregation"] = "secure-aggregation"
    sigma: float = Field(0.0, ge=0)
    """Standard deviation of the Gaussian noise on each sum, which the clients make together."""


TrainingRow = Annotated[PlainTraining | DpSgd | Nfdp, Field(discriminator="name")]
FilterRow = Annotated[PlainFilter | DpKMeans | DpClassMeans | DpKernel, Field(discriminator="name")]
ReleaseRow = Annotated[
    PlainRelease
    | TopOne
    | GaussianRelease
    | LaplaceRelease
    | SampledLabel
    | RandomisedResponse
    | SummaryRelease
    | Swing,
    Field(discriminator="name"),
]
ServerRow = Annotated[PlainServer | GnMax | SecureAggregation, Field(discriminator="name")]

TRAININGS = table(PlainTraining, DpSgd, Nfdp)
FILTERS = table(PlainFilter, DpKMeans, DpClassMeans, DpKernel)
PROTECTED_RELEASES = table(
    PlainRelease,
    TopOne,
    GaussianRelease,
    LaplaceRelease,
    SampledLabel,
    RandomisedResponse,
    SummaryRelease,
    Swing,
)
SERVERS = table(PlainServer, GnMax, SecureAggregation)


class Privacy(Section):
    """What may leave a client, and at what cost."""

    training: TrainingRow = PlainTraining()
    filter: FilterRow = PlainFilter()
    release: ReleaseRow = PlainRelease()
    server: ServerRow = PlainServer()
    delta: float = Field(1e-5, gt=0, lt=1)
    """Every epsilon of the run is at this delta."""
    budget: float | None = Field(None, gt=0)
    """The epsilon at which a client stops: it abstains from then on, and the run goes on. Under
    `gnmax`, for the unit `client`, the server is who stops."""
    unit: Literal["record", "client"] = "record"
    """Whom the budget protects: one record added or removed, or a client's whole data replaced."""

    @property
    def budget_is_the_server_s(self) -> bool:
        """Whether the budget is for what the server tells: of whole clients, where it is trusted
        with their answers."""
        return isinstance(self.server, GnMax) and self.unit == "client"

    @property
    def noised(self) -> bool:
        """Whether every answer has noise of its own before it leaves."""
        if isinstance(self.release, Swing):
            return self.release.noise != "none"
        return not isinstance(self.release, PlainRelease | TopOne | SummaryRelease)

    def check_server(self, exchange: str, release: str) -> None:
        """Args: exchange, release: what the method exchanges, and the name of its release.

        Raises: FedkdError where the server's protection does not go with the rest.
        """
        if isinstance(self.server, PlainServer):
            return
        if exchange != "soft-labels":
            raise FedkdError(
                f"privacy.server.name = {self.server.name!r} protects a sum of soft labels, and "
                "this method sends none",
                value=exchange,
                allowed="a method that exchanges soft-labels",
                fix='privacy.server.name = "plain"',
            )
        secure = isinstance(self.server, SecureAggregation)
        # A table under a mask is sent whole, so a coding would lose something and save nothing.
        allowed = ("probabilities",) if secure else ("probabilities", "top-k", "sampled", "arg-max")
        if release not in allowed:
            raise FedkdError(
                f"privacy.server.name = {self.server.name!r} does not go with this release",
                value=f"method.release.name = {release!r}",
                allowed=", ".join(allowed),
                fix='method.release.name = "probabilities"',
            )
        if isinstance(self.server, SecureAggregation) and self.server.sigma and self.noised:
            raise FedkdError(
                "answers would get noise twice, and be charged for one of them",
                value=f"privacy.server.sigma = {self.server.sigma:g} and "
                f"privacy.release.name = {self.release.name!r}",
                allowed="one of the two",
                fix='privacy.server.sigma = 0, or privacy.release.name = "plain"',
            )
