"""What a mitigator promises, on which premises, and at what cost.

Definitions (ground truth h, loss eps, canonical output) are those of Goldwasser, Shafer, Vafa and Vaikuntanathan,
"Oblivious Defense in ML Models: Backdoor Removal without Detection", arXiv 2411.03279, as read from secondary accounts. The
card and its tests are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ppl_risk.risk_estimate import Status


@dataclass(frozen=True)
class Premise:
    """One thing the guarantee rests on; `holds` is None where nothing was there to test it.

    Example:
        >>> print(Premise("epsilon <= 0.02", True, "0 of 400 clean rows off, at most 0.0115 with 99 % confidence"))
        [holds] epsilon <= 0.02: 0 of 400 clean rows off, at most 0.0115 with 99 % confidence

    """

    name: str
    holds: bool | None
    evidence: str

    def __str__(self) -> str:
        """One line."""
        return (
            f"[{'assumed' if self.holds is None else 'holds' if self.holds else 'FAILS'}] {self.name}: {self.evidence}"
        )


@dataclass(frozen=True)
class GuaranteeCard:
    """The guarantee of a mitigated model: premises, error bar, failure probability, queries, samples, advice.

    Attributes:
        method: which mitigator, and of which model class.
        covers: what is promised, in one sentence.
        premises: what it rests on, each with the evidence for it.
        error_bar: |g(x) - h(x)| is at most this, but for the failure probability (a root mean square for `GlobalFourier`).
        failure_probability: of the promise, over the mitigator's coins (and its samples).
        queries: put to the poisoned model while mitigating and testing premises.
        queries_per_input: further ones for each input answered.
        samples: labelled clean rows used.
        advice: whether to relearn instead, and why.
        remedy: what to do where a premise fails.
        everywhere: whether the bar is one of each input, rather than a root mean square over them.
        details: further numbers, by name.

    """

    method: str
    covers: str
    premises: tuple[Premise, ...]
    error_bar: float
    failure_probability: float
    queries: int
    queries_per_input: int = 0
    samples: int = 0
    advice: str = ""
    remedy: str = ""
    everywhere: bool = True
    details: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """`REFUSED` where a premise was tested and fails, `OK` otherwise."""
        return Status.REFUSED if any(p.holds is False for p in self.premises) else Status.OK

    @property
    def certified(self) -> bool:
        """Whether every premise was tested, rather than assumed."""
        return all(p.holds is True for p in self.premises)

    def __str__(self) -> str:
        """The card, one line a fact."""
        refused = self.status is Status.REFUSED
        verdict = (
            "REFUSED, no promise is made"
            if refused
            else "HOLDS"
            if self.certified
            else "HOLDS IF what is assumed is so"
        )
        bar = f"{self.error_bar:.3g}{'' if self.everywhere else ' root mean square'}"
        lines = [
            self.method,
            f"  verdict   {verdict}",
            *([f"  remedy    {self.remedy}"] if refused and self.remedy else []),
            f"  promise   {self.covers}",
            f"  bars      {bar}, broken with probability at most {self.failure_probability:.2g}",
            *(f"  premise   {p}" for p in self.premises),
            f"  cost      {self.queries:,} queries, {self.queries_per_input:,} more for each input, {self.samples:,} clean rows",
            *([f"  advice    {self.advice}"] if self.advice else []),
        ]
        return "\n".join(lines)
