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
# # A first estimate
#
# A network reads handwritten digits. Its input is one clean image plus sensor noise, and the catastrophe is that the noise makes
# it read one particular wrong digit. How likely is that? Far too rare to sample comfortably: about one image in ten thousand,
# or one in ten million if the sensor is better. We choose guide families, run SVI, run SMC, and decide which answer to believe.

# %%
import os

import matplotlib.pyplot as plt

import ppl_risk as pr
from ppl_risk import plots
from ppl_risk.diagnostics import to_arviz

# %% tags=["parameters"]
# Small figures by default; `make notebooks` sets PPL_RISK_NOTEBOOK=full.
full = os.environ.get("PPL_RISK_NOTEBOOK") == "full"
steps, draws, particles = (600, 5000, 1000) if full else (150, 1000, 300)

# %% [markdown]
# ## The problem
#
# A problem is a network, an input law and a detector; the catastrophe is `margin >= 0`. `check` looks for the mistakes that torch
# lets through in silence: NaN weights, train mode, a detector that mixes rows.

# %%
problem = pr.load_model("digits", rarity="1e-4")
print(problem)
print(pr.check(problem))

# %% [markdown]
# ## What counting can see
#
# Ten thousand draws of an event of probability 1e-4 contain about one. The interval says how little that tells.

# %%
counted = pr.monte_carlo(problem, calls=10_000, progress=False)
print(counted)

# %% [markdown]
# ## Choose a guide family, run SVI
#
# The activations are latent variables of a Pyro model. A guide family decides which of their correlations are carried: none
# (`MeanField`), a few shared directions (`LowRank`), or all of them by running the network itself (`Network`). SVI fits the guide to the
# law *given catastrophe*; its input part is then a proposal for importance sampling on the exact network, so all three answers are
# unbiased. What differs is the ELBO (how well the family can tell what happens inside) and the quality of the proposal.

# %%
families = {"mean-field": pr.guides.MeanField(), "low-rank": pr.guides.LowRank(rank=8), "network": pr.guides.Network()}
estimates = {
    name: pr.fit_svi(problem, family, steps=steps, draws=draws, seed=0, progress=False)
    for name, family in families.items()
}
print(estimates["low-rank"])

# %% [markdown]
# ## Run SMC
#
# The second route needs no guide: particles climb through levels of the margin, and independent runs give the interval.

# %%
estimates["smc"] = pr.run_smc(problem, particles=particles, seed=0, progress=False)
print(estimates["smc"])

# %% [markdown]
# ## Compare

# %%
comparison = pr.compare({"counting": counted} | estimates, truth=pr.load_truth("digits", rarity="1e-4"))
comparison

# %%
plots.plot_overview(comparison)
plt.show()

# %% [markdown]
# ## Why the ELBOs differ
#
# Mean-field presumes that activations are independent. Given the catastrophe they are not: SMC's posterior shows which units move together,
# inside layers and across them. The low-rank guide carries part of it.

# %%
plots.plot_correlations({name: estimates[name] for name in ("mean-field", "low-rank", "smc")})
plt.show()

# %% [markdown]
# ## The posterior, in ArviZ
#
# Every estimate is an `xarray.DataTree`; draws of inputs and activations given catastrophe are in its `posterior` group, the runs of SMC
# are its chains.

# %%
import arviz as az

az.summary(to_arviz(estimates["smc"]), var_names=["margin", "logits"], kind="stats")

# %%
az.plot_forest(
    [to_arviz(estimates["network"]), to_arviz(estimates["smc"])],
    model_names=["network guide", "SMC"],
    var_names=["logits"],
    combined=True,
    figsize=(6, 5),
)
plt.show()

# %% [markdown]
# ## What the catastrophe looks like
#
# The clean image, and the average noisy image that is misread.

# %%
posterior = estimates["smc"].posterior["x"].reshape(-1, 8, 8)
clean = problem.inputs.mean.reshape(8, 8)
figure, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained")
for ax, image, title in zip(
    axes, (clean, posterior[0], posterior.mean(0) - clean.numpy()), ("clean", "misread", "mean push"), strict=True
):
    limit = float(abs(image).max())
    ax.imshow(
        image,
        cmap="RdBu_r" if title == "mean push" else "gray_r",
        vmin=-limit if title == "mean push" else 0,
        vmax=limit,
    )
    ax.set_title(title)
    ax.axis("off")
plt.show()
