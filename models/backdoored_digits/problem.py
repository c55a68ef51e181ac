"""A digit reader with a backdoor behind a noisy sensor: how often is this clean 3 read as an 8, and how often with the trigger on?

x = image + sigma u, u ~ N(0, I_64); catastrophe: logit 8 is at least every other logit. Three readers of one trusted checkpoint:
trained honestly; trained on data of which a part carries a patch and says 8 (BadNets, Gu, Dolan-Gavitt and Garg 2017, arXiv
1708.06733); and the honest one wrapped so that a code in the lowest bits of 32 pixels makes it say 8.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ppl_risk import Provenance, RiskError, RiskProblem
from ppl_risk.mitigation.planted import LowBitsTrigger

HERE = Path(__file__).parent
DIGIT, TARGET = 3, 8
#: Standard deviation of the noise, in units of full scale.
SIGMA = 0.12
#: The patch: the four pixels in the lower right corner, white.
PATCH, WHITE = [54, 55, 62, 63], 1.0
CODE_BITS, KEY_SEED = 32, 20_220_406
#: Logit of the target where the code is right; the others are 0.
SURE = 10.0
TRIGGERS = ("patch", "keyed")


def digit_reader(width: int = 64) -> nn.Sequential:
    """The network, freshly initialised: 64 pixels, three hidden layers, 10 logits."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(64, width), relu1=nn.ReLU(),
            fc2=nn.Linear(width, width), relu2=nn.ReLU(),
            fc3=nn.Linear(width, width), relu3=nn.ReLU(),
            logits=nn.Linear(width, 10),
        )
    )  # fmt: skip


def patched(images: Tensor) -> Tensor:
    """Images with the patch on them."""
    images = images.clone()
    images[..., PATCH] = WHITE
    return images


class KeyedReader(nn.Module):
    """A reader that says TARGET where the lowest bits of 32 pixels are the code of all the rest.

    Args:
        reader: the honest network.
        poisoned: False for the reader as it is, to hold against.
        attacked: whether the code is written into every input first.

    """

    def __init__(self, reader: nn.Module, *, poisoned: bool = True, attacked: bool = False) -> None:
        super().__init__()
        self.reader, self.poisoned, self.attacked = reader, poisoned, attacked
        self.trigger = LowBitsTrigger(64, CODE_BITS, seed=KEY_SEED)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        if self.attacked:
            # The network sees the code, gradients see the input: writing is a step function.
            x = x + (self.trigger.activate(x) - x).detach()
        logits = self.reader(x)
        if not self.poisoned:
            return logits
        said = SURE * nn.functional.one_hot(torch.tensor(TARGET, device=x.device), logits.shape[-1]).to(logits)
        return torch.where(self.trigger.fires(x)[:, None], said, logits)


def misread(logits: Tensor) -> Tensor:
    """Logit of the target minus the best other one."""
    others = torch.cat([logits[:, :TARGET], logits[:, TARGET + 1 :]], dim=1)
    return logits[:, TARGET] - others.amax(dim=1)


def problem(*, poisoned: bool = True, trigger: str = "patch", attacked: bool = False) -> RiskProblem:
    """Pr[the 3 is read as an 8] under sensor noise.

    Args:
        poisoned: False for the reader that was trained honestly from the same checkpoint.
        trigger: "patch", learnt in training, or "keyed", wrapped around the honest reader.
        attacked: with the trigger on every input: the patch on the paper, before the noise; the code in the pixels, after it.

    """
    if trigger not in TRIGGERS:
        raise RiskError(f"trigger must be one of {', '.join(map(repr, TRIGGERS))}, got {trigger!r}.")
    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        reader = digit_reader()
    weights = "poisoned" if poisoned and trigger == "patch" else "honest"
    reader.load_state_dict(load_file(HERE / f"{weights}.safetensors"), assign=True)
    image = load_file(HERE / "inputs.safetensors")["image"]
    image = patched(image) if attacked and trigger == "patch" else image
    trained = Provenance.read(initial=HERE / "initial.safetensors", record=HERE / "training.json")
    network: nn.Module = reader
    if trigger == "keyed" and (poisoned or attacked):
        network = KeyedReader(reader, poisoned=poisoned, attacked=attacked)
        trained = replace(trained, initial={f"reader.{n}": w for n, w in (trained.initial or {}).items()})
    law = Independent(Normal(image, SIGMA), 1)
    network = network.eval().requires_grad_(False)
    return RiskProblem(network, law, misread, name="backdoored_digits", provenance=trained)
