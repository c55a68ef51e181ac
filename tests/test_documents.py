"""What the README and the notebooks show is run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "TQDM_DISABLE": "1"}


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("number", "says", "times"),
    [
        (0, "Believe svi", 1),
        (1, "BELIEVE: OK", 2),
        (2, "layerwise selected(trained", 1),
        (3, "BELIEVE: VACUOUS", 1),
        (4, "1,000 of 1,000", 1),
    ],
)
def test_the_examples_run(number, says, times, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLES[number]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(says) == times
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem)
def test_notebooks_run(notebook, tmp_path):
    ran = subprocess.run([sys.executable, str(notebook)], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr


def test_every_local_link_exists():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
    links = [(p, target) for p in pages for target in re.findall(r"\]\(([^)#:]+)\)", p.read_text())]
    assert [f"{p.name}: {target}" for p, target in links if not (p.parent / target).exists()] == []
