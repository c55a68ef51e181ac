"""Studies behind `make bench`: each measures, and writes its own section of RESULTS.md with the command that repeats it."""
