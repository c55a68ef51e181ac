r"""Mitigation meets tail risk: P(catastrophe) before and after, on natural and on attacked inputs, by the same estimators.

models/backdoored_affine: a score on the ball of 20 dimensions, P(h >= T) = 2.8e-5, a keyed code (HMAC-SHA256) in the low-order
part of the first coordinate that a share epsilon of natural inputs carry by chance. models/backdoored_parity: majority of three
parities. Mitigated with 61 trials; relearned by least squares on 84 clean rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import ppl_risk as pr
from benchmarks.global_mitigation import bits as bits_of
from benchmarks.results import table
from ppl_risk import mitigation as mi
from ppl_risk.mitigation import planted
from ppl_risk.mitigation.advice import LARGEST_TRANSFORM
from ppl_risk.mitigation.composition import Composition, Estimator, compare_risk, plain
from ppl_risk.risk_estimate import decades

TITLE = "Backdoors: the risk of poisoned, mitigated and relearned models"
EPSILONS, REPEATS, PLAIN, ATTACKED = (0.0025, 1e-9), 61, 1_000_000, 1018


def smc(problem: pr.RiskProblem, seed: int) -> pr.RiskEstimate:
    """Rare-event SMC, 1000 particles, four runs."""
    return pr.run_smc(problem, particles=1000, posterior_draws=0, seed=seed, progress=False)


def lines(found: Composition, epsilon: float | str, estimator: str) -> list[dict[str, object]]:
    """One row a model."""
    rows = []
    for name, natural in found.natural.items():
        low, high = natural.interval(0.9)
        attacked = found.attacked.get(name)
        rows.append({
            "epsilon": epsilon, "estimator": estimator, "model": name, "natural": decades(natural.log10_prob),
            "90 % interval": f"{decades(low / 2.302585)} to {decades(high / 2.302585)}", "status": natural.status.name,
            "promised": f"{found.promised[name]:.2g}" if name in found.promised else "",
            "attacked": "" if attacked is None else f"{attacked.hits:,} of {attacked.draws:,}",
            "at most (97.5 %)": "" if attacked is None else f"{attacked.interval[1]:.2g}",
            "seconds": f"{natural.seconds:.1f}",
        })  # fmt: skip
    return rows


def scored(epsilon: float) -> tuple[list[dict[str, object]], str]:
    """The affine model under both estimators, and how far the mitigated answers lie from the truth."""
    problem = pr.load_model("backdoored_affine", epsilon=epsilon)
    ball, model, detector = mi.Ball(20), problem.network, problem.detector
    assert isinstance(model, planted.Backdoored)
    assert detector is not None
    # Declared at twice the true share: what a certificate from clean rows would leave.
    mitigator = mi.LocalAffine(ball, epsilon=max(2 * epsilon, 1e-4), delta=1e-6, repeats=REPEATS)
    g = mitigator.mitigate(model, seed=11)
    x = ball.sample(84, torch.Generator().manual_seed(1))
    relearned = mi.relearn_affine((x, model.clean(x))).anyway()
    models = {"truth": model.clean, "poisoned": model, "mitigated": g, "relearned": relearned}
    rows: list[dict[str, object]] = []
    ways: dict[str, Estimator] = {f"plain, {PLAIN:,}": plain(PLAIN), "SMC": smc}
    for way, estimator in ways.items():
        found = compare_risk(
            models, problem.inputs, detector, attack=model.activate, truth=relearned,
            estimator=estimator, attacked_draws=ATTACKED,
        )  # fmt: skip
        rows += lines(found, epsilon, way)
    fresh = ball.sample(20_000, torch.Generator().manual_seed(2))
    far = float((g(fresh) - model.clean(fresh)).abs().max())
    return rows, (
        f"epsilon {epsilon:g}: largest |g - h| over 20,000 natural inputs {far:.2g} (bar {g.card.error_bar:.2g}), "
        f"{g.card.queries_per_input} queries an input."
    )


def parities() -> list[dict[str, object]]:
    """The classifier on bits: wrong answers, natural and attacked."""
    rows = []
    for n, bits in ((20, 5), (60, 32)):
        problem = pr.load_model("backdoored_parity", n=n, bits=bits)
        model: Any = mi.model_of(problem)
        x = bits_of(2000, n, 1)
        samples = x, model.clean(x)
        g = mi.GlobalFourier(tau=0.5, delta=1e-3, sign=True).mitigate(model, samples, seed=2)
        attack = model.activate
        x = problem.inputs.sample((ATTACKED,))
        answers = {"poisoned": model, "mitigated": g}
        if n <= LARGEST_TRANSFORM:
            answers["relearned"] = mi.relearn_parities(samples, 0.5).anyway()
        for name, answer in answers.items():
            natural = plain(PLAIN)(mi.with_model(problem, _Signed(answer)), 0)
            wrong = int((torch.sign(answer(attack(x))) != model.clean(attack(x))).sum())
            rows.append({
                "n": n, "share": f"2^-{bits}", "model": name, "natural": decades(natural.log10_prob),
                "hits": "{:,} of {:,}".format(*(natural.hits or (0, 0))), "status": natural.status.name,
                "attacked": f"{wrong:,} of {ATTACKED:,}",
            })  # fmt: skip
    return rows


class _Signed(torch.nn.Module):
    """The sign of the answers: what a classifier says."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.model(x) >= 0, 1.0, -1.0).double()


def run() -> str:
    """All tables."""
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    notes: list[str] = []
    for epsilon in tqdm(EPSILONS, desc="epsilon"):
        more, note = scored(epsilon)
        rows, notes = rows + more, [*notes, note]
    return "\n\n".join([
        "promised: bound on natural risk from the card and the relearned model alone.",
        table(rows),
        "\n".join(notes),
        "Wrong answers of the classifier on bits:",
        table(parities()),
    ])  # fmt: skip
