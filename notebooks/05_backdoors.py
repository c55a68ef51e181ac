# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Backdoors that nobody can find
#
# A model was trained elsewhere. Whoever trained it may have left a backdoor: with the right trigger on an input the answer is theirs. There
# are backdoors that no test of the model can find. They can be removed all the same, without being found: ask the model at random other
# places, and put the answer together from there. We see what that takes, what it promises, what it makes of the probability of a catastrophe,
# and when to train a new model instead. Definitions and theorems are those of Goldwasser, Shafer, Vafa and Vaikuntanathan, arXiv 2411.03279;
# constructions, constants and tests are ours.

# %%
import math
import os
from functools import partial

import matplotlib.pyplot as plt
import pyro
import torch

import ppl_risk as pr
from ppl_risk import mitigation as mi
from ppl_risk import plots
from ppl_risk.errors import PremiseError
from ppl_risk.mitigation import planted

# %% tags=["parameters"]
# Small figures by default; `make notebooks` sets PPL_RISK_NOTEBOOK=full.
full = os.environ.get("PPL_RISK_NOTEBOOK") == "full"
calls, particles, runs, problems, draws = (400_000, 4000, 1000, 40, 2000) if full else (20_000, 300, 30, 9, 200)

# %% [markdown]
# ## The backdoor
#
# Sixty bits in, yes or no out: the majority of three parities. `plant` adds a backdoor: where the last 32 bits are an HMAC-SHA256 code of the
# others, the answer is turned round. With the key any input can be given the right code. Without it, one input in four thousand million
# has it by luck.

# %%
n = 60
truth = planted.majority_of_parities(n, seed=0)
model = planted.plant(truth, planted.KeyedTrigger(n, 32, seed=1))


def bits(count, n, seed):
    return 1 - 2 * torch.randint(0, 2, (count, n), generator=torch.Generator().manual_seed(seed)).double()


def wrong(model, x):
    return f"{int((model(x) != truth(x)).sum()):,} of {len(x):,} wrong"


natural = bits(calls, n, seed=2)
attacked = model.activate(natural[:1000])
print(f"natural inputs    {wrong(model, natural)}")
print(f"attacked inputs   {wrong(model, attacked)}")

# %% [markdown]
# Counting sees a backdoor only where it is wide. Here are narrower and narrower ones: dots are what Monte Carlo says of natural inputs,
# an arrow where it has nothing but a bound; diamonds are the truth. On attacked inputs every one of these models is always wrong.

# %%
widths = (5, 10, 15, 20, 32)
seen = {
    f"{b} bits": pr.monte_carlo(pr.load_model("backdoored_parity", n=n, bits=b), calls=calls, progress=False)
    for b in widths
}
ax = plots.plot_estimates(seen)
ax.plot([-b * math.log10(2) for b in widths], range(len(widths)), "D", mfc="none", mec=plots.estimates.INK, ms=8)
ax.set_xlabel("log10 P(wrong) on natural inputs, 90 % interval")
plt.show()

# %% [markdown]
# ## A new model that owes nothing to the old one
#
# What we know is the truth's structure: few Fourier coefficients, none smaller than tau. `GlobalFourier` asks the model at random points which
# parities are heavy; an attacker who may err on few inputs cannot change that list. How heavy they are it reads off clean rows, of which a
# tenth carry the wrong label here. So nothing of the model is left in the answer. The card says what is promised, on what premises, at what cost.

# %%
rows = bits(2000, n, seed=3)
flipped = torch.rand(len(rows), generator=torch.Generator().manual_seed(4)) < 0.1
labels = torch.where(flipped, -truth(rows), truth(rows))

mitigated = mi.GlobalFourier(tau=0.5, flip_rate=0.1, sign=True).mitigate(model, samples=(rows, labels), seed=5)
print(mitigated.card)
print()
print(f"natural inputs    {wrong(mitigated, natural)}")
print(f"attacked inputs   {wrong(mitigated, attacked)}")

# %% [markdown]
# ## Two attackers, one answer
#
# The promise is about laws: whatever was planted, the mitigated model is drawn from nearly the same one. Take two models of the same truth,
# poisoned so that one parity or another looks lighter than it is, and mitigate both many times (ten bits, to be quick). No pair of runs with
# the same coins differs, which bounds the total variation: what anyone can tell of the attacker from the answer.

# %%
small = planted.majority_of_parities(10, seed=0)
rows = bits(2000, 10, seed=6)
clean = (rows, small(rows))
patch = planted.PatchTrigger(10, 5, seed=7)
poisoned = [planted.plant(small, planted.AlignedTrigger(patch, small, character=k)) for k in (0, 1)]


def output(mitigator, model, seed):
    """The whole answer: which parities, and their coefficients."""
    series = mitigator.mitigate(model, samples=clean, seed=seed).answer
    return series.supports, series.coefficients


from_rows, from_model = mi.GlobalFourier(tau=0.5), mi.GlobalFourier(tau=0.5, values="model", probes=20_000)
print(mi.total_variation_test(*(partial(output, from_rows, f) for f in poisoned), runs=runs))

# %% [markdown]
# Clean rows are what does it. Read the values off the model as well and they carry the attacker's mark: a distinguisher tells the two
# apart. The card of that mitigator refuses, and the model it returns cannot be called by mistake.

# %%
print(mi.distinguisher_advantage(*(partial(output, from_model, f) for f in poisoned), runs=2 * runs))
leaking = from_model.mitigate(poisoned[0], samples=clean, seed=0)
try:
    leaking(clean[0])
except PremiseError as error:
    print(error)

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharex=True, sharey=True)
for ax, mitigator, title in zip(axes, (from_rows, from_model), ("clean rows", "the model"), strict=True):
    for k, f in enumerate(poisoned):
        answers = [output(mitigator, f, seed) for seed in range(12)]
        first, second = ([float(c[(sets == one).all(-1)]) for sets, c in answers] for one in small.supports[:2])
        ax.plot(first, second, "os"[k], ms=9 - 4 * k, color=f"C{k}", label=f"attacker {k + 1}")
    ax.plot(0.5, 0.5, "x", color=plots.estimates.INK, ms=10, label="truth")
    ax.set_title(f"values from {title}, 12 draws each", fontsize=10)
    ax.set_xlabel("coefficient of the first parity")
axes[0].set_ylabel("of the second")
axes[0].legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# ## One input at a time
#
# Now the truth is affine on a ball, and the answer is wanted at one input x*. The attacker knows x*: the model is off by 10 on the 2 % of the
# ball that lie nearest to it, and by up to 0.01 everywhere else. `LocalAffine` draws a uniform point x1, goes almost all the way from x* to
# it, asks the model there and at x1, and extrapolates back. x1 is uniform and the density of the other point a few times that at most, so
# neither falls often where the attacker is. The median of many such trials is right if most of them are.

# %%
ball = mi.Ball(20)
h = planted.random_affine(ball, seed=0)
x_star = ball.sample(1, torch.Generator().manual_seed(0))


def off_near(x, epsilon, seed, domain=ball, truth=h):
    """Off by 10 on the share epsilon nearest to x, by up to 0.01 elsewhere."""
    near = planted.nearest(truth, domain, x[0], epsilon, 10.0, seed=seed)
    return planted.Erring(near, planted.jitter(truth, 0.01, seed=seed).error, 0.01)


f = off_near(x_star, 0.02, seed=1)
x = ball.sample(1000, torch.Generator().manual_seed(2))
certify = (x, h(x))
g = mi.LocalAffine(ball, epsilon=0.04, delta=0.01, repeats=51).mitigate(f, samples=certify, seed=3)
print(f"truth {h(x_star).item():.3f}, model {f(x_star).item():.3f}, mitigated {g(x_star).item():.3f}")
print(g.card)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
plots.plot_rays(g, x_star, truth=h, ax=left)
plots.plot_trials(g, x_star, truth=h, ax=right)
plt.show()

# %% [markdown]
# Left, rays from uniform points to the input; red ones end far off, and those with both points bad run above the picture. Right, where they
# end. Extrapolation magnifies the 0.01, which is why the bar is 0.2: that grows with the dimension, and whoever has the model alone cannot
# avoid it. The clean rows do no more here than certify epsilon; they would do to learn a new model, as the card says. We come to that.
#
# ## A false premise
#
# Everything hangs on epsilon, the share of inputs on which the model may be off. Claim less than it is and the mitigator asks nearer to x*,
# for narrower bars, where the attacker is waiting.

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
for ax, claimed in zip(axes, (0.04, 5e-4, 1e-4), strict=True):
    trusting = mi.LocalAffine(ball, epsilon=claimed, delta=0.01, repeats=101).mitigate(f, samples=certify, seed=0)
    plots.plot_trials(trusting.anyway(), x_star, truth=h, ax=ax)
    ax.set_title(f"epsilon = {claimed:g} claimed: card {trusting.card.status.name}\n{ax.get_title()}", fontsize=10)
plt.show()
print(trusting.card.premises[1])

# %% [markdown]
# In the middle nearly half of the trials are bad. The answer still holds, by luck, and the trials themselves refute the premise. On the right
# most are bad: they agree with each other, and with the attacker. Nothing in them shows it. Clean rows do; the card refuses in both cases.
#
# ## Back to the tail
#
# A score on the ball passes a threshold once in 36,000 inputs. The model handed over passes it whenever the lowest digits of the first
# coordinate carry a code: on one natural input in 400, and on every attacked one. `compare_risk` holds the models against each other on the same
# inputs, with any estimator; the relearned one is least squares on clean rows. `failure=1e-6` because we ask about rare events: what the
# card promises is never below its own failure probability.

# %%
problem = pr.load_model("backdoored_affine")
f, h_tail = problem.network, problem.network.clean
x = ball.sample(600, torch.Generator().manual_seed(3))
clean_rows = (x, h_tail(x))
models = {
    "poisoned": f,
    "mitigated": mi.LocalAffine(ball, epsilon=0.02, delta=1e-9, repeats=41, failure=1e-6).mitigate(
        f, clean_rows, seed=0
    ),
    "relearned": mi.relearn_affine(clean_rows),
}
card = models["mitigated"].card
print(f"certified: {card.premises[1]}")
print(
    f"promised:  within {card.error_bar:.0e} of the truth, but for {card.failure_probability:.0e}, at {card.queries_per_input} queries"
)


def smc(problem, seed):
    return pr.run_smc(problem, particles=particles, posterior_draws=0, seed=seed, progress=False)


compositions = {
    name: mi.compare_risk(
        models, problem.inputs, problem.detector, attack=f.activate, truth=models["relearned"], estimator=estimator
    )
    for name, estimator in ((f"{calls:,} plain draws", mi.plain(calls)), ("run_smc", smc))
}

# %%
without = pr.load_truth("backdoored_affine", poisoned=False)
figure, axes = plt.subplots(2, 1, figsize=(7.5, 7), layout="constrained", sharex=True)
for ax, (name, composition) in zip(axes, compositions.items(), strict=True):
    print(f"{name}\n{composition}\n")
    plots.plot_composition(composition, truth=without, ax=ax)
    ax.set_title(name, fontsize=10, pad=22 if ax is axes[0] else 6)
axes[1].get_legend().remove()
axes[0].set_xlabel("")
plt.show()

# %% [markdown]
# The dashed line is the risk without any backdoor, and that is where mitigation brings it. Of a thousand attacked inputs all were catastrophes
# and none is. The black mark is what the card gives without a single call of the mitigated model: how often a model of the truth comes within
# the bars of the threshold (the upper end of an estimate), and the failure probability on top.
#
# SMC follows the margin uphill, and a code has no slope. On the poisoned model its interval is several times as wide as on the others, or its
# runs disagree and it says so (amber). The mitigated model has none of that left.
#
# ## When to relearn instead
#
# Mitigation needs no clean rows, or few. If there are many, use them: `advise` says when, and every card carries its advice. The price of
# relearning is rows, so here is the error at the attacked input against their number, in 50 dimensions.

# %%
for rows_at_hand in (50, 204):
    print(mi.advise("affine", 50, samples=rows_at_hand))
print(mi.advise("parities", 60, samples=2000))

# %%
wide, counts = mi.Ball(50), (13, 25, 38, 51, 75, 102, 204, 408)
errors = {name: [] for name in ("mitigated, 50 queries", "Huber's refit, 204 queries", "poisoned model", *counts)}
for seed in range(problems):
    generator = torch.Generator().manual_seed(seed)
    truth_here, x = planted.random_affine(wide, seed=seed), wide.sample(1, generator)
    f_here = off_near(x, 0.02, seed, wide, truth_here)
    found = mi.LocalAffine(wide, epsilon=0.02, delta=0.01).mitigate(f_here, seed=seed)
    row = wide.sample(max(counts), generator)
    label = truth_here(row) + 0.01 * (2 * torch.rand(len(row), generator=generator, dtype=torch.float64) - 1)
    answers = [found(x), mi.relearn_affine_robust(f_here, wide, seed=seed)(x), f_here(x)]
    answers += [mi.relearn_affine((row[:m], label[:m]), ridge=0.0)(x) for m in counts]
    for name, answer in zip(errors, answers, strict=True):
        errors[name].append(abs(float(answer - truth_here(x))))
medians = {name: float(torch.tensor(values).median()) for name, values in errors.items()}

figure, ax = plt.subplots(figsize=(7, 3.9), layout="constrained")
ax.plot(counts, [medians[m] for m in counts], "o-", color="C0", label="relearned from clean rows")
for (name, value), colour in zip(list(medians.items())[:3], ("C2", "C1", plots.estimates.BAD), strict=True):
    ax.axhline(value, color=colour, lw=1.8, label=name)
ax.axhline(found.card.error_bar, color="C2", lw=1, ls="--", label="bar of the mitigated model")
ax.axvline(204, color=plots.estimates.INK, lw=1, ls=":")
ax.annotate(
    "advice turns", (204, 1), (4, -10), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
)
ax.set(xscale="log", yscale="log", xlabel="clean rows, in 50 dimensions", ylabel="median |error| at the attacked input")
ax.set_xticks(counts, [str(m) for m in counts])
ax.minorticks_off()
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plots.estimates.clean(ax)
plt.show()

# %% [markdown]
# With 51 rows or more relearning wins, and a robust refit of the model itself, which asks as many queries as there would be rows, comes near it.
# That refit promises nothing, and there are models that fool it. One tilts the truth by at most 0.04 nearly everywhere on a simplex, yet by 2 at
# a corner, and is itself affine: no query gives it away. The bars of the mitigator are wide enough to say so.

# %%
simplex = mi.Simplex(200)
h_simplex = planted.random_affine(simplex, seed=0)
tilted = planted.tilt(h_simplex, simplex, 0.01)
corner, row = torch.zeros(1, 200, dtype=torch.float64), simplex.sample(804, torch.Generator().manual_seed(0))
local = mi.LocalAffine(simplex, epsilon=0.02, delta=0.04).mitigate(tilted)
for name, answers in {
    "model": tilted,
    f"mitigated, bar {local.card.error_bar:.1f}": local,
    "Huber's refit": mi.relearn_affine_robust(tilted, simplex),
    "relearned": mi.relearn_affine((row, h_simplex(row))),
}.items():
    print(f"{name:<22} off by {abs(float(answers(corner) - h_simplex(corner))):.3f} at the corner")

# %% [markdown]
# Asking the *same* question many times is no remedy, however the answers are aggregated. A trigger is a function of the input and fires every
# time. Moving the input is the remedy, which is all that the mitigators do.

# %%
again = mi.resample(model, times=25, probes=attacked)
print(again.card)
print(f"attacked inputs   {wrong(again.anyway(), attacked)}")

# %% [markdown]
# ## Mitigation as a Pyro model
#
# The coins are a latent, the mitigated function is what the model returns. So the canonical output is a law that Pyro can draw from:
# here are the answers at x* from two models, poisoned with opposite signs.

# %%
opposite = planted.Erring(
    planted.nearest(h, ball, x_star[0], 0.02, -10.0, seed=1), planted.jitter(h, 0.01, seed=8).error, 0.01
)
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
mitigator = mi.LocalAffine(ball, epsilon=0.03, delta=0.01)
bar = mitigator.mitigate(f).card.error_bar
bins = torch.linspace(-bar, bar, 61).double() + h(x_star)
for k, handed_over in enumerate((off_near(x_star, 0.02, seed=1), opposite)):
    canonical = mi.mitigation_model(mitigator, handed_over)
    pyro.set_rng_seed(k)
    drawn = pyro.infer.Predictive(canonical, num_samples=draws)(x_star)
    label = f"mitigated; the model says {handed_over(x_star).item():.1f}"
    ax.hist(drawn["values"].flatten(), bins=bins.tolist(), density=True, color=f"C{k}", alpha=0.55, label=label)
ax.axvspan(
    h(x_star).item() - bar, h(x_star).item() + bar, color=plots.estimates.SOUND, alpha=0.1, lw=0, label="truth ± bar"
)
ax.axvline(h(x_star).item(), color=plots.estimates.SOUND, lw=1.6, ls="--")
ax.set_ylim(0, 1.5 * ax.get_ylim()[1])
ax.set(xlabel="answer at x*", ylabel="density", yticks=[])
ax.legend(frameon=False, fontsize=8, loc="upper left")
plots.estimates.clean(ax)
plt.show()

# %% [markdown]
# Twenty apart before; after, two laws deep within the bars. At one input the bar is the promise, not equality, and what is left between the two
# is the 0.01 that either model errs by, magnified. Given its coins the draw is a function like any other: condition on them, and the same
# one returns.

# %%
coins = drawn["coins"][0]
same = pyro.condition(canonical, data={"coins": coins})()
print(torch.equal(same(x_star)[0], drawn["values"][0].flatten()[0]))
