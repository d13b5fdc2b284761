"""Secure aggregation of soft labels: the server learns the clients' sum and no client's part of it.

Each pair of clients agrees on a secret (X25519), both stretch it to a mask (HKDF, ChaCha20) and one
adds what the other subtracts, so all masks cancel in the sum. Values are whole multiples of
2^-30 in 64-bit arithmetic that wraps around, so the sum has the bits of the plain sum. Who answered
which sample is summed in the same way, as one more column: a mask of its own would leak.

    keys -> publish -> Cohort        once a round, by way of the server
    table -> blind -> upload         each client
    add uploads, repair, unblind     the server

Flower 1.41 has SecAgg+ for its legacy messages only; this is for the Message API.

Guarantee: an honest-but-curious server that colludes with none or some of the clients sees uploads
that are uniform but for the sum over the other clients (decisional Diffie-Hellman on X25519, HKDF
and ChaCha20 as random functions). Limits:

* The sum itself is not protected; `add_noise` does that, see there.
* A server that hands out keys of its own making, or that calls a client lost whose upload it has,
  reads that client. So an upload that comes after a repair must be thrown away.
* No client's part can be checked, clipped or weighed by the server: no robust rules, no refusals.
* A client that is lost after the keys went out costs one more message (`reveal`) to each of the
  others, all of which must answer; there is no secret sharing, so a second loss costs the round.

Source: Bonawitz et al., CCS 2017, section 4 (pairwise masks). Deviations: no second, self-drawn
mask and no Shamir shares (what the two limits above are due to); a lost client's masks are taken
out by what the others reveal, secrets of that one round and pair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedkd.errors import FedkdError
from privacy.events import Gaussian, Relation

UNIT = 2.0**-30
"""The grid of values."""

Blinded = NDArray[np.uint64]


class Keys(NamedTuple):
    """One client's key pair, 32 bytes each."""

    private: bytes
    public: bytes


@dataclass(frozen=True)
class Cohort:
    """The clients of one round, as all of them must see it."""

    round: int
    public: Mapping[int, bytes]
    """Public key by client."""
    least: int
    """The fewest clients that a sum may be over; also those whose noise makes it private."""

    def __post_init__(self) -> None:
        if not 2 <= self.least <= len(self.public):
            raise FedkdError(
                "a sum over this few clients hides nothing",
                value=self.least,
                allowed=f"2 to the {len(self.public)} clients of the round",
            )

    def digest(self) -> bytes:
        """What all secrets of the round are bound to: 32 bytes."""
        parts = [f"{self.round}|{self.least}"]
        parts += [f"{client}:{key.hex()}" for client, key in sorted(self.public.items())]
        return hashlib.sha256("|".join(parts).encode()).digest()


def cohort(round_: int, public: Mapping[int, bytes]) -> Cohort:
    """The cohort of these keys. Two thirds of its clients are enough for a sum, but never one.

    So a third may be lost, and while none is, the sum has up to sqrt(3/2) times the noise it needs.
    Raises: FedkdError for fewer than two clients.
    """
    return Cohort(round_, public, max(2, -(-2 * len(public) // 3)))


def keys(entropy: bytes) -> Keys:
    """A key pair from 32 random bytes: `secrets.token_bytes(32)`; of a stream in a simulation.

    A pair serves one round of one run: two tables under the same mask would show their difference.
    """
    if len(entropy) != 32:
        raise FedkdError("a private key has 32 bytes", value=len(entropy))
    private = X25519PrivateKey.from_private_bytes(entropy)
    return Keys(entropy, private.public_key().public_bytes_raw())


def secret(client: int, own: Keys, peer: int, cohort: Cohort) -> bytes:
    """The 32 bytes that `client` and `peer` share in this round, the same from both sides.

    Raises: FedkdError where the cohort holds another key for `client`, or a key that is none.
    """
    if cohort.public.get(client) != own.public:
        raise FedkdError("the cohort does not hold this client's key", value=client)
    try:
        theirs = X25519PublicKey.from_public_bytes(cohort.public[peer])
        shared = X25519PrivateKey.from_private_bytes(own.private).exchange(theirs)
    except ValueError as error:
        raise FedkdError(f"the key of client {peer} is no X25519 key: {error}") from None
    pair = f"fedkd secagg {min(client, peer)} {max(client, peer)}".encode()
    return HKDF(SHA256(), length=32, salt=cohort.digest(), info=pair).derive(shared)


def mask(client: int, own: Keys, cohort: Cohort, shape: tuple[int, int]) -> Blinded:
    """The sum of a client's masks with all its peers, uint64 of `shape`."""
    secrets = {peer: secret(client, own, peer, cohort) for peer in cohort.public if peer != client}
    return _signed(client, secrets, shape)


def table(
    ids: NDArray[np.int32], values: NDArray[np.float32], n_samples: int
) -> NDArray[np.float64]:
    """One client's answers as a table to be summed.

    Shapes: ids [m], values [m, classes] -> [n_samples, classes + 1]; the last column is 1 where the
    client answered; rows that it did not answer are 0.
    """
    full = np.zeros((n_samples, values.shape[1] + 1))
    full[ids, :-1] = values
    full[ids, -1] = 1
    return full


def add_noise(
    full: NDArray[np.float64], std: float, least: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Each client's share of Gaussian noise: over `least` clients it adds up to `std`.

    It goes on every entry, the unanswered rows and the column of counts included.
    """
    return full + rng.normal(0.0, std / math.sqrt(least), full.shape)


def sum_event(std: float, n_samples: int, relation: Relation) -> Gaussian:
    """What a noisy sum costs each client, for everyone who sees the sum.

    Guarantee: client level. A row is (distribution, 1) or zeros, so a table moves by at most
    sqrt(2 n_samples) in L2 if a client's data are replaced, or it is added or removed. It holds if
    at least `Cohort.least` clients that do not collude with the reader added their noise (their
    own noise is no secret to colluders), and for distributions, not for logits. Each client
    rounds its noisy table, so the sum is off by 2^-31 a client at most from one with Gaussian
    noise. That difference is taken as none: it is not accounted.
    """
    multiplier = std / math.sqrt(2 * n_samples)
    return Gaussian(unit="client", relation=relation, noise_multiplier=multiplier)


def blind(full: NDArray[np.float64], mask: Blinded, n_clients: int) -> Blinded:
    """A client's upload: its table on the grid, plus its mask, modulo 2^64.

    Raises: FedkdError for values that are not finite, or so large that a sum could wrap around.
    """
    largest = 2.0**62 * UNIT / n_clients
    if not np.isfinite(full).all() or np.abs(full).max(initial=0.0) > largest:
        raise FedkdError(
            "a value does not fit the sum",
            value=float(np.abs(full).max()),
            allowed=f"finite, at most {largest:g} with {n_clients} clients",
        )
    fixed = np.rint(full / UNIT).astype(np.int64).view(np.uint64)
    blinded: Blinded = fixed + mask
    return blinded


def reveal(client: int, own: Keys, cohort: Cohort, lost: frozenset[int]) -> dict[int, bytes]:
    """A client's secrets of this round with the clients that were lost, for the server.

    A client answers this once a round: the secrets with all its peers are its mask.

    Raises: FedkdError if too few would be left: their sum would say too much.
    """
    if client in lost or not lost <= cohort.public.keys():
        raise FedkdError("these clients cannot be lost", value=sorted(lost))
    _enough(len(cohort.public) - len(lost), cohort)
    return {peer: secret(client, own, peer, cohort) for peer in sorted(lost)}


def unblind(
    total: Blinded,
    cohort: Cohort,
    present: frozenset[int],
    revealed: Mapping[int, Mapping[int, bytes]] | None = None,
    std: float = 0.0,
) -> NDArray[np.float64]:
    """The sum of the tables of the clients `present`, from the sum of their uploads modulo 2^64.

    Args:
        revealed: by client present, what `reveal` gave for those that are not.
        std: of the noise in the sum, to know how far a count may be off.
    Returns: float64 [samples, classes + 1]; the last column counts the clients that answered.
    Raises: FedkdError if a reply is missing, or if the masks did not cancel: another round, other
        clients or other keys. A count that is still masked looks right with probability
        (clients + 1) / 2^34, all of them with that to the power of the samples.
    """
    lost = frozenset(cohort.public) - present
    if not present <= cohort.public.keys():
        raise FedkdError(
            "a client is not of this round", value=sorted(present - cohort.public.keys())
        )
    _enough(len(present), cohort)
    revealed = revealed or {}
    for client in sorted(present if lost else ()):
        if set(revealed.get(client, {})) != lost:
            raise FedkdError(
                f"client {client} did not reveal its secrets with the lost ones",
                value=sorted(revealed.get(client, {})),
                allowed=str(sorted(lost)),
                fix="without them the sum of this round is lost; go on with the next",
            )
        total = total - _signed(client, revealed[client], _two(total))
    plain = total.view(np.int64).astype(np.float64) * UNIT
    counts = plain[:, -1]
    slack = 0.25 + 40 * std * math.sqrt(len(present) / cohort.least)
    if counts.size and not -slack <= counts.min() <= counts.max() <= len(present) + slack:
        raise FedkdError(
            "the masks did not cancel",
            value=f"{counts.min():.3g} to {counts.max():.3g} answers a sample",
            allowed=f"0 to {len(present)}",
            fix="all uploads must be of the same round, with the same clients and keys",
        )
    return plain


def _signed(client: int, secrets: Mapping[int, bytes], shape: tuple[int, int]) -> Blinded:
    """The masks of a client's secrets: added for a later peer, subtracted for an earlier one."""
    total = np.zeros(shape, np.uint64)
    for peer, seed in secrets.items():
        part = _expand(seed, shape)
        total = total + part if client < peer else total - part
    return total


def _expand(seed: bytes, shape: tuple[int, int]) -> Blinded:
    """ChaCha20's key stream as uint64. The nonce may be constant: a seed serves one mask only."""
    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    n_bytes = 8 * math.prod(shape)
    return np.frombuffer(stream.update(bytes(n_bytes)), dtype="<u8").reshape(shape)


def _enough(n_clients: int, cohort: Cohort) -> None:
    if n_clients < cohort.least:
        raise FedkdError(
            "too few clients are left for a sum",
            value=n_clients,
            allowed=f"at least {cohort.least}",
            fix="without them the sum of this round is lost; go on with the next",
        )


def _two(array: Blinded) -> tuple[int, int]:
    rows, columns = array.shape
    return rows, columns
