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
# # Without sampling
#
# How likely is a catastrophe, without running a single input? The input law is known and so are the weights, so the law of every layer
# can be computed: means and covariances go through an affine map exactly, and through a rectifier by a formula. The probability is then read
# off the last law. We see where that is right, where it is wrong by decades, what repairs it, and when it has to be refused.

# %%
import copy
import math
import os

import matplotlib.pyplot as plt
import torch

import ppl_risk as pr
from ppl_risk import plots

# %% tags=["parameters"]
# Small figures by default; `make notebooks` sets PPL_RISK_NOTEBOOK=full.
full = os.environ.get("PPL_RISK_NOTEBOOK") == "full"
calls, particles, sizes = (2_000_000, 4000, (4, 8, 16, 32, 64)) if full else (200_000, 1000, (4, 16, 64))

# %% [markdown]
# ## The law of activations
#
# The digit reader of the first notebook: a clean 3, sensor noise, and the catastrophe that an 8 is read. `family="full"` carries all
# correlations inside a layer. `guide.layers` holds the law of every layer; 5000 plain passes say whether it is true.

# %%
problem, truth = pr.load_model("digits"), pr.load_truth("digits")
sliced = pr.propagate(problem, "full")

torch.manual_seed(0)
x = problem.inputs.sample((5000,))
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for name, module in problem.network.named_children():
    x = module(x)
    if name in sliced.guide.layers:
        law = sliced.guide.layers[name]
        left.plot(x.mean(0), law.mean[0], ".", ms=4, label=name)
        right.plot(x.std(0), law.variance[0].sqrt(), ".", ms=4, label=name)
for ax, title in ((left, "mean"), (right, "standard deviation")):
    ax.axline((1, 1), slope=1, color=plots.estimates.INK, lw=0.8, zorder=0)
    ax.set_title(f"{title} of every unit", fontsize=10)
    ax.set_xlabel("5000 passes")
    ax.set_ylabel("propagated")
left.legend(frameon=False)
plt.show()

# %% [markdown]
# Every spread is right within 3 %, down to the logits, and so is every mean. The number should be easy now.
#
# ## One Gaussian tail
#
# The classical way takes the margin as Gaussian and reads off its tail.

# %%
one_tail = pr.propagate(problem, "full", readout="gaussian")
print(f"one Gaussian tail  log10 p = {one_tail.log10_prob:.2f}")
print(f"truth              log10 p = {truth.log_prob / math.log(10):.2f}")

# %% [markdown]
# Thirty times too small, though every mean and variance was right. A tail is not made of the inputs that set the variance.
#
# ## Why
#
# Look along one direction v of the input, the one along which the margin most easily reaches the catastrophe. For a picture of a single
# number we take a simpler margin, "8 beats 3". Given v the margin has a mean and a spread (blue); one Gaussian for everything presumes a straight
# line (dashed), fitted where the inputs are (grey). The failures (red) are elsewhere: almost four standard deviations out, where the rectifiers have
# switched and the margin rises faster than the line.

# %%
pair = pr.RiskProblem(problem.network, problem.inputs, lambda y: y[:, 8] - y[:, 3], name="8 beats 3")
plots.plot_slices(pr.propagate(pair, "full"))
plt.show()

# %% [markdown]
# ## Slices
#
# Given v the margin is close to Gaussian. So `propagate` carries the laws at seven values of v, splines them, and integrates over v. It
# finds the direction by itself, from gradients of the law. For the real catastrophe, where 8 has to beat nine others, the picture shows
# Pr[event | v].

# %%
print(sliced)
plots.plot_slices(sliced)
plt.show()

# %% [markdown]
# Within 0.15 decades of the truth, where one tail was off by 1.5. No input was run for that number; `forward passes worth` says what it
# cost instead. The passes booked are the check, to which we come.
#
# ## The whole curve from one pass
#
# The same slices give Pr[margin > t] for every t.

# %%
counted = pr.monte_carlo(problem, calls=calls, progress=False)
plots.plot_tails({"one Gaussian": one_tail, "slices": sliced, f"{calls:,} draws": counted}, truth=truth)
plt.show()

# %% [markdown]
# ## Refused
#
# A propagated law cannot know whether it is right. `trust=True`, the default, runs the network after all: 1000 plain passes, whose spread the law
# must have, and 500 inputs drawn from the slices' own posterior, which weigh the number. If they object, there is no number. A plain network of
# 32 layers is such a case: layer by layer the law leaves out a little, and depth multiplies it.

# %%
deep = pr.load_model("digits_deep", depth=32)
refused = pr.propagate(deep, "full", directions=1)
print(refused)

# %% [markdown]
# The propagated spread is a third of the true one. The law's own number stays in the evidence, `log10 p of the law`. Here it happens to come
# out near the truth, -4.00; another slice direction puts it two decades away (`directions apart`), so that is luck, and it is refused.
#
# The check also tells families apart. In a network that nobody trained the correlations have no few directions: a law that keeps them all
# has the tail right, one of rank 16 has not, and too few of the inputs that it calls failures are.

# %%
wide, wide_truth = pr.load_model("wide_random"), pr.load_truth("wide_random")
families = {
    "all correlations": pr.propagate(wide, "full", directions=1),
    "rank 16": pr.propagate(wide, "low_rank", 16, directions=1),
}
for name, estimate in families.items():
    print(f"{name}: {estimate.status.name}. {estimate.remedy}")
plots.plot_tails(
    families | {f"{calls:,} draws": pr.monte_carlo(wide, calls=calls, progress=False)},
    truth=wide_truth,
)
plt.show()

# %% [markdown]
# On networks that nobody trained the check refuses more than it must: with fewer than five effective draws it does not know.
#
# ## One cause behind many checks
#
# A wrong answer is let through if N checks all fail to object. They share a cause. A law that forgets correlations multiplies N
# probabilities and is exponentially wrong in N; a law that keeps them stays right, for any N: the
# event is an orthant of one Gaussian layer, so this number needs no slices.

# %%
print("  N    truth   independent   all correlations")
for checks in sizes:
    common = pr.load_model("consistency_checks", checks=checks)
    known = pr.load_truth("consistency_checks", checks=checks).log_prob / math.log(10)
    alone, together = (
        pr.propagate(common, family, readout="orthant", trust=False) for family in ("mean_field", "full")
    )
    print(f"{checks:3d}   {known:6.2f}   {alone.log10_prob:11.2f}   {together.log10_prob:16.2f}")

# %% [markdown]
# ## The formal column
#
# `certify` proves. It bounds the margin over a whole ball of inputs, so what it says holds for every one of them. The price: it must be able to
# exclude the catastrophe on a ball that holds nearly all inputs. At the noise of our problem it cannot, and says VACUOUS. With a quarter
# of the noise it can.

# %%
certified = {}
for sigma in (0.12, 0.06, 0.03):
    law = torch.distributions.Independent(torch.distributions.Normal(problem.inputs.mean, sigma), 1)
    certified[sigma] = pr.certify(pr.RiskProblem(problem.network, law, problem.detector, name="digits"), progress=False)
    bound = certified[sigma]
    print(f"noise {sigma}: {bound.status.name:8} log10 P <= {bound.log10_prob:.1f}")

# %% [markdown]
# ## A gradient without a sample
#
# The number is a formula in the weights, so it has a gradient. One step of gradient descent on log p alone, sized to halve a decade to first
# order, lowers the risk; `estimate`, which runs the network and knows nothing of the slices, confirms it.

# %%
network = copy.deepcopy(problem.network).requires_grad_(True)
trained = pr.RiskProblem(network, problem.inputs, problem.detector, name="digits")
log_prob = pr.propagated_log_prob(trained)
log_prob.backward()
slope = sum(float(p.grad.square().sum()) for p in network.parameters())
with torch.no_grad():
    for p in network.parameters():
        p -= 0.5 * math.log(10) / slope * p.grad
network.requires_grad_(False)
after = pr.propagated_log_prob(trained)
print(f"propagated: log10 p from {log_prob.item() / math.log(10):.2f} to {after.item() / math.log(10):.2f}")

# %%
estimated = pr.estimate(problem, progress=False)
stepped = pr.estimate(trained, progress=False)
print(f"estimate:   log10 p from {estimated.log10_prob:.2f} to {stepped.log10_prob:.2f}")
clean = network(problem.inputs.mean[None]).argmax().item()
print(f"the clean image is read as {clean}")

# %% [markdown]
# Whether the network still reads other digits as well as before is another question: log p asks for nothing else, and training would add
# the usual loss.
#
# ## Side by side

# %%
comparison = pr.compare(
    {
        "estimate": estimated,
        "smc": pr.run_smc(problem, particles=particles, progress=False),
        "slices": sliced,
        "one Gaussian": one_tail,
        "certify": certified[0.12],
    },
    truth=truth,
)
comparison

# %%
plots.plot_estimates(comparison)
plt.show()

# %% [markdown]
# What to believe: `estimate`, for the number. The slices agree with it within the error that their check found, which is worth most where the
# whole curve, or a gradient, is wanted, or as a second route that shares nothing with sampling. One Gaussian is not an answer; nothing in it
# knows that it is wrong. `certify` has
# nothing to say at this noise, and where it has, it is the only one of them that excludes a catastrophe which nobody looked for.
