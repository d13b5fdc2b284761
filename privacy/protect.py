"""What the rows of `privacy.release` and `privacy.server` do: what leaves, and what is told.

`privacy.claims` says what may be claimed of it, and `privacy.asked` reads the settings.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from fedkd import protection
from fedkd.errors import FedkdError
from fedkd.exchange.consensus import Consensus
from fedkd.protection import Privacy
from privacy import mechanisms
from privacy.asked import Occasion, degrees_of, noised_of, swing_of
from privacy.gnmax import ConfidentGNMax
from privacy.sensitivity import SoftLabels, project


def answers(
    privacy: Privacy, logits: Tensor, occasion: Occasion, generator: torch.Generator
) -> Tensor:
    """What leaves for logits [m, classes]: float32 [m, classes].

    Not for the row `plain`, whose answers are those of the method's own release stage.
    Guarantee: `claims.claim_of_rows`, for all data of the client replaced by others; the rows
    `gaussian` and `laplace` keep their epsilon for `occasion.most_rows` rows. Of a single record
    nothing is claimed here, since no bound is known for how far one moves logits.
    Raises: FedkdError for logits that are not finite, or for Swing without degrees.
    """
    n_classes = logits.shape[1]
    match privacy.release:
        case protection.TopOne():
            return mechanisms.TopOne().release(logits, generator)
        case protection.GaussianRelease() | protection.LaplaceRelease() as row:
            return noised_of(row, occasion, n_classes).release(logits, generator)
        case protection.SampledLabel(bound=bound):
            drawn = mechanisms.HardLabels(SoftLabels(bound, occasion.temperature))
            return drawn.release(logits, generator)
        case protection.RandomisedResponse(epsilon=epsilon):
            response = mechanisms.RandomisedResponse(epsilon, n_classes)
            return response.release(logits, generator)
        case protection.Swing() as row:
            swung = swing_of(row, occasion.origin, occasion.pooled)
            return swung.release(logits, degrees_of(row, occasion), generator).values
        case other:
            raise FedkdError("no mechanism of this name releases answers", value=other.name)


def consensus_of(privacy: Privacy, consensus: Consensus) -> Consensus:
    """What the server tells of the clients' mean answers: without the bias of randomised response.

    The mean of answers that are partly drawn at random is that of the true ones, pulled to 1 / C.
    That is undone, and the nearest distributions are told, since an estimate may leave [0, 1].
    Guarantee: post-processing of what the clients have charged, so no event.
    """
    row = privacy.release
    if not isinstance(row, protection.RandomisedResponse):
        return consensus
    mean = torch.from_numpy(consensus.values).double()
    unbiased = mechanisms.RandomisedResponse(row.epsilon, mean.shape[1]).unbias(mean)
    return Consensus(consensus.ids, project(unbiased).float().numpy())


def clear_labels(
    row: protection.GnMax, votes: NDArray[np.float64], generator: torch.Generator
) -> Consensus:
    """The winners, one-hot, of the vote sums [n, classes] that are clear.

    Guarantee: `claims.claim_of_labels`: replace one client, for all who read the consensus; the
    server is trusted. Each of the n sums is a query, those of samples that nobody answered too,
    since which these are is private. All are charged as if they had been answered: how many are is
    known only afterwards, and a cost that depends on the data is no epsilon. (PATE charges the
    answered ones alone.)
    """
    mechanism = ConfidentGNMax(row.threshold, row.sigma_threshold, row.sigma)
    clear = mechanism.release(torch.from_numpy(votes), generator)
    labels = one_hot(clear.labels, votes.shape[1]).float().numpy()
    return Consensus(clear.rows.numpy().astype(np.int32), labels)
