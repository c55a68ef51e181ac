"""The one door for parallel work: a plan of units, and one call that runs it in a loop or on a cluster.

    from dask.distributed import Client, LocalCluster

    with LocalCluster(n_workers=4, threads_per_worker=1) as cluster, Client(cluster) as client:
        ppl_risk.run_smc(problem, engine=client, folder="runs/far")

On many machines: `dask scheduler --host 127.0.0.1` (or behind TLS: dask's traffic is pickle, so whoever reaches the port
runs code), `dask worker tcp://... --nthreads 1`, and `engine="tcp://..."`. Workers need the same environment, and a unit should
last 0.2 s or more. Killed workers, and a killed driver that is started again with the same folder, leave the answer as it was,
bit for bit. A unit that hangs is waited for, unless `unit_limit(seconds)` says how long; a call that is stopped (Ctrl-C) restarts
the workers that still run its units, so that the next call finds them free.
"""

from ppl_risk.parallel.chain import run_chain, tried_twice
from ppl_risk.parallel.forms import fits
from ppl_risk.parallel.journal import folder_of, units_folder
from ppl_risk.parallel.loop import run_units
from ppl_risk.parallel.plan import Unit, chunks, plan_units
from ppl_risk.parallel.records import digest
from ppl_risk.parallel.workers import unit_limit

__all__ = [
    "Unit", "chunks", "digest", "fits", "folder_of", "plan_units", "run_chain", "run_units",
    "tried_twice", "unit_limit", "units_folder",
]  # fmt: skip
