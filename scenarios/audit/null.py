"""The part `null`: attacks where there is nothing to find: what they find is chance, or a fault.

Membership is drawn anew for the scores of `membership.CHOSEN`: AUC 1/2. A model that was never
trained knows no canary: 1.44 bits of exposure. Intervals are those of chance about the value.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedkd.rng import torch_stream
from privacy.audit.estimates import interpolated, null_error
from privacy.audit.exposure import exposures
from privacy.audit.membership import ATTACKS
from privacy.audit.roc import null_auc_error, roc, shuffled
from scenarios.audit.exposure import FEWEST_CONTROLS, Group, finding
from scenarios.audit.findings import Finding, Found
from scenarios.audit.membership import CHOSEN, canary_settings, record_settings, scores, where
from scenarios.audit.views import Views, controls, planted


def null(views: Views, rng: np.random.Generator) -> Found:
    """AUC of shuffled membership for each observer, and the exposure of an untrained model."""
    findings = of_shuffled(views, rng)
    if views.cell.world.canaries:
        findings += of_untrained(views)
    return Found(findings)


def of_shuffled(views: Views, rng: np.random.Generator) -> list[Finding]:
    """AUC of the chosen attacks where membership is drawn anew: 1/2, or the audit is wrong."""
    kind = canary_settings if views.cell.world.canaries else record_settings
    findings = []
    for setting in kind(views):
        if setting.against:
            continue
        name = CHOSEN[setting.observer]
        found = scores(ATTACKS[name], setting.cases)
        if found is None:
            continue
        value = roc(*shuffled(*found, rng)).auc
        half = 1.96 * null_auc_error(len(found.members), len(found.others))
        findings.append(
            Finding(
                part="null",
                observer=setting.observer,
                attack=f"{setting.name(name)}, membership shuffled",
                adaptive=setting.adaptive,
                target=setting.what,
                measure="auc",
                value=value,
                low=value - half,
                high=value + half,
                null=0.5,
                most=1.0,
                n=len(found.members) + len(found.others),
            )
        )
    return findings


def of_untrained(views: Views) -> list[Finding]:
    """Mean exposure under a model that learnt nothing, of all canaries that somebody holds."""
    cell = views.cell
    model = cell.new_model(0, torch_stream(cell.seed, "audit", purpose="untrained")).eval()
    shared = None
    if cell.world.tokens is not None:
        secrets = [canary for canary in cell.world.canaries if canary.repetitions]
        bits = np.array([one.bits for one in exposures(model, secrets, cell.world.tokens)])
    else:
        look, nobodys = views.of(model).look, controls(cell)
        shared = len(nobodys.y)
        if shared < FEWEST_CONTROLS:
            return []
        bits = interpolated(-look(planted(cell)), -look(nobodys))
    if not len(bits):
        return []
    half, mean = 1.96 * null_error(len(bits), shared), float(bits.mean())
    found = finding(Group("owner", "untrained model", False, 1), bits, where(cell), shared)
    return [replace(found, part="null", low=mean - half, high=mean + half)]
