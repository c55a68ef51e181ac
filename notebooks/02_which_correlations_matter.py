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
# # Which correlations matter
#
# A network of eight layers reads digits. How often is it far too sure that it sees an 8? About once in ten thousand inputs. We ask what a
# *presumption* about its activations makes of that number: all independent, or independent but for a few directions a layer. No
# catastrophic input is ever looked for; the answer is the tail of a law that was fitted to ordinary inputs.

# %%
import os

import matplotlib.pyplot as plt

import ppl_risk as pr
from ppl_risk import plots
from ppl_risk.diagnostics import what_tracking_moved

# %% tags=["parameters"]
# Small figures by default; `make notebooks` sets PPL_RISK_NOTEBOOK=full.
full = os.environ.get("PPL_RISK_NOTEBOOK") == "full"
draws, particles, shared, ranks = (10_000, 1000, 40_000, [2, 4, 8, 16, 32]) if full else (2000, 100, 3000, [4, 8, 16])
sources = ("trained", "checkpoints", "gradient", "pca", "random") if full else ("trained", "checkpoints")

# %% [markdown]
# ## What flows, what is read
#
# `select` sends a few thousand inputs through the network and back. Per layer it keeps the directions along which the trained weights
# carry what varies (the covariance of what the layer reads) to what the catastrophe reads (the gradient of the margin, over all inputs and
# over the tenth with the largest margin). The table says how much of that a few directions hold.

# %%
problem = pr.load_model("digits_deep", depth=8)
selection = pr.select(problem, rank=8)
print(selection)
plots.plot_selection(selection)
plt.show()

# %% [markdown]
# ## The dial from independence to the network
#
# `Selected(selection.at(r))` carries r directions of what every layer reads, exactly, and replaces the rest by independent noise of the same
# variances that leaves those directions alone. Rank 0 presumes independence of everything; full rank is the network.

# %%
truth = pr.load_truth("digits_deep", depth=8)
dial = {
    f"rank {r}": pr.fit_layerwise(
        problem, pr.guides.Selected(selection.at(r)), draws=draws, particles=particles, progress=False
    )
    for r in (0, *ranks)
}
comparison = pr.compare(dial, truth=truth)
comparison

# %%
plots.plot_estimates(comparison)
plt.show()

# %% [markdown]
# Independence is wrong by many decades. The estimates say `MODEL_ONLY`: nothing in them checks the network. That is the point of the
# comparison with the truth here, and of `run_smc` where no truth is known.
#
# ## How many directions?
#
# `choose_rank` raises the rank until the tail stands still. It needs no truth for that.

# %%
search = pr.choose_rank(problem, selection, ranks=ranks, draws=draws, particles=particles, progress=False)
print(search)
plots.plot_ranks(search)
plt.show()

# %% [markdown]
# ## Which layer, which direction, and what does it read?
#
# From four directions to eight the tail moved by decades. From the guide of rank eight each layer alone goes back to four, then each
# direction of the layers that matter most is dropped alone. The pictures show what the 64 pixels do along these directions.

# %%
moved = what_tracking_moved(problem, selection, 4, 8, draws=shared, progress=False)
print(moved)
plots.plot_tracking(moved)
plt.show()

# %% [markdown]
# ## Other bases of the same rank
#
# What training *wrote* (the change of the weights), what varies (PCA) and random directions, at the same rank. The first needs the weights
# that training started from; `UpdateSketch` keeps a sketch of the change for networks whose initial weights are too large to keep.

# %%
bases = {
    source: pr.fit_layerwise(
        problem, pr.guides.Selected(pr.select(problem, 16, source)), draws=draws, particles=particles, progress=False
    )
    for source in sources
}
pr.compare(bases, truth=truth)
